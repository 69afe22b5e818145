"""Checks, before the first broadcast, that all ranks of the group describe the same series.

Ranks that differ would hang in a collective or, worse, move bytes of one shape into another. So all ranks
exchange their descriptions, compare them, and raise the same error, which names the ranks and the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from swtrace.errors import DisagreementError, RegistrationError, RingCreateError
from swtrace.share import runs
from swtrace.trace.identity import UntracedRank
from swtrace.units import listed

if TYPE_CHECKING:
    from swtrace.series.transport import Transport


@dataclass(frozen=True, slots=True)
class SeriesDescription:
    """What all ranks must have in common. Fields are compared in this order."""

    name: str
    start_layer: int
    stack_layers: int
    shared_layers: tuple[int, ...]
    prefetch_step: int
    window_policy: str
    ownership_check: bool
    time_every: int | str
    transport: str
    group_ranks: tuple[int, ...]
    missing_layers: tuple[int, ...]
    tensors: str
    """The payload's layout as text: names, dtypes, shapes and strides."""
    loaded: tuple[str, ...]
    """By position, the digest of what was loaded into the layer; empty texts where that is unknown."""
    problem: str
    """Why this rank's layers cannot be in a series; empty if they can."""


@dataclass(frozen=True, slots=True)
class RunIdProposal:
    """The run id that a rank would use. A fixed one is already in use or was configured, and cannot change."""

    run_id: str
    fixed: bool


def agree(where: str, transport: Transport[Any], mine: SeriesDescription, proposal: RunIdProposal) -> str:
    """Compare all ranks' descriptions and agree on the run id; collective.

    Returns:
        The run id of all ranks.

    Raises:
        DisagreementError: ranks differ; the message says which ranks, and in what.
        RegistrationError: all ranks lack the same layers, or some rank's layers cannot be in a series.
    """
    answers = transport.gather((mine, proposal))
    descriptions: list[SeriesDescription] = [answer[0] for answer in answers]  # type: ignore[index]
    proposals: list[RunIdProposal] = [answer[1] for answer in answers]  # type: ignore[index]
    problem = next((description.problem for description in descriptions if description.problem), "")
    if problem:
        raise RegistrationError(problem)
    for field in fields(SeriesDescription):
        values = [getattr(description, field.name) for description in descriptions]
        if field.name == "loaded":
            what = "the weights that they loaded, so their checkpoints differ"
            require_equal_layers(where, mine.group_ranks, mine.shared_layers, what, values)
            continue
        if field.name == "shared_layers":
            values = [runs(layers) for layers in values]
        require_equal(where, mine.group_ranks, field.name.replace("_", " "), values)
    if mine.missing_layers:
        raise RegistrationError(f"{where}: {never_registered(mine.missing_layers)}")
    fixed = [proposal.run_id for proposal in proposals if proposal.fixed]
    require_equal(where, mine.group_ranks, "run id (set SWTRACE_RUN_ID to one value on all ranks)", fixed)
    return fixed[0] if fixed else proposals[0].run_id


@dataclass(frozen=True, slots=True)
class TracingOutcome:
    """What a rank reports to the others about its tracing, once it has tried to make its ring."""

    untraced: str = ""
    """Why it records nothing; empty if it records."""
    failed: bool = False
    """Whether it tried to record and could not."""
    strict: bool = False
    """Whether it treats such a failure of any rank as an error."""


def settle_tracing(where: str, ranks: Sequence[int], outcomes: Sequence[TracingOutcome]) -> tuple[UntracedRank, ...]:
    """Return the ranks that record nothing, given the outcomes of all ranks in group order.

    Raises:
        RingCreateError: some rank cannot record, and some rank is strict.
    """
    failed = [f"rank {rank}: {each.untraced}" for rank, each in zip(ranks, outcomes, strict=True) if each.failed]
    if failed and any(each.strict for each in outcomes):
        raise RingCreateError(
            f"{where}: SWTRACE_STRICT=1, but not every rank can be traced: {'; '.join(failed)}",
            "SWTRACE_DIR sets the folder of the rings, SWTRACE_RING_RECORDS their size",
        )
    return tuple(UntracedRank(rank, each.untraced) for rank, each in zip(ranks, outcomes, strict=True) if each.untraced)


def require_equal(where: str, ranks: Sequence[int], what: str, values: Sequence[object]) -> None:
    """Raise DisagreementError unless all ranks, in group order, have the same value."""
    holders: dict[str, list[int]] = {}
    for rank, value in zip(ranks, values, strict=False):
        holders.setdefault(repr(value) if not isinstance(value, str) else value, []).append(rank)
    if len(holders) > 1:
        sides = "; ".join(
            f"{listed('rank', who)} {'have' if len(who) > 1 else 'has'} {value}" for value, who in holders.items()
        )
        raise DisagreementError(f"{where}: the ranks disagree on {what}: {sides}")


def require_equal_layers(
    where: str, ranks: Sequence[int], layers: Sequence[int], what: str, digests: Sequence[Sequence[str]]
) -> None:
    """Raise DisagreementError unless all ranks, in group order, have the same digest of every layer."""
    for layer_idx, of_layer in zip(layers, zip(*digests, strict=True), strict=False):
        require_equal(f"{where}, layer {layer_idx}", ranks, what, of_layer)


def never_registered(layers: Sequence[int]) -> str:
    """Say which layers, at least one, were never registered."""
    return f"{listed('layer', layers)} {'was' if len(layers) == 1 else 'were'} never registered"
