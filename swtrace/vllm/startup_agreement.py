"""Agreement of all ranks of the world on what to share: all of them share a linear, or none does.

One rank may have a reason to refuse that the others do not see, such as a pipeline stage with too few layers or
a different environment. If the others went ahead, they would wait for it in a collective that it never joins.
So each rank writes its decisions into the world's store before any series is made, and reads those of all others.
The wait for them has a time limit, and its error names the ranks that did not answer.

Replicas are separate worlds. So the ranks with the same position in each replica then do the same in a share folder,
where a replica that restarts finds what was decided.
"""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from swtrace.errors import DisagreementError, SettingsError, TransportError
from swtrace.series.presence import world_store
from swtrace.series.recording import propose_run_id
from swtrace.trace.share_folder import ShareFolder, folder_name
from swtrace.units import listed
from swtrace.vllm.groups import REPLICAS, Choice, Refused
from swtrace.vllm.replicas import Replica, own_replica

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swtrace.settings import Settings

logger = logging.getLogger("vllm.swtrace")

_ALL = "*"
"""Stands in for a path if a rank shares nothing at all."""

_SAYING_S = 1.0
"""How long a replica that shares nothing takes to say so."""

Decisions = dict[str, Choice | Refused]
"""By path of the linear."""

_Answer = dict[str, dict[str, str]]
"""The decisions of one rank, as they are exchanged."""


class _Process:
    """How many models this process has decided about. Each has its own keys in the store."""

    models = 0
    folder: ShareFolder | None = None
    """In which it agreed with the other replicas, until it ends."""


def agree(mine: Mapping[str, Choice | Refused], settings: Settings, vllm_config: Any) -> Decisions:
    """Return this rank's decisions, merged with the refusals of all ranks and replicas.

    Args:
        mine: what this rank would do.
        settings: among them, how long the other ranks may take to get here.
        vllm_config: of the engine.

    Raises:
        DisagreementError: a rank did not answer.
    """
    store, keys = _publish_decisions(mine)
    try:
        store.wait(keys, timedelta(seconds=settings.timeout_s))
    except RuntimeError as error:
        silent = [other for other in range(dist.get_world_size()) if not store.check([keys[other]])]
        raise DisagreementError(
            f"rank {dist.get_rank()}: no answer from {listed('rank', silent)} on what to share "
            f"within {settings.timeout_s:g} s; set SWTRACE=1 on all ranks, or raise SWTRACE_TIMEOUT"
        ) from error
    answers: dict[int, _Answer] = {rank: json.loads(store.get(key)) for rank, key in enumerate(keys)}
    decisions = {path: _joint(path, decision, answers) for path, decision in mine.items()}
    return _agree_with_replicas(decisions, settings, vllm_config)


def decline(reason: str, settings: Settings, vllm_config: Any) -> None:
    """Record for the other ranks that this one shares nothing of the next model. Does not wait for any rank."""
    if dist.is_initialized():
        _publish_decisions({_ALL: Refused(reason)})
        _agree_with_replicas({_ALL: Refused(reason)}, settings, vllm_config)


def leave() -> None:
    """Leave the folder in which the replicas agreed. One that restarts later finds what the remaining ones said."""
    if _Process.folder is not None:
        _Process.folder.leave()
        _Process.folder = None


def _agree_with_replicas(mine: Decisions, settings: Settings, vllm_config: Any) -> Decisions:
    """Return decisions that are those of this replica, merged with the refusals of the others.

    A replica that would share nothing with the others says so, but does not wait for them.
    """
    replica = own_replica(settings, vllm_config)
    if replica.count == 1:
        return mine
    ranks = replica.group().ranks
    waits = any(_pulls(decision) for decision in mine.values())
    try:
        said = _exchange(replica, ranks, mine, settings, waits=waits)
    except (TransportError, SettingsError, OSError) as error:
        if not waits:
            return mine
        raise DisagreementError(
            f"rank {ranks[replica.number]}: the replicas could not agree on what to share: {error}"
        ) from error
    answers: dict[int, _Answer] = dict(zip(ranks, said, strict=True))
    return {path: _joint(path, decision, answers) if _pulls(decision) else decision for path, decision in mine.items()}


def _exchange(
    replica: Replica, ranks: tuple[int, ...], mine: Decisions, settings: Settings, *, waits: bool
) -> list[Any]:
    """Return what each of these ranks, one per replica, would do."""
    leave()
    run_id = propose_run_id(settings.run_id).run_id
    path = settings.ring_directory() / folder_name(run_id, _ALL, ranks)
    folder = ShareFolder(path, ranks, replica.number, settings.timeout_s if waits else _SAYING_S)
    folder.join()
    _Process.folder = folder
    if waits:
        others = [rank for rank in ranks if rank != ranks[replica.number]]
        logger.info("swtrace: run %s waits for %s to start", run_id, listed("rank", others))
    return folder.exchange({path: _encoded(decision) for path, decision in mine.items()})


def _pulls(decision: Choice | Refused) -> bool:
    return isinstance(decision, Choice) and decision.name == REPLICAS


def _publish_decisions(mine: Mapping[str, Choice | Refused]) -> tuple[Any, list[str]]:
    """Write this rank's decisions about a model into the world's store. Return the store and the keys of all ranks."""
    store = world_store()
    keys = [f"swtrace/decisions/{_Process.models}/{other}" for other in range(dist.get_world_size())]
    _Process.models += 1
    store.set(keys[dist.get_rank()], json.dumps({path: _encoded(decision) for path, decision in mine.items()}))
    return store, keys


def _encoded(decision: Choice | Refused) -> dict[str, str]:
    return {"group": decision.name} if isinstance(decision, Choice) else {"refused": str(decision)}


def _joint(path: str, mine: Choice | Refused, answers: dict[int, _Answer]) -> Choice | Refused:
    if isinstance(mine, Refused):
        return mine
    for rank, answer in answers.items():
        if _ALL in answer:
            return Refused(f"rank {rank} shares nothing: {answer[_ALL]['refused']}")
        if path not in answer:
            return Refused(f"rank {rank} was not asked to share it; set the same SWTRACE_SERIES on all ranks")
        theirs = answer[path]
        if "refused" in theirs:
            return Refused(f"rank {rank} refuses: {theirs['refused']}")
        if theirs["group"] != mine.name:
            return Refused(f"rank {rank} would share it over another group, {theirs['group']} instead of {mine.name}")
    return mine
