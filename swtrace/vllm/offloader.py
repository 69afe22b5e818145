"""The series behind vLLM's offloader seam: takes decoder layers in hand while the model builds them.

``make_layers`` hands over a lazy generator, so one decoder layer exists at a time and its weights
are freed before the next is made: no rank ever holds all layers. Some models keep a list of layers of
their own, among them all that vLLM runs through its Transformers backend. Their layers are taken when
the model is built, before its weights are loaded. vLLM calls ``post_init`` on some platforms only; so a
series is finished by the last of its linears, when vLLM asks for its post-processing: every rank walks
the modules of its model in the same order.
"""

from __future__ import annotations

import copy
import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import is_lazy
from vllm.model_executor.offloader.base import BaseOffloader

from swtrace.errors import RefusedError, RegistrationError
from swtrace.series import Series
from swtrace.series.operations import forget
from swtrace.series.recording import existing_recorder, process_recorder
from swtrace.vllm.configuration import state_outcome
from swtrace.vllm.graphs import whole_forward
from swtrace.vllm.groups import Choice, Refused, choose_group
from swtrace.vllm.hooks import Hooks, read_while_loading, try_out
from swtrace.vllm.layers import find_linear, linear_paths, own_layers
from swtrace.vllm.peer_monitor import start_peer_monitor
from swtrace.vllm.startup_agreement import agree
from swtrace.vllm.worker_identity import announce, run_ranks, state_refused

if TYPE_CHECKING:
    from collections.abc import Generator

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
    hooks: Hooks
    """Of its linears' waits."""


class SeriesOffloader(BaseOffloader):  # type: ignore[misc]  # vLLM is absent where types are checked
    """Shares the linears that the settings name; leaves everything else of the model alone."""

    def __init__(self, settings: Settings, vllm_config: Any) -> None:
        """Start anew: an earlier model's series in this process are closed."""
        self._settings = settings
        self._vllm_config = vllm_config
        self._tracks: tuple[Track, ...] | None = None
        self._start_layer = 0
        self._end_layer = 0
        self._layers: list[nn.Module] = []
        self._reaches = Hooks()
        self._watched = False
        """Whether somebody looks after the peers."""
        forget()
        announce(vllm_config)

    def wrap_modules(
        self,
        modules_generator: Generator[nn.Module, None, None],
        prefix: str = "",  # noqa: ARG002 (vLLM's signature)
    ) -> list[nn.Module]:
        """Build the decoder layers one by one and take their linears into the series.

        Raises:
            RegistrationError: the layers do not form a series, and other ranks may not know.
            RefusedError: something cannot be shared, and ``SWTRACE_STRICT=1``.
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
        if not modules:  # the other ranks want to hear that
            self._tracks = self._begin(None)
        self._finish(len(modules))
        return modules

    def built(self, model: nn.Module) -> None:
        """Take the layers of a model that did not come to :meth:`wrap_modules`, before its weights are loaded.

        Raises:
            As :meth:`wrap_modules`.
        """
        if self._tracks is not None:
            return
        self._tracks = ()
        self._start_layer, self._end_layer = _layer_range(self._vllm_config)
        try:
            modules = own_layers(model, self._vllm_config, self._settings.series)[self._start_layer : self._end_layer]
        except Refused as refusal:
            self._tracks = self._begin(refusal)
            return
        self._tracks = self._begin(modules[0] if modules else None)
        for layer, module in enumerate(modules, self._start_layer):
            self._take(module, layer)
        self._finish(len(modules))

    def _finish(self, count: int) -> None:
        """Let the layers that were taken reach for their series, if they are all that the model's config promises."""
        found = self._start_layer + count
        if found != self._end_layer:
            for track in self._tracks or ():
                self._withdraw(
                    track,
                    f"the model built layers {self._start_layer} to {found}, its config says up to {self._end_layer}: "
                    "which layers a series has cannot be told",
                    unloaded=True,
                )
        self._mark_reaches()

    def loaded(self) -> None:
        """Check, when the model is loaded, that every series was finished.

        Raises:
            RegistrationError: this rank has not all weights, and nobody will bring them.
            RefusedError: nothing was shared, and ``SWTRACE_STRICT=1``.
        """
        if self._tracks is None:
            self._tracks = ()
            state_outcome(self._vllm_config, {})
            for path in self._settings.series:
                self._refuse(
                    path,
                    f"load format {self._vllm_config.load_config.load_format} builds the model where swtrace does not "
                    "see it; use another load format",
                )
        for track in self._tracks:
            if not track.series.post_processed:
                raise RegistrationError(
                    f"series {track.path}: vLLM never post-processed its linears; "
                    f"load format {self._vllm_config.load_config.load_format} cannot be used with swtrace"
                )
        recorder = existing_recorder()
        if self._tracks and not self._watched and recorder is not None:
            self._watched = True
            start_peer_monitor(recorder)

    def post_init(self) -> None:
        """Check, where vLLM calls this after loading; other platforms ask for it by themselves."""
        self.loaded()

    def sync_prev_onload(self) -> None:
        """Hear that vLLM captures or replays a CUDA graph, or a piece of one, next."""
        if whole_forward():
            for series in self._running():
                series.graph_follows()

    def join_after_forward(self) -> None:
        """Hear that what vLLM captures ends here."""
        for series in self._running():
            series.join()

    def _running(self) -> list[Series]:
        return [track.series for track in self._tracks or () if track.series.post_processed]

    def _begin(self, module: nn.Module | Refused | None) -> tuple[Track, ...]:
        """Choose the group of each series by its first linear, and make the series that all ranks agree on.

        Args:
            module: the first decoder layer of this rank; None where it has none; or why its layers are unknown.
        """
        tracks = []
        decisions = {path: self._decide(module, path) for path in self._settings.series}
        for path, decision in agree(decisions, self._settings.timeout_s).items():
            if isinstance(decision, Refused):
                self._refuse(path, str(decision))
                continue
            group = decision.coordinator
            series = Series(
                path,
                group,
                self._start_layer,
                self._end_layer,
                prefetch_step=self._settings.prefetch_step,
                windows=self._settings.windows,
                recorder=process_recorder,
                hook_forward=False,  # a compiler must find opaque operators there
                auto_post_process=True,
                run_ranks=run_ranks(group.ranks, self._vllm_config),
                try_out=try_out,
                withdrawn=functools.partial(self._withdrawn, path),
                settings=self._settings,
            )
            if group.rank_in_group == 0:
                logger.info("swtrace shares %s over %s", path, decision)
            tracks.append(Track(path, series, series.number, decision.name, Hooks()))
        state_outcome(self._vllm_config, {track.path: track.group for track in tracks})
        return tuple(tracks)

    def _decide(self, module: nn.Module | Refused | None, path: str) -> Choice | Refused:
        if isinstance(module, Refused):
            return module
        if module is None:
            return Refused("a pipeline stage without decoder layers has nothing to share")
        try:
            return self._choose(module, path)
        except Refused as refusal:
            return refusal

    def _choose(self, module: nn.Module, path: str) -> Choice:
        linear = find_linear(module, path)
        if linear is None:
            raise Refused(
                f"a decoder layer of this model ({type(module).__name__}) has no linear {path}; "
                f"set SWTRACE_SERIES to one that it has: {', '.join(linear_paths(module)) or 'none'}"
            )
        if any(parameter.is_meta or is_lazy(parameter) for parameter in linear.parameters(recurse=False)):
            raise Refused(f"{path} gets its weights while it is loaded (online quantisation), not before")
        reader = read_while_loading(module, linear)
        if reader:
            raise Refused(f"{reader} makes something of its own of {path} after loading, as MLA does with kv_b_proj")
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
        return choose_group(
            self._settings.group, path, linear, self._vllm_config, experimental=self._settings.experimental
        )

    def _take(self, module: nn.Module, layer: int) -> None:
        """Take a decoder layer's linears into their series; a series that it has no linear for is withdrawn."""
        for track in self._tracks or ():
            linear = find_linear(module, track.path)
            if linear is None:
                self._withdraw(
                    track, f"layer {layer} has no such linear, and a series needs one in every layer", unloaded=True
                )
                continue
            # Others may share the instance; ours is changed below.
            linear.quant_method = copy.copy(linear.quant_method)
            track.hooks.keep_plain(linear)
            try:
                track.series.register(layer, linear)
            except RegistrationError as error:
                self._withdraw(track, str(error), unloaded=True)
                continue
            track.hooks.wait_before_reading(linear, track.number, layer)
        self._layers.append(module)

    def _withdrawn(self, path: str, reason: str) -> None:
        for track in self._tracks or ():
            if track.path == path:
                self._withdraw(track, reason, unloaded=False)

    def _mark_reaches(self) -> None:
        """Let the decoder layers reach for the series that there are now."""
        self._reaches.remove()
        numbers = tuple(track.number for track in self._tracks or ())
        if not numbers:
            return
        for layer, module in enumerate(self._layers, self._start_layer):
            self._reaches.reach_before_forward(module, numbers, layer)

    def _withdraw(self, track: Track, reason: str, *, unloaded: bool) -> None:
        """Let vLLM run as if nobody had asked to share this linear. Must come before the model is compiled.

        Its weights are either not loaded yet, or whole again on every rank.

        Raises:
            RegistrationError: other ranks may not see the reason, and would wait for this one.
            RefusedError: ``SWTRACE_STRICT=1``.
        """
        if unloaded:
            if self._vllm_config.parallel_config.pipeline_parallel_size > 1:
                raise RegistrationError(f"series {track.path}: {reason}; remove it from SWTRACE_SERIES")
            track.series.withdraw()
        track.hooks.remove()
        self._tracks = tuple(other for other in self._tracks or () if other is not track)
        if not unloaded:
            self._mark_reaches()
        state_outcome(self._vllm_config, {other.path: other.group for other in self._tracks})
        self._refuse(track.path, reason)

    def _refuse(self, path: str, reason: str) -> None:
        if self._settings.strict:
            raise RefusedError(f"{path} is not shared: {reason}")
        logger.warning("swtrace does not share %s: %s", path, reason)
        layers = self._end_layer - self._start_layer
        state_refused(path, reason, self._settings, self._vllm_config, start_layer=self._start_layer, num_layers=layers)


def _layer_range(vllm_config: Any) -> tuple[int, int]:
    """Return the absolute layers that this rank builds: as ``make_layers`` reckons them."""
    from vllm.distributed.parallel_state import get_pp_group
    from vllm.distributed.utils import get_pp_indices

    stages = get_pp_group()
    total = vllm_config.model_config.get_total_num_hidden_layers()
    start, end = get_pp_indices(total, stages.rank_in_group, stages.world_size)
    return start, end
