"""Records of this worker's identity and of what it does not share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from swtrace.errors import RefusedError, RingCreateError, TraceError
from swtrace.series.recording import describe_model, process_recorder, propose_run_id
from swtrace.trace.identity import SeriesInfo
from swtrace.vllm.configuration import write_outcome
from swtrace.vllm.replicas import own_replica

if TYPE_CHECKING:
    from collections.abc import Iterable

    from swtrace.settings import Settings

logger = logging.getLogger("vllm.swtrace")

_REASON_CHARACTERS = 500


def record_model(vllm_config: Any) -> None:
    """Record which model this process runs. Call before its ring is made."""
    served = vllm_config.model_config.served_model_name
    describe_model(str(served[0] if isinstance(served, list) else served or vllm_config.model_config.model))


def run_ranks(torch_ranks: Iterable[int], settings: Settings, vllm_config: Any) -> tuple[int, ...]:
    """Return the numbers that these ranks of the torch world have in the run.

    They are usually the same. But each replica is its own torch world, with its own rank 0. In their common run,
    the ranks of the replicas are numbered consecutively.
    """
    first = own_replica(settings, vllm_config).number * dist.get_world_size()
    return tuple(first + rank for rank in torch_ranks)


def own_rank(settings: Settings, vllm_config: Any) -> int:
    """Return the number that this rank has in the run."""
    (rank,) = run_ranks((dist.get_rank(),), settings, vllm_config)
    return rank


def share_nothing(reason: str, settings: Settings, vllm_config: Any) -> None:
    """Report to the log, the config and the ring that none of the requested linears is shared, and why.

    Raises:
        RefusedError: ``SWTRACE_STRICT=1``.
    """
    if settings.strict:
        raise RefusedError(f"nothing is {'observed' if settings.share.observes else 'shared'}: {reason}")
    logger.warning("swtrace %s nothing: %s", "observes" if settings.share.observes else "shares", reason)
    write_outcome(vllm_config, {})
    record_model(vllm_config)
    for path in settings.series:
        record_refused(path, reason, settings, vllm_config)


def record_refused(
    path: str, reason: str, settings: Settings, vllm_config: Any, *, start_layer: int = 0, stack_layers: int = 0
) -> None:
    """Record in this rank's ring that ``path`` is not shared, and why.

    Does not wait for the other ranks, which may share, refuse or never ask. If the ring cannot be made, the log
    already says so.
    """
    if not settings.trace:
        return
    info = SeriesInfo(
        name=path,
        start_layer=start_layer,
        stack_layers=stack_layers,
        layers=(),
        prefetch_step=0,
        windows="",
        window_count=0,
        group_ranks=(),
        rank_in_group=0,
        transport="",
        rendezvous="",
        clock="",
        layer_bytes=0,
        owned_layers=0,
        refused=reason[:_REASON_CHARACTERS],
    )
    try:
        rank = own_rank(settings, vllm_config)
        process_recorder(propose_run_id(settings.run_id).run_id, rank, settings).add_series(info)
    except RingCreateError:
        return
    except TraceError as problem:
        logger.warning("swtrace cannot record that %s is not shared: %s", path, problem)
