"""vLLM's own prefetch offloader, watched: the copies of its decoder layers from host memory, and the waits for them.

vLLM's offloader does all the work. Every call is passed on to it unchanged and in order; timing events are recorded
beside the calls that start a copy and that wait for one (:mod:`swtrace.series.watched`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from swtrace.errors import RefusedError, RegistrationError, RingCreateError, RingFullError
from swtrace.series.device.accelerator import TorchDevice
from swtrace.series.recording import process_recorder, propose_run_id
from swtrace.series.watched import WatchedCopies
from swtrace.trace.identity import H2D, Offload, SeriesInfo
from swtrace.vllm.configuration import write_outcome
from swtrace.vllm.layers import layer_range
from swtrace.vllm.passing import PassingOffloader
from swtrace.vllm.worker_identity import own_rank

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn

    from swtrace.settings import Settings

logger = logging.getLogger("vllm.swtrace")

NAME = "offload"
"""Name of the series."""


def prefetches(offloader: Any) -> bool:
    """Return whether this is vLLM's prefetch offloader."""
    try:
        from vllm.model_executor.offloader.prefetch import PrefetchOffloader
    except ImportError:  # missing in older versions
        return False
    return isinstance(offloader, PrefetchOffloader)


class PrefetchWatcher(PassingOffloader):
    """Passes every call on to vLLM's prefetch offloader, and records its copies and waits."""

    def __init__(self, settings: Settings, vllm_config: Any, chosen: Any) -> None:
        """Watch nothing yet; see :class:`~swtrace.vllm.passing.PassingOffloader`."""
        super().__init__(settings, vllm_config, chosen)
        self._modules: list[nn.Module] = []
        self.copies: WatchedCopies | None = None

    def wrap_modules(self, modules_generator: Generator[nn.Module, None, None], prefix: str = "") -> list[nn.Module]:
        """Let vLLM's offloader build and offload the decoder layers."""
        self._modules = self._chosen_modules(modules_generator, prefix)
        return self._modules

    def post_init(self) -> None:
        """Let vLLM's offloader make its buffers and start its first copies, then begin to watch.

        Raises:
            RefusedError: it cannot be watched, and ``SWTRACE_STRICT=1``.
        """
        self._chosen.post_init()
        if not self._settings.trace:
            return
        try:
            self._watch()
        except (RegistrationError, RingCreateError, RingFullError) as problem:
            if self._settings.strict:
                raise RefusedError(f"vLLM's prefetch offloader is not watched: {problem}") from problem
            logger.warning("swtrace does not watch vLLM's prefetch offloader: %s", problem)

    def _wait_for_layer(self, layer_idx: int) -> None:
        if self.copies is None:
            self._chosen._wait_for_layer(layer_idx)  # noqa: SLF001 (vLLM's custom ops call it by this name)
            return
        self.copies.waits(layer_idx, lambda: self._chosen._wait_for_layer(layer_idx))  # noqa: SLF001

    def _start_prefetch(self, layer_idx: int) -> None:
        if self.copies is None:
            self._chosen._start_prefetch(layer_idx)  # noqa: SLF001
            return
        self.copies.copies(layer_idx, lambda: self._chosen._start_prefetch(layer_idx))  # noqa: SLF001

    def sync_prev_onload(self) -> None:
        """Let the current stream wait for the copies under way, because a graph is captured or replayed next."""
        self._chosen.sync_prev_onload()
        if self.copies is not None:
            self.copies.replays()

    def _watch(self) -> None:
        """Describe what vLLM's offloader moves, and record it from now on."""
        from vllm.model_executor.offloader import prefetch

        offloaders = self._chosen.module_offloaders
        if not offloaders:
            logger.warning("swtrace watches no copies: vLLM's prefetch offloader offloads no layer")
            write_outcome(self._vllm_config, {})
            return
        modules = [each.module for each in offloaders]
        start, _ = layer_range(self._vllm_config)
        places = {id(module): start + place for place, module in enumerate(self._modules)}
        rank = own_rank(self._settings, self._vllm_config)
        info = SeriesInfo(
            name=NAME,
            start_layer=start,
            stack_layers=len(self._modules),
            layers=tuple(places[id(module)] for module in modules),
            prefetch_step=self._chosen.prefetch_step,
            windows="static",
            window_count=self._chosen.prefetch_step,
            group_ranks=(rank,),
            rank_in_group=0,
            transport=H2D,
            rendezvous="receiver",
            clock="device",
            layer_bytes=sum(map(_bytes, offloaders)) // len(offloaders),
            owned_layers=0,
            kind=H2D,
            queue="stream",
            offload=Offload(
                group_size=self._chosen.group_size,
                num_in_group=self._chosen.num_in_group,
                buffer_bytes=self._chosen.buffer_pool.total_bytes,
                pinned=all(map(_pinned, offloaders)),
                params=tuple(sorted(self._chosen.offload_params)),
                slots_may_collide=not hasattr(prefetch, "_get_next_prefetch_index"),  # came with vllm#54975
            ),
        )
        recorder = process_recorder(propose_run_id(self._settings.run_id).run_id, rank, self._settings)
        self.copies = WatchedCopies(
            info,
            modules,
            [each._buffer_slot_idx for each in offloaders],  # noqa: SLF001
            TorchDevice(offloaders[0].device),
            self._chosen.copy_stream,
            recorder,
            every=self._settings.time_every,
        )
        write_outcome(self._vllm_config, {NAME: f"watched on rank {rank}"})
        logger.info(
            "swtrace watches vLLM's prefetch offloader: %d of %d layers, prefetch step %d",
            len(modules),
            len(self._modules),
            info.prefetch_step,
        )


def _bytes(offloader: Any) -> int:
    """Return what one copy of a module moves."""
    return sum(info.num_bytes for info in offloader.get_param_infos())


def _pinned(offloader: Any) -> bool:
    return all(each._cpu_storage.is_pinned() for each in offloader._param_offloaders.values())  # noqa: SLF001
