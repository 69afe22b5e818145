"""The series behind vLLM's offloader seam: takes decoder layers in hand while the model builds them.

``make_layers`` hands over a lazy generator, so one decoder layer exists at a time and its weights
are freed before the next is made: no rank ever holds all layers. vLLM calls ``post_init`` on some
platforms only; so a series is finished by the last of its linears, when vLLM asks for its
post-processing: every rank walks the modules of its model in the same order.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.offloader.base import BaseOffloader
from vllm.platforms import current_platform

from swtrace.errors import RefusedError, RegistrationError
from swtrace.series import Series
from swtrace.series.recording import process_recorder
from swtrace.vllm.configuration import state_outcome
from swtrace.vllm.groups import Choice, Refused, choose_group
from swtrace.vllm.identity import announce
from swtrace.vllm.operations import forget, number, reach, wait

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import nn

    from swtrace.settings import Settings

logger = logging.getLogger("vllm.swtrace")


@dataclass(frozen=True, slots=True)
class Track:
    """One series and where its linears are."""

    path: str
    """Of the linear, inside a decoder layer."""
    series: Series
    number: int
    group: str


class SeriesOffloader(BaseOffloader):  # type: ignore[misc]  # vLLM is absent where types are checked
    """Shares the linears that the settings name; leaves everything else of the model alone."""

    def __init__(self, settings: Settings, vllm_config: Any) -> None:
        """Start anew: an earlier model's series in this process are closed."""
        self._settings = settings
        self._vllm_config = vllm_config
        self._tracks: tuple[Track, ...] | None = None
        self._start_layer = 0
        self._end_layer = 0
        forget()
        announce(settings, vllm_config)

    def wrap_modules(
        self,
        modules_generator: Generator[nn.Module, None, None],
        prefix: str = "",  # noqa: ARG002 (vLLM's signature)
    ) -> list[nn.Module]:
        """Build the decoder layers one by one and take their linears into the series.

        Raises:
            RegistrationError: the layers do not form a series.
            RefusedError: nothing can be shared, and ``SWTRACE_STRICT=1``.
        """
        if self._tracks is not None:
            # A draft model's layers run a different number of times per step than the model's.
            logger.warning("swtrace leaves a second stack of layers alone: only the model's first one is shared")
            return list(modules_generator)
        self._tracks = ()
        modules: list[nn.Module] = []
        for module in modules_generator:
            if not modules:
                self._start_layer, self._end_layer = _layer_range(self._vllm_config)
                self._tracks = self._begin(module)
            self._take(module, self._start_layer + len(modules))
            modules.append(module)
        found = self._start_layer + len(modules)
        if self._tracks and found != self._end_layer:
            raise RegistrationError(
                f"the model built layers {self._start_layer} to {found}, its config says up to {self._end_layer}: "
                "swtrace cannot tell which layers a series has"
            )
        return modules

    def post_init(self) -> None:
        """Check, where vLLM calls this after loading, that every series was finished."""
        for track in self._tracks or ():
            if not track.series.post_processed:
                raise RegistrationError(
                    f"series {track.path}: vLLM never post-processed its linears; "
                    f"load format {self._vllm_config.load_config.load_format} cannot be used with swtrace"
                )

    def _begin(self, module: nn.Module) -> tuple[Track, ...]:
        """Choose the group of each series by its first linear, and make the series."""
        tracks = []
        for path in self._settings.series:
            try:
                choice = self._choose(module, path)
            except Refused as refusal:
                if self._settings.strict:
                    raise RefusedError(f"{path} is not shared: {refusal}") from refusal
                logger.warning("swtrace does not share %s: %s", path, refusal)
                continue
            series = Series(
                path,
                choice.coordinator,
                self._start_layer,
                self._end_layer,
                prefetch_step=self._settings.prefetch_step,
                windows=self._settings.windows,
                recorder=process_recorder,
                hook_forward=False,  # a compiler must find opaque operators there
                auto_post_process=True,
            )
            tracks.append(Track(path, series, number(series), choice.name))
        state_outcome(self._vllm_config, {track.path: track.group for track in tracks})
        return tuple(tracks)

    def _choose(self, module: nn.Module, path: str) -> Choice:
        linear = _linear(module, path)
        if linear is None:
            raise Refused(f"a decoder layer of this model ({type(module).__name__}) has no linear {path}")
        layers = self._end_layer - self._start_layer
        if self._settings.prefetch_step > layers - 2:
            raise Refused(
                f"prefetch step {self._settings.prefetch_step} needs at least {self._settings.prefetch_step + 2} "
                f"layers, this rank has {layers}; lower SWTRACE_PREFETCH_STEP"
            )
        if self._settings.windows == "rolling" and not self._vllm_config.model_config.enforce_eager:
            raise Refused(
                "rolling windows move weights at run time, which a compiled model does not see; "
                "unset SWTRACE_WINDOWS or run with --enforce-eager"
            )
        return choose_group(self._settings.group, path, linear, self._vllm_config)

    def _take(self, module: nn.Module, layer: int) -> None:
        for track in self._tracks or ():
            linear = _linear(module, track.path)
            if linear is None:
                raise RegistrationError(
                    f"series {track.path}: layer {layer} has no such linear, and a series needs one in every layer; "
                    "name another in SWTRACE_SERIES"
                )
            # Others may share the instance; ours is changed below.
            linear.quant_method = copy.copy(linear.quant_method)
            if current_platform.is_cpu():  # keep the plain Parameter, where vLLM would pack a copy for oneDNN
                linear._cpu_skip_gemm_dispatch = True  # noqa: SLF001 (vLLM's own switch, used by its MLA layers)
            track.series.register(layer, linear)
            _wait_before_reading(linear, track.number, layer)
        if self._tracks:
            _reach_before_forward(module, tuple(track.number for track in self._tracks), layer)


def _layer_range(vllm_config: Any) -> tuple[int, int]:
    """Return the absolute layers that this rank builds: as ``make_layers`` reckons them."""
    from vllm.distributed.parallel_state import get_pp_group
    from vllm.distributed.utils import get_pp_indices

    stages = get_pp_group()
    total = vllm_config.model_config.get_total_num_hidden_layers()
    start, end = get_pp_indices(total, stages.rank_in_group, stages.world_size)
    return start, end


def _linear(module: nn.Module, path: str) -> Any:
    """Return the vLLM linear at ``path``, or None."""
    from vllm.model_executor.layers.linear import LinearBase

    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, LinearBase) else None


def _reach_before_forward(module: nn.Module, series: tuple[int, ...], layer: int) -> None:
    """Start the broadcasts that belong to the arrival at ``layer``, first thing in its forward."""
    forward = module.forward

    def forward_after_reach(*args: Any, **kwargs: Any) -> Any:
        activation = _activation(args, kwargs)
        for one in series:
            reach(activation, one, layer)
        return forward(*args, **kwargs)

    module.forward = forward_after_reach


def _wait_before_reading(linear: Any, series: int, layer: int) -> None:
    """Wait in the linear's forward, and where others apply its weights without calling its forward.

    LoRA calls ``quant_method.apply`` itself, some fused linears read their weight without it; a second wait in
    a step does nothing.
    """
    from vllm.model_executor.layers import linear as linears

    method = linear.quant_method
    apply: Callable[..., Any] = method.apply

    def apply_after_wait(layer_: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        wait(x, series, layer)
        return apply(layer_, x, *args, **kwargs)

    method.apply = apply_after_wait
    plain = (linears.ReplicatedLinear, linears.ColumnParallelLinear, linears.RowParallelLinear)
    if any(type(linear).forward is one.forward for one in plain):
        return  # known to read its weight through apply and nowhere else
    forward = linear.forward

    def forward_after_wait(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        wait(x, series, layer)
        return forward(x, *args, **kwargs)

    linear.forward = forward_after_wait


def _activation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden states among a decoder layer's arguments: positions are integers."""
    named = kwargs.get("hidden_states")
    if named is not None:
        return named  # type: ignore[no-any-return]
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    raise RegistrationError("a decoder layer was called without hidden states; swtrace cannot mark its reach")
