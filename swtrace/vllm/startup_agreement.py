"""Agreement of all ranks of the world on what to share: all of them share a linear, or none does.

One rank may have a reason to refuse that the others do not see, such as a pipeline stage with too few layers or
a different environment. If the others went ahead, they would wait for it in a collective that it never joins.
So each rank writes its decisions into the world's store before any series is made, and reads those of all others.
The wait for them has a time limit, and its error names the ranks that did not answer.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from swtrace.errors import DisagreementError
from swtrace.units import listed
from swtrace.vllm.groups import Choice, Refused
from swtrace.vllm.presence import world_store

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALL = "*"
"""Stands in for a path if a rank shares nothing at all."""

Decisions = dict[str, Choice | Refused]
"""By path of the linear."""


class _Process:
    """How many models this process has decided about. Each has its own keys in the store."""

    models = 0


def agree(mine: Mapping[str, Choice | Refused], timeout_s: float) -> Decisions:
    """Return this rank's decisions, merged with the refusals of all ranks.

    Args:
        mine: what this rank would do.
        timeout_s: how long the other ranks may take to get here.

    Raises:
        DisagreementError: a rank did not answer.
    """
    import torch.distributed as dist

    rank, world = dist.get_rank(), range(dist.get_world_size())
    store, keys = _publish_decisions(mine)
    try:
        store.wait(keys, timedelta(seconds=timeout_s))
    except RuntimeError as error:
        silent = [other for other in world if not store.check([keys[other]])]
        raise DisagreementError(
            f"rank {rank}: no answer from {listed('rank', silent)} on what to share "
            f"within {timeout_s:g} s; set SWTRACE=1 on all ranks, or raise SWTRACE_TIMEOUT"
        ) from error
    answers: list[dict[str, dict[str, str]]] = [json.loads(store.get(key)) for key in keys]
    return {path: _joint(path, decision, answers) for path, decision in mine.items()}


def decline(reason: str) -> None:
    """Record for the other ranks that this one shares nothing of the next model. Does not wait for any rank."""
    import torch.distributed as dist

    if dist.is_initialized():
        _publish_decisions({_ALL: Refused(reason)})


def _publish_decisions(mine: Mapping[str, Choice | Refused]) -> tuple[Any, list[str]]:
    """Write this rank's decisions about a model into the world's store. Return the store and the keys of all ranks."""
    import torch.distributed as dist

    store = world_store()
    keys = [f"swtrace/decisions/{_Process.models}/{other}" for other in range(dist.get_world_size())]
    _Process.models += 1
    store.set(keys[dist.get_rank()], json.dumps({path: _encoded(decision) for path, decision in mine.items()}))
    return store, keys


def _encoded(decision: Choice | Refused) -> dict[str, str]:
    return {"group": decision.name} if isinstance(decision, Choice) else {"refused": str(decision)}


def _joint(path: str, mine: Choice | Refused, answers: list[dict[str, dict[str, str]]]) -> Choice | Refused:
    if isinstance(mine, Refused):
        return mine
    for rank, answer in enumerate(answers):
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
