"""The arithmetic of the timeline: a rank's step as stretches of time, and stretches as cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import StepFacts
from swtrace.trace.schema import TransferFlag
from swtrace_tui.palette import Span

Ns = npt.NDArray[np.int64]
Stretches = dict[Span, tuple[Ns, Ns]]
"""Begins and ends, by kind."""

_VISIBLE = 0.3
"""A prominent kind wins a cell from this share on, even if another kind covers more."""
_PROMINENT = {Span.SENT, Span.HIDDEN, Span.EXPOSED, Span.STALL}
"""Kinds that overlap others: bytes that move while further broadcasts queue, stalls within compute."""


def compute_lane(step: StepFacts, rank: int) -> Stretches:
    """Return what a rank did: compute, with stalls and wakes on top."""
    if not step.ended[rank]:
        return {}
    receiver = step.receiver[rank]
    begin, end, ready = step.wait_begin_ns[rank], step.wait_end_ns[rank], step.ready_ns[rank]
    held = receiver & (step.stall_ns[rank] > 0)
    woke = receiver & (step.wake_ns[rank] > 0)
    return {
        Span.COMPUTE: (step.begin_ns[rank : rank + 1], step.end_ns[rank : rank + 1]),
        Span.WAKE: (np.maximum(ready, begin)[woke], end[woke]),
        Span.STALL: (begin[held], ready[held]),
    }


def channel_lane(step: StepFacts, rank: int) -> Stretches:
    """Return what moved into a rank's windows, hidden up to its wait and exposed from there, and what the rank sent.

    In a pull series, nobody sends: a rank copies what it needs.

    A delivery moves for the ledger's transfer time, up to its ready; before that it was queued. Where the peers'
    records are missing, all the time from issued to ready counts as transfer.
    """
    broadcast = step.present & ((step.flags & (TransferFlag.PREFILLED | TransferFlag.OPEN)) == 0)
    receiver = step.receiver[rank]
    began = np.where(step.attributed, np.maximum(step.issued_ns, step.ready_ns - step.transfer_ns), step.issued_ns)
    began = np.minimum(began, step.ready_ns)
    moved, ready, issued = began[rank], step.ready_ns[rank], step.issued_ns[rank]
    wait = np.clip(step.wait_begin_ns[rank], moved, ready)
    latest = np.where(step.receiver, step.ready_ns, 0).max(axis=0)
    sent = ~receiver & broadcast.any(axis=0) & (step.source == rank) & (latest > 0) & (step.of_rank is None)
    first = np.where(step.attributed, began, np.iinfo(np.int64).max).min(axis=0)
    first = np.minimum(first, latest)
    return {
        Span.QUEUED: (issued[receiver], moved[receiver]),
        Span.SENT: (first[sent], latest[sent]),
        Span.HIDDEN: (moved[receiver], wait[receiver]),
        Span.EXPOSED: (wait[receiver], ready[receiver]),
    }


def moved(stretches: Stretches, by_ns: int) -> Stretches:
    """Return stretches that begin and end later."""
    return {kind: (begins + by_ns, ends + by_ns) for kind, (begins, ends) in stretches.items()}


def rasterised(lanes: Sequence[Stretches], begin: int, end: int, cells: int) -> list[Span]:
    """Return the kind to show for each of ``cells`` equal parts of ``[begin, end)``.

    The kind that covers most of a cell wins. A stall or a transfer already wins with 30 % of the cell, and an exposed
    transfer wins over a hidden one, so that rounding never removes them.
    """
    edges = np.linspace(begin, end, cells + 1)
    size = max(1e-9, (end - begin) / cells)
    shown = np.zeros(cells, np.int64)
    best = np.full(cells, 1e-6)
    for kind in (Span.COMPUTE, Span.QUEUED, Span.SENT, Span.HIDDEN, Span.WAKE, Span.EXPOSED, Span.STALL):
        share = np.zeros(cells)
        for lane in lanes:
            if kind in lane:
                share += covered(*lane[kind], edges) / size
        if kind in _PROMINENT:
            wins = share >= np.minimum(best, _VISIBLE)
        elif kind is Span.WAKE:
            wins = share >= 0.5  # noqa: PLR2004 - most of the cell; compute covers all of it
        else:
            wins = share > best
        wins &= share > 1e-3  # noqa: PLR2004 - rounding errors
        shown[wins] = kind
        best = np.where(wins, np.maximum(best, share), best)
    return [Span(each) for each in shown.tolist()]


def covered(begins: Ns, ends: Ns, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how much of each interval between edges the stretches cover; overlaps count twice."""
    if not len(begins):
        return np.zeros(len(edges) - 1)
    total = _before(begins, edges) - _before(ends, edges)
    return np.diff(total)


def _before(instants: Ns, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ``sum(max(0, edge - instant))`` at each edge."""
    ordered = np.sort(instants).astype(np.float64)
    origin = ordered[0]
    count = np.searchsorted(ordered, edges, side="right")
    sums = np.concatenate(([0.0], np.cumsum(ordered - origin)))
    return np.asarray(count * (edges - origin) - sums[count], np.float64)
