"""Before the first broadcast: do all ranks of the group describe the same series?

Ranks that do not would hang in a collective, or worse, move bytes of one shape into another. So each
says what it is about to do, all compare, and all raise the same error, which names who differs in what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from swtrace.errors import DisagreementError, RegistrationError, RingCreateError
from swtrace.trace.identity import UntracedRank

if TYPE_CHECKING:
    from swtrace.series.transport import Transport


@dataclass(frozen=True, slots=True)
class SeriesDescription:
    """What all ranks must say alike. The order is the order of comparison."""

    name: str
    start_layer: int
    num_layers: int
    prefetch_step: int
    window_policy: str
    ownership_check: bool
    time_every: int | str
    transport: str
    group_ranks: tuple[int, ...]
    missing_layers: tuple[int, ...]
    tensors: str
    """The payload's layout, as people write it: names, dtypes, shapes and strides."""
    problem: str
    """What this rank's layers are that no series can have; empty on a rank that has nothing to say."""


@dataclass(frozen=True, slots=True)
class RunIdProposal:
    """The run id a rank would use. A fixed one (it already writes under it, or was told to) cannot give way."""

    run_id: str
    fixed: bool


def agree(where: str, transport: Transport, mine: SeriesDescription, proposal: RunIdProposal) -> str:
    """Compare all ranks' descriptions and settle the run id; collective.

    Returns:
        The run id of all ranks.

    Raises:
        DisagreementError: ranks differ; the message says which, and in what.
        RegistrationError: all ranks alike have not registered all layers, or any rank has a problem with its own.
    """
    answers = transport.gather((mine, proposal))
    descriptions: list[SeriesDescription] = [answer[0] for answer in answers]  # type: ignore[index]
    proposals: list[RunIdProposal] = [answer[1] for answer in answers]  # type: ignore[index]
    problem = next((description.problem for description in descriptions if description.problem), "")
    if problem:
        raise RegistrationError(problem)
    for field in fields(SeriesDescription):
        values = [getattr(description, field.name) for description in descriptions]
        require_equal(where, mine.group_ranks, field.name.replace("_", " "), values)
    if mine.missing_layers:
        raise RegistrationError(f"{where}: {never_registered(mine.missing_layers)}")
    fixed = [proposal.run_id for proposal in proposals if proposal.fixed]
    require_equal(where, mine.group_ranks, "run id (set SWTRACE_RUN_ID to one value on all ranks)", fixed)
    return fixed[0] if fixed else proposals[0].run_id


@dataclass(frozen=True, slots=True)
class TracingOutcome:
    """What a rank tells the others about its records of a series, once it has tried to make its ring."""

    untraced: str = ""
    """Why it has none; empty where it records."""
    failed: bool = False
    """It wanted some."""
    strict: bool = False
    """It takes that of any rank for an error."""


def settle_tracing(where: str, ranks: Sequence[int], told: Sequence[TracingOutcome]) -> tuple[UntracedRank, ...]:
    """Return the ranks that record nothing, from what all ranks tell, in group order.

    Raises:
        RingCreateError: some rank cannot record, and some rank is strict.
    """
    failed = [f"rank {rank}: {each.untraced}" for rank, each in zip(ranks, told, strict=True) if each.failed]
    if failed and any(each.strict for each in told):
        raise RingCreateError(
            f"{where}: SWTRACE_STRICT=1, but not every rank can be traced: {'; '.join(failed)}",
            "SWTRACE_DIR sets the folder of the rings, SWTRACE_RING_RECORDS their size",
        )
    return tuple(UntracedRank(rank, each.untraced) for rank, each in zip(ranks, told, strict=True) if each.untraced)


def require_equal(where: str, ranks: Sequence[int], what: str, values: Sequence[object]) -> None:
    """Raise DisagreementError unless all ranks, in group order, have the same value."""
    holders: dict[str, list[int]] = {}
    for rank, value in zip(ranks, values, strict=False):
        holders.setdefault(repr(value) if not isinstance(value, str) else value, []).append(rank)
    if len(holders) > 1:
        sides = "; ".join(
            f"rank{'s' if len(who) > 1 else ''} {_listed(who)} {'have' if len(who) > 1 else 'has'} {value}"
            for value, who in holders.items()
        )
        raise DisagreementError(f"{where}: the ranks disagree on {what}: {sides}")


def never_registered(layers: Sequence[int]) -> str:
    """Say which layers, at least one, were never registered."""
    if len(layers) == 1:
        return f"layer {layers[0]} was never registered"
    return f"layers {_listed(layers)} were never registered"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
