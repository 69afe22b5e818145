"""The series offloader: registers decoder layers through vLLM's offloader seam while the model builds them.

``make_layers`` passes a lazy generator, so each decoder layer is built and its weights are freed before the
next is built: no rank ever holds all layers. Some models keep their own list of layers, among them all that vLLM
runs through its Transformers backend. Their layers are registered when the model is built, before its weights are
loaded. vLLM calls ``post_init`` only on some platforms. So the last linear of a series finishes it, when vLLM
post-processes that linear; every rank walks the modules of its model in the same order.
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
from swtrace.vllm.configuration import write_outcome
from swtrace.vllm.graphs import whole_forward
from swtrace.vllm.groups import Choice, Refused, Unobservable, choose_group, explained
from swtrace.vllm.hooks import Hooks, read_while_loading, try_out
from swtrace.vllm.layers import find_linear, layer_range, linear_paths, own_layers, total_layers
from swtrace.vllm.peer_monitor import start_peer_monitor
from swtrace.vllm.startup_agreement import agree
from swtrace.vllm.worker_identity import record_model, record_refused

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn

    from swtrace.settings import Settings

logger = logging.getLogger("vllm.swtrace")


@dataclass(frozen=True, slots=True)
class Track:
    """One series and the place of its linears."""

    path: str
    """Path of the linear inside a decoder layer."""
    series: Series
    number: int
    group: str
    hooks: Hooks
    """The waits of its linears."""


class SeriesOffloader(BaseOffloader):  # type: ignore[misc]  # vLLM is absent where types are checked
    """Shares the linears that the settings name, and leaves the rest of the model alone."""

    def __init__(self, settings: Settings, vllm_config: Any) -> None:
        """Start without series, and close those of an earlier model in this process."""
        self._settings = settings
        self._vllm_config = vllm_config
        self._tracks: tuple[Track, ...] | None = None
        self._start_layer = 0
        self._end_layer = 0
        self._shared: tuple[int, ...] = ()
        """The layers of this rank whose linears are shared."""
        self._layers: dict[int, nn.Module] = {}
        """Those that have been built."""
        self._reaches = Hooks()
        self._watched = False
        """Whether a thread monitors the peers."""
        forget()
        record_model(vllm_config)

    def wrap_modules(
        self,
        modules_generator: Generator[nn.Module, None, None],
        prefix: str = "",  # noqa: ARG002 (vLLM's signature)
    ) -> list[nn.Module]:
        """Build the decoder layers one by one and register their linears in the series.

        Raises:
            RegistrationError: the layers do not form a series, and other ranks may not see that.
            RefusedError: a linear cannot be shared, and ``SWTRACE_STRICT=1``.
        """
        if self._tracks is not None:
            # The layers of a draft model run a different number of times per step than those of the model.
            logger.warning(
                "swtrace shares only the first stack of decoder layers; another one, as of a draft model, is not shared"
            )
            return list(modules_generator)
        self._tracks = ()
        self._choose_layers()
        modules: list[nn.Module] = []
        for layer, module in enumerate(modules_generator, self._start_layer):
            self._take(module, layer)
            modules.append(module)
        if not self._layers:  # the other ranks wait for this rank's decision
            self._tracks = self._begin(None)
        self._finish(len(modules))
        return modules

    def built(self, model: nn.Module) -> None:
        """Register the layers of a model that bypassed :meth:`wrap_modules`, before its weights are loaded.

        Raises:
            As :meth:`wrap_modules`.
        """
        if self._tracks is not None:
            return
        self._tracks = ()
        self._choose_layers()
        try:
            modules = own_layers(model, self._vllm_config, self._settings.series)[self._start_layer : self._end_layer]
        except Refused as refusal:
            self._tracks = self._begin(refusal)
            return
        for layer, module in enumerate(modules, self._start_layer):
            self._take(module, layer)
        if not self._layers:
            self._tracks = self._begin(None)
        self._finish(len(modules))

    def _choose_layers(self) -> None:
        """Choose the layers to share among those that this rank builds."""
        self._start_layer, self._end_layer = layer_range(self._vllm_config)
        self._shared = self._settings.share.layers(self._start_layer, self._end_layer)

    def _finish(self, count: int) -> None:
        """Make the registered layers reach. Withdraw all series if their number is not the one in the config."""
        found = self._start_layer + count
        if found != self._end_layer:
            for track in self._tracks or ():
                self._withdraw(
                    track,
                    f"the model built layers [{self._start_layer}, {found}), but its config says up to "
                    f"{self._end_layer}, so the layers of a series are unknown",
                    unloaded=True,
                )
        self._mark_reaches()

    def loaded(self) -> None:
        """Check, once the model is loaded, that every series was finished.

        Raises:
            RegistrationError: this rank lacks weights that it will never receive.
            RefusedError: nothing was shared, and ``SWTRACE_STRICT=1``.
        """
        if self._tracks is None:
            self._tracks = ()
            write_outcome(self._vllm_config, {})
            for path in self._settings.series:
                self._refuse(
                    path,
                    f"load format {self._vllm_config.load_config.load_format} builds the model where swtrace cannot "
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
        """Check the series after loading, on platforms where vLLM calls this; ``lifecycle.py`` covers the others."""
        self.loaded()

    def sync_prev_onload(self) -> None:
        """Prepare for the CUDA graph, or piece of one, that vLLM captures or replays next."""
        if whole_forward():
            for series in self._running():
                series.announce_graph()

    def join_after_forward(self) -> None:
        """End the capture of a graph in every series."""
        for series in self._running():
            series.join()

    def _running(self) -> list[Series]:
        return [track.series for track in self._tracks or () if track.series.post_processed]

    def _begin(self, module: nn.Module | Refused | None) -> tuple[Track, ...]:
        """Choose the group of each series by its first linear, and make the series that all ranks agree on.

        Args:
            module: the first decoder layer to share on this rank; None if there is none; or the reason why its layers
                are unknown.
        """
        tracks = []
        decisions = {path: self._decide(module, path) for path in self._settings.series}
        for path, decision in agree(decisions, self._settings, self._vllm_config).items():
            if isinstance(decision, Refused):
                self._refuse(path, explained(decision))
                continue
            group = decision.coordinator
            series = Series(
                path,
                group,
                self._start_layer,
                self._end_layer,
                layers=self._shared,
                prefetch_step=self._settings.prefetch_step,
                windows=self._settings.windows,
                recorder=process_recorder,
                hook_forward=False,  # a compiler must find opaque operators instead
                auto_post_process=True,
                run_ranks=decision.ranks,
                try_out=try_out,
                withdrawn=functools.partial(self._withdrawn, path),
                settings=self._settings,
            )
            if group.rank_in_group == 0:
                part = f" ({series.extent})" if len(self._shared) < self._end_layer - self._start_layer else ""
                logger.info("swtrace shares %s%s over %s", path, part, decision)
            tracks.append(Track(path, series, series.number, decision.name, Hooks()))
        write_outcome(self._vllm_config, {track.path: track.group for track in tracks})
        return tuple(tracks)

    def _decide(self, module: nn.Module | Refused | None, path: str) -> Choice | Refused:
        if isinstance(module, Refused):
            return module
        try:
            return self._choice(module, path)
        except Refused as refusal:
            return refusal

    def _choice(self, module: nn.Module | None, path: str) -> Choice:
        share, stack = self._settings.share, self._end_layer - self._start_layer
        total = total_layers(self._vllm_config)
        if share.beyond(total):
            beyond = share.beyond(total)
            raise Refused(f"SWTRACE_SHARE={share} names layers {beyond}, but those of the model are 0-{total - 1}")
        if not stack:
            raise Refused("a pipeline stage without decoder layers has nothing to share")
        shared, least = len(self._shared), self._settings.prefetch_step + 2
        if shared < least:
            needs = f"prefetch step {self._settings.prefetch_step} needs at least {least}"
            raise Refused(
                f"{needs} layers, but this rank has {stack}; lower SWTRACE_PREFETCH_STEP"
                if shared == stack
                else f"{needs} shared layers, but SWTRACE_SHARE={share} shares {shared} of the {stack} on this rank; "
                f"lower SWTRACE_PREFETCH_STEP or share more"
            )
        if module is None:
            raise Refused("the model built none of the layers to share")
        return self._choose(module, path)

    def _choose(self, module: nn.Module, path: str) -> Choice:
        linear = find_linear(module, path)
        if linear is None:
            raise Unobservable(
                f"a decoder layer of this model ({type(module).__name__}) has no linear {path}; "
                f"set SWTRACE_SERIES to one that it has: {', '.join(linear_paths(module)) or 'none'}"
            )
        if any(parameter.is_meta or is_lazy(parameter) for parameter in linear.parameters(recurse=False)):
            raise Refused(f"the weights of {path} are created only while they are loaded (online quantization)")
        reader = read_while_loading(module, linear)
        if reader:
            raise Refused(
                f"{reader} derives tensors of its own from {path} after loading, as MLA does from kv_b_proj; "
                "name another linear in SWTRACE_SERIES"
            )
        if self._settings.windows == "rolling" and not self._vllm_config.model_config.enforce_eager:
            raise Refused(
                "rolling windows move weights at run time, which a compiled model does not see; "
                "unset SWTRACE_WINDOWS or run with --enforce-eager"
            )
        return choose_group(self._settings, path, linear, self._vllm_config)

    def _take(self, module: nn.Module, layer: int) -> None:
        """Register a decoder layer's linears in their series. Withdraw a series if the layer has no linear for it.

        A layer that is not shared is left as it is.
        """
        if layer not in self._shared:
            return
        if not self._layers:
            self._tracks = self._begin(module)
        self._layers[layer] = module
        for track in self._tracks or ():
            linear = find_linear(module, track.path)
            if linear is None:
                self._withdraw(
                    track, f"layer {layer} has no such linear, and a series needs one in every layer", unloaded=True
                )
                continue
            # Other linears may use the same instance, and ours is changed below.
            linear.quant_method = copy.copy(linear.quant_method)
            track.hooks.keep_plain(linear)
            try:
                track.series.register(layer, linear)
            except RegistrationError as error:
                self._withdraw(track, str(error), unloaded=True)
                continue
            track.hooks.wait_before_reading(linear, track.number, layer)

    def _withdrawn(self, path: str, reason: str) -> None:
        for track in self._tracks or ():
            if track.path == path:
                self._withdraw(track, reason, unloaded=False)

    def _mark_reaches(self) -> None:
        """Make the decoder layers reach for the current series."""
        self._reaches.remove()
        numbers = tuple(track.number for track in self._tracks or ())
        if not numbers:
            return
        for layer, module in self._layers.items():
            self._reaches.reach_before_forward(module, numbers, layer)

    def _withdraw(self, track: Track, reason: str, *, unloaded: bool) -> None:
        """Withdraw a series, so that vLLM runs as if its linear had not been requested. Call before compilation.

        The weights are either not loaded yet, or whole again on every rank.

        Raises:
            RegistrationError: other ranks may not see the reason, and would wait for this rank.
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
        write_outcome(self._vllm_config, {other.path: other.group for other in self._tracks})
        self._refuse(track.path, explained(Refused(reason)))

    def _refuse(self, path: str, reason: str) -> None:
        if self._settings.strict:
            raise RefusedError(f"{path} is not shared: {reason}")
        logger.warning("swtrace does not share %s: %s", path, reason)
        stack = self._end_layer - self._start_layer
        record_refused(
            path, reason, self._settings, self._vllm_config, start_layer=self._start_layer, stack_layers=stack
        )
