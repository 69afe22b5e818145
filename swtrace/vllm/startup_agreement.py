"""All ranks of the world share a linear, or none does.

A rank may see a reason against it that the others do not: a pipeline stage with too few layers, another
environment. Were the others to go on, they would wait for it in a collective that it never joins. So
before any series is made each rank writes its decisions into the world's store and reads everybody
else's. That wait has an end, and what it says names the ranks that did not answer.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from swtrace.errors import DisagreementError
from swtrace.vllm.groups import Choice, Refused
from swtrace.vllm.presence import world_store

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALL = "*"
"""In the place of a path: a rank that takes part in nothing."""

Decisions = dict[str, Choice | Refused]
"""By the path of the linear."""


class _Process:
    """How many models this process has decided about: each has keys of its own in the store."""

    models = 0


def agree(mine: Mapping[str, Choice | Refused], timeout_s: float) -> Decisions:
    """Return these decisions with everybody's refusals among them.

    Args:
        mine: what this rank would do.
        timeout_s: how long the other ranks may take to build up to here.

    Raises:
        DisagreementError: a rank did not answer.
    """
    import torch.distributed as dist

    rank, world = dist.get_rank(), range(dist.get_world_size())
    store, keys = _state(mine)
    try:
        store.wait(keys, timedelta(seconds=timeout_s))
    except RuntimeError as error:
        silent = ", ".join(str(other) for other in world if not store.check([keys[other]]))
        raise DisagreementError(
            f"rank {rank}: no word from rank {silent} on what to share within {timeout_s:g} s; "
            "SWTRACE=1 must be set for all ranks alike (SWTRACE_TIMEOUT sets how long to wait)"
        ) from error
    answers: list[dict[str, dict[str, str]]] = [json.loads(store.get(key)) for key in keys]
    return {path: _joint(path, decision, answers) for path, decision in mine.items()}


def decline(reason: str) -> None:
    """Let the other ranks know that this one shares nothing of the model that is built next; waits for nobody."""
    import torch.distributed as dist

    if dist.is_initialized():
        _state({_ALL: Refused(reason)})


def _state(mine: Mapping[str, Choice | Refused]) -> tuple[Any, list[str]]:
    """Write this rank's decisions about a model into the world's store; return it, and all ranks' keys in it."""
    import torch.distributed as dist

    store = world_store()
    keys = [f"swtrace/decisions/{_Process.models}/{other}" for other in range(dist.get_world_size())]
    _Process.models += 1
    store.set(keys[dist.get_rank()], json.dumps({path: _stated(decision) for path, decision in mine.items()}))
    return store, keys


def _stated(decision: Choice | Refused) -> dict[str, str]:
    return {"group": decision.name} if isinstance(decision, Choice) else {"refused": str(decision)}


def _joint(path: str, mine: Choice | Refused, answers: list[dict[str, dict[str, str]]]) -> Choice | Refused:
    if isinstance(mine, Refused):
        return mine
    for rank, answer in enumerate(answers):
        if _ALL in answer:
            return Refused(f"rank {rank} shares nothing: {answer[_ALL]['refused']}")
        if path not in answer:
            return Refused(f"rank {rank} was not asked to share it; set SWTRACE_SERIES alike on all ranks")
        theirs = answer[path]
        if "refused" in theirs:
            return Refused(f"rank {rank} refuses: {theirs['refused']}")
        if theirs["group"] != mine.name:
            return Refused(f"rank {rank} would share it over another group, {theirs['group']} instead of {mine.name}")
    return mine
