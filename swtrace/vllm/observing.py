"""The observing offloader: records when decoder layers and their linears begin, and leaves every weight alone.

It needs nothing that sharing needs: no loader, no post-processing and no group of ranks. So it works in engines that
cannot share, and passes all calls on to the offloader that vLLM chose.
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from swtrace.errors import RefusedError, RegistrationError
from swtrace.series import Series
from swtrace.series.recording import process_recorder
from swtrace.units import listed
from swtrace.vllm.configuration import write_outcome
from swtrace.vllm.graphs import whole_forward
from swtrace.vllm.groups import Choice, Refused, Unobservable, alone, observed_group
from swtrace.vllm.hooks import Hooks
from swtrace.vllm.layers import find_linear, layer_range, linear_paths, own_layers
from swtrace.vllm.passing import PassingOffloader
from swtrace.vllm.presence import ranks_without
from swtrace.vllm.startup_agreement import agree
from swtrace.vllm.worker_identity import record_refused

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import nn

    from swtrace.settings import Settings

logger = logging.getLogger("vllm.swtrace")


class ObservingOffloader(PassingOffloader):
    """Observes the linears that the settings name."""

    def __init__(self, settings: Settings, vllm_config: Any, chosen: Any) -> None:
        """Start without series; see :class:`~swtrace.vllm.passing.PassingOffloader`."""
        super().__init__(settings, vllm_config, chosen)
        self._series: tuple[Series, ...] | None = None
        self._start_layer = self._end_layer = 0
        self._hooks = Hooks()

    def wrap_modules(self, modules_generator: Generator[nn.Module, None, None], prefix: str = "") -> list[nn.Module]:
        """Let the chosen offloader build the decoder layers, then register their linears.

        Raises:
            RefusedError: a linear cannot be observed, and ``SWTRACE_STRICT=1``.
        """
        modules = self._chosen_modules(modules_generator, prefix)
        if self._series is None and not prefix:  # with a prefix, they are layers of another modality
            self._observe(modules)
        return modules

    def built(self, model: nn.Module) -> None:
        """Register the layers of a model that bypassed :meth:`wrap_modules`, before its weights are loaded.

        Raises:
            As :meth:`wrap_modules`.
        """
        if self._series is not None:
            return
        start, end = layer_range(self._vllm_config)
        try:
            modules: Sequence[nn.Module] | Refused = own_layers(model, self._vllm_config, self._settings.series)
        except Refused as refusal:
            modules = refusal
        self._observe(modules if isinstance(modules, Refused) else modules[start:end])

    def loaded(self) -> None:
        """Start the series, now that the model is loaded.

        Raises:
            RefusedError: nothing can be observed, and ``SWTRACE_STRICT=1``.
        """
        if self._series is None:
            load_format = self._vllm_config.load_config.load_format
            self._observe(
                Unobservable(
                    f"load format {load_format} builds the model where swtrace cannot see it; use another load format"
                )
            )
        for series in self._series or ():
            if not series.post_processed:
                try:
                    series.post_process()
                except RegistrationError as error:
                    self._refuse(series.name, str(error))

    def post_init(self) -> None:
        """Start the series, on platforms where vLLM calls this; ``lifecycle.py`` covers the others."""
        self._chosen.post_init()
        self.loaded()

    def sync_prev_onload(self) -> None:
        """Prepare for the CUDA graph, or piece of one, that vLLM captures or replays next."""
        self._chosen.sync_prev_onload()
        if whole_forward():
            for series in self._running():
                series.announce_graph()

    def join_after_forward(self) -> None:
        """End the capture of a graph in every series."""
        self._chosen.join_after_forward()
        for series in self._running():
            series.join()

    def _running(self) -> list[Series]:
        return [series for series in self._series or () if series.post_processed]

    def _observe(self, modules: Sequence[nn.Module] | Refused) -> None:
        """Register the linears of this rank's decoder layers in a series for each path."""
        self._start_layer, self._end_layer = layer_range(self._vllm_config)
        self._series = ()
        outcome, reached = {}, defaultdict[int, list[int]](list)
        for path, decision in self._decisions(modules).items():
            if isinstance(decision, Refused) or isinstance(modules, Refused):
                self._refuse(path, str(decision))
                continue
            linears = {layer: find_linear(module, path) for layer, module in enumerate(modules, self._start_layer)}
            linears = {layer: linear for layer, linear in linears.items() if linear is not None}
            try:
                series = self._registered(path, decision, linears)
            except RegistrationError as error:
                self._refuse(path, str(error))
                continue
            self._series += (series,)
            outcome[path] = decision.name
            for layer in linears:
                reached[layer].append(series.number)
        if not isinstance(modules, Refused):
            for layer, numbers in reached.items():
                self._hooks.reach_before_forward(modules[layer - self._start_layer], tuple(numbers), layer)
        write_outcome(self._vllm_config, outcome)

    def _decisions(self, modules: Sequence[nn.Module] | Refused) -> dict[str, Choice | Refused]:
        """Return how each path is observed: in a group, if all ranks of the world do so; otherwise alone."""
        mine = {path: self._choose(path, modules) for path in self._settings.series}
        if ranks_without():
            agreed: dict[str, Choice | Refused] = dict.fromkeys(mine, Refused("swtrace is off on some ranks"))
        else:
            agreed = agree(mine, self._settings, self._vllm_config)
        return {
            path: alone(self._settings, self._vllm_config)
            if isinstance(choice, Choice) and isinstance(agreed[path], Refused)
            else agreed[path]
            if isinstance(choice, Choice)
            else choice
            for path, choice in mine.items()
        }

    def _choose(self, path: str, modules: Sequence[nn.Module] | Refused) -> Choice | Refused:
        if isinstance(modules, Refused):
            return modules
        linear = next((found for module in modules if (found := find_linear(module, path)) is not None), None)
        if linear is None:
            has = ", ".join(linear_paths(modules[0])) if modules else ""
            return Unobservable(
                f"no decoder layer of this rank has a linear {path}; the first one has: {has or 'none'}"
            )
        return observed_group(self._settings, path, linear, self._vllm_config)

    def _registered(self, path: str, choice: Choice, linears: dict[int, Any]) -> Series:
        """Return a series of these linears, which calls wait for.

        Raises:
            RegistrationError: a linear belongs to several layers, or there are too many layers.
        """
        series = Series(
            path,
            choice.coordinator,
            self._start_layer,
            max(self._end_layer, max(linears) + 1),
            layers=tuple(linears),
            recorder=process_recorder,
            hook_forward=False,  # a compiler must find opaque operators instead
            run_ranks=choice.ranks,
            settings=self._settings,
        )
        for layer, linear in linears.items():
            series.register(layer, linear)
        for layer, linear in linears.items():
            # Other linears may use the same instance, and a call of ours is replaced.
            linear.quant_method = copy.copy(linear.quant_method)
            self._hooks.wait_before_reading(linear, series.number, layer)
        logger.info("swtrace observes %s on %s; nothing is shared", path, listed("rank", choice.ranks))
        return series

    def _refuse(self, path: str, reason: str) -> None:
        if self._settings.strict:
            raise RefusedError(f"{path} is not observed: {reason}")
        logger.warning("swtrace does not observe %s: %s", path, reason)
        stack = self._end_layer - self._start_layer
        record_refused(
            path, reason, self._settings, self._vllm_config, start_layer=self._start_layer, stack_layers=stack
        )
