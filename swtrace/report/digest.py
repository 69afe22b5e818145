"""Data of a report, gathered from a recording's steps in one pass with bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CAUSES, SeriesKey, StepFacts
from swtrace.ledger.totals import DURATION_BOUNDS_NS
from swtrace.recording.blocks import BlockMeans

SLOWEST = 3
_Int = npt.NDArray[np.int64]


@dataclass(slots=True)
class OverTime:
    """Steps that follow each other: those of a series, or of one rank of a pull series."""

    means: BlockMeans
    """``[quantity, rank]`` over time, averaged over blocks of steps. Quantities: step time, stall, step number."""
    first: int
    """Number of the first step."""
    last: int = 0
    """Number of the last step."""


@dataclass(slots=True)
class SeriesDigest:
    """One series of one run."""

    first: StepFacts
    """Any of its steps, as the source of names and numbers."""
    causes: _Int
    """``[cause, rank]``: stall, summed."""
    stall: _Int
    """``[rank, position]``: stall, summed."""
    waits: _Int
    """``[rank, position]``: receivers' waits, counted."""
    slack: _Int
    """``[rank, bucket]``: on-time waits by slack, in buckets of :data:`DURATION_BOUNDS_NS`."""
    held: _Int
    """``[rank, bucket]``: other waits by stall, in the same buckets."""
    ended: _Int
    """``[rank]``: how many steps the sums cover. A rank may have left some steps untimed."""
    time: dict[int | None, OverTime] = field(default_factory=dict)
    """By the group rank that runs the steps, in a pull series; the only key is None otherwise."""
    steps: int = 0
    slowest: list[tuple[int, int, StepFacts]] = field(default_factory=list)
    """A heap of the longest steps."""


def digest(steps: Iterable[StepFacts]) -> dict[SeriesKey, SeriesDigest]:
    """Gather the data of a report by series. Partial steps are left out; the caller leaves out aborted ones."""
    found: dict[SeriesKey, SeriesDigest] = {}
    for step in steps:
        into = found.get(step.series)
        if into is None:
            into = found[step.series] = _empty(step)
        if not step.partial:
            _add(into, step)
    return found


def _empty(step: StepFacts) -> SeriesDigest:
    ranks, layers = step.present.shape
    buckets = len(DURATION_BOUNDS_NS) + 1
    return SeriesDigest(
        first=step,
        causes=np.zeros((len(CAUSES), ranks), np.int64),
        stall=np.zeros((ranks, layers), np.int64),
        waits=np.zeros((ranks, layers), np.int64),
        slack=np.zeros((ranks, buckets), np.int64),
        held=np.zeros((ranks, buckets), np.int64),
        ended=np.zeros(ranks, np.int64),
    )


def _add(into: SeriesDigest, step: StepFacts) -> None:
    into.steps += 1
    numbers = np.full(len(step.ranks), step.step)
    time = into.time.setdefault(step.of_rank, OverTime(BlockMeans((3, len(step.ranks))), step.step))
    time.last = step.step
    time.means.add(np.stack((step.duration_ns, step.stall_ns.sum(axis=1), numbers)))
    into.causes += step.cause_ns.sum(axis=2)
    into.stall += step.stall_ns
    into.waits += step.receiver
    into.ended += step.ended
    for rank in range(len(step.ranks)):
        mine = step.receiver[rank]
        early = mine & step.on_time[rank]
        for table, values in (
            (into.slack, step.slack_ns[rank][early]),
            (into.held, step.stall_ns[rank][mine & ~early]),
        ):
            buckets = np.searchsorted(DURATION_BOUNDS_NS, values)
            table[rank] += np.bincount(buckets, minlength=table.shape[1])
    if step.ended[step.running].all():
        entry = (int(step.duration_ns.max()), into.steps, step)
        if len(into.slowest) < SLOWEST:
            heapq.heappush(into.slowest, entry)
        else:
            heapq.heappushpop(into.slowest, entry)
