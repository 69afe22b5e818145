"""What happens to a layer between its construction and post-processing.

No rank ever holds all layers: a layer's bytes are freed as soon as it is registered on a rank that is not its
source. All such layers then share the same memory, the *landing*, so that code that loads a model by copying finds
tensors to copy to; the bytes there are never read. A parameter's ``weight_loader`` is replaced by one that does
nothing. The layer's post-processing, which needs the true bytes, is deferred until they can be broadcast.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from swtrace.series.fingerprint import LoadedBytes
from swtrace.series.interception import Interception
from swtrace.series.payload import PayloadLayout, new_buffer, own_tensors, payload_tensors, version_of
from swtrace.series.references import held_by_others

PROCESS = "process_weights_after_loading"
_ABSENT = object()


class Landing:
    """The memory of all layers of a series that this rank does not own, until post-processing."""

    def __init__(self) -> None:
        self._views: tuple[torch.Tensor, ...] = ()

    def views(self, layout: PayloadLayout, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return one view per tensor of a layer; the same for all layers."""
        if not self._views:
            self._views = layout.views(new_buffer(layout, device))
        return self._views

    def release(self) -> None:
        """Drop the views, so that the memory lives only as long as tensors use it."""
        self._views = ()


class PendingLayer:
    """The loading of a registered layer, from the constructor to :meth:`process` and :meth:`finish`."""

    def __init__(
        self,
        layer: nn.Module,
        layout: PayloadLayout,
        landing: Landing,
        *,
        owned: bool,
        on_request: Callable[[], None],
        fingerprinted: bool = False,
    ) -> None:
        """Prepare the layer: free it unless this rank owns it, and defer its post-processing.

        Args:
            layer: the linear, with its parameters constructed but not loaded.
            layout: of its tensors.
            landing: the memory that it uses if this rank is not its source.
            owned: whether this rank is the layer's source.
            on_request: called when the model's loader requests the layer's post-processing, which is deferred.
            fingerprinted: whether to note what is loaded, on all ranks.
        """
        self._layer = layer
        self._owned = owned
        self._loaders: dict[str, tuple[Any, Any]] = {}
        """By parameter, its loader before registration and the one since."""
        self._loaded = LoadedBytes() if fingerprinted else None
        self._state_hook: Any = None
        self.layout = layout
        """The tensors' layout at registration, or as loaded once post-processing has begun."""
        self.other_memory: list[torch.UntypedStorage] = []
        """The tensors' former storages that something else still holds."""
        if not owned:
            tensors = payload_tensors(layer)
            self.other_memory = held_by_others(tensors.values())
            self._free(tensors, landing)
        if self._loaded is not None:
            self._note_loads(self._loaded)
        self._versions = self._written()
        self._restore, self._process = self._defer_processing(on_request)

    def _free(self, tensors: dict[str, torch.Tensor], landing: Landing) -> None:
        device = next(iter(tensors.values())).device
        for (name, tensor), view in zip(tensors.items(), landing.views(self.layout, device), strict=True):
            tensor.data = view
            self._replace_loader(name, tensor, _load_nothing)
        return_freed()

    def _replace_loader(self, name: str, tensor: torch.Tensor, loader: Any) -> None:
        if isinstance(tensor, nn.Parameter):
            parameter: Any = tensor
            before, _ = self._loaders.get(name, (getattr(parameter, "weight_loader", _ABSENT), None))
            self._loaders[name] = before, loader
            parameter.weight_loader = loader

    def _note_loads(self, loaded: LoadedBytes) -> None:
        """Note everything that is loaded from now on."""
        for name, tensor in payload_tensors(self._layer).items():
            loader = getattr(tensor, "weight_loader", _copy_whole)

            def noting(
                parameter: Any, value: Any, *how: Any, loader: Any = loader, name: str = name, **options: Any
            ) -> Any:
                loaded.add(name, value, *how, *sorted(options.items()))
                return loader(parameter, value, *how, **options)

            self._replace_loader(name, tensor, noting)
        layer: Any = self._layer
        self._state_hook = layer.register_load_state_dict_pre_hook(
            lambda _, state, prefix, *_rest: loaded.add_state(state, prefix, payload_tensors(layer))
        )

    @property
    def fingerprint(self) -> str:
        """The digest of what was loaded; empty if that is unknown."""
        return str(self._loaded or "")

    def _defer_processing(self, on_request: Callable[[], None]) -> tuple[Callable[[], None], Callable[[], None]]:
        """Replace the layer's post-processing; return how to restore it, and how to run it."""
        layer = self._layer
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

        def remember(*args: Any, **kwargs: Any) -> None:
            nonlocal arguments
            arguments = (args, kwargs)
            on_request()

        quant_method = getattr(layer, "quant_method", None)
        if callable(getattr(quant_method, PROCESS, None)):
            interception = Interception.install(
                quant_method, PROCESS, layer, lambda _, *args, **kwargs: remember(*args, **kwargs)
            )
            original = interception.original
            return (
                lambda: interception.remove(layer),
                lambda: original(layer, *arguments[0], **arguments[1]),
            )
        own = getattr(layer, PROCESS, None)
        if callable(own):
            shadowed = vars(layer).get(PROCESS, _ABSENT)
            setattr(layer, PROCESS, remember)

            def restore() -> None:
                if shadowed is _ABSENT:
                    delattr(layer, PROCESS)
                else:
                    setattr(layer, PROCESS, shadowed)

            return restore, lambda: own(*arguments[0], **arguments[1])
        return (lambda: None), (lambda: None)

    def _written(self) -> dict[str, int | None]:
        return {name: version_of(tensor) for name, tensor in own_tensors(self._layer).items()}

    def loaded(self) -> bool:
        """Return whether the layer's tensors were written to or replaced since registration."""
        return self._written() != self._versions

    def give_back(self) -> None:
        """Restore the layer as it was before registration; its weights must not have been loaded yet."""
        tensors = own_tensors(self._layer)
        for place in self.layout.places if not self._owned else ():
            tensor = tensors[place.name]
            tensor.data = torch.empty_strided(place.shape, place.stride, dtype=place.dtype, device=tensor.device)
        self.finish()

    def process(self) -> None:
        """Run the layer's own post-processing on the bytes that its tensors hold now."""
        self._process()

    def finish(self) -> None:
        """Undo every replacement."""
        self._restore()
        if self._state_hook is not None:
            self._state_hook.remove()
        parameters: dict[str, Any] = dict(self._layer.named_parameters())
        for name, (loader, replacement) in self._loaders.items():
            parameter = parameters.get(name)
            if parameter is None or getattr(parameter, "weight_loader", None) is not replacement:
                continue
            if loader is _ABSENT:
                del parameter.weight_loader
            else:
                parameter.weight_loader = loader


def _load_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Replace a parameter's ``weight_loader`` on ranks that do not own the layer."""


def _copy_whole(parameter: Any, value: torch.Tensor) -> None:
    """Load a parameter that has no loader.

    Raises:
        ValueError: the value has another shape.
    """
    if value.shape != parameter.shape:
        raise ValueError(f"a value of shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}")
    parameter.data.copy_(value)


def return_freed() -> None:
    """Return this process's free heap to the system; do nothing if the C library has no way to.

    glibc keeps freed blocks of a layer's size in its heap, and torch's aligned requests of the same size do not fit
    into them. A rank that freed a layer for every one it kept would grow to the size of all layers and stay there.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
