"""What happens to a layer between its construction and post-processing.

The aim is that no rank ever holds all layers: a layer's bytes are freed the moment it is registered
on a rank that is not its source. All such layers then lie in one and the same memory, the *landing*, so that
whatever loads a model by copying finds tensors to copy to; what it puts there, nobody reads. A parameter's
``weight_loader`` is spared the work. The layer's post-processing, which needs the true bytes, is put off until
they can be broadcast.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from swtrace.series.holders import held_by_others
from swtrace.series.interception import Interception
from swtrace.series.payload import PayloadLayout, new_buffer, own_tensors, payload_tensors, version_of

PROCESS = "process_weights_after_loading"
_ABSENT = object()


class Landing:
    """The memory that stands in for all layers of a series that this rank does not keep, until post-processing."""

    def __init__(self) -> None:
        self._views: tuple[torch.Tensor, ...] = ()

    def views(self, layout: PayloadLayout, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return a view per tensor of a layer; of all layers the same."""
        if not self._views:
            self._views = layout.views(new_buffer(layout, device))
        return self._views

    def release(self) -> None:
        """Hold the memory no longer than the tensors that lie in it."""
        self._views = ()


class PendingLayer:
    """A registered layer's loading: begun by the constructor, ended by :meth:`process` and :meth:`finish`."""

    def __init__(
        self,
        layer: nn.Module,
        layout: PayloadLayout,
        landing: Landing,
        *,
        owned: bool,
        asked: Callable[[], None],
    ) -> None:
        """Take the layer in hand.

        Args:
            layer: the linear, with its parameters made but not loaded.
            layout: of its tensors.
            landing: where it lies if this rank is not its source.
            owned: whether this rank is the layer's source.
            asked: called when the model's loader asks for the layer's post-processing, which is put off.
        """
        self._layer = layer
        self._owned = owned
        self._loaders: dict[str, Any] = {}
        self.layout = layout
        """Of the tensors as they were registered, before post-processing."""
        self.other_memory: list[torch.UntypedStorage] = []
        """What the tensors lay in before, where somebody else holds on to it."""
        if not owned:
            tensors = payload_tensors(layer)
            self.other_memory = held_by_others(tensors.values())
            self._free(tensors, landing)
        self._versions = self._written()
        self._restore, self._process = self._put_off(asked)

    def _free(self, tensors: dict[str, torch.Tensor], landing: Landing) -> None:
        device = next(iter(tensors.values())).device
        for (name, tensor), view in zip(tensors.items(), landing.views(self.layout, device), strict=True):
            tensor.data = view
            self._loaders[name] = getattr(tensor, "weight_loader", _ABSENT)
            if isinstance(tensor, nn.Parameter):
                parameter: Any = tensor
                parameter.weight_loader = _load_nothing
        return_freed()

    def _put_off(self, asked: Callable[[], None]) -> tuple[Callable[[], None], Callable[[], None]]:
        """Replace the layer's post-processing; return how to restore it, and how to run it."""
        layer = self._layer
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

        def remember(*args: Any, **kwargs: Any) -> None:
            nonlocal arguments
            arguments = (args, kwargs)
            asked()

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
        """Return whether somebody wrote to the layer's tensors since, or gave it others."""
        return self._written() != self._versions

    def give_back(self) -> None:
        """Make the layer as if it had never been taken in hand; its weights must not have been loaded yet."""
        tensors = own_tensors(self._layer)
        for place in self.layout.places if not self._owned else ():
            tensor = tensors[place.name]
            tensor.data = torch.empty_strided(place.shape, place.stride, dtype=place.dtype, device=tensor.device)
        self.finish()

    def process(self) -> None:
        """Run the layer's own post-processing, on the bytes that its tensors now hold."""
        self._process()

    def finish(self) -> None:
        """Take every replacement back."""
        self._restore()
        parameters: dict[str, Any] = dict(self._layer.named_parameters())
        for name, loader in self._loaders.items():
            parameter = parameters.get(name)
            if parameter is None or getattr(parameter, "weight_loader", None) is not _load_nothing:
                continue
            if loader is _ABSENT:
                del parameter.weight_loader
            else:
                parameter.weight_loader = loader


def _load_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for a parameter's ``weight_loader`` on ranks that do not keep the layer."""


def return_freed() -> None:
    """Return what is free in this process's heap to the system; does nothing where the C library has no way to.

    glibc keeps freed blocks of a layer's size in its heap, and torch's aligned requests of the same size do not fit
    into them again. A rank that freed a layer for every one it kept would grow to the size of all layers, and stay
    there.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
