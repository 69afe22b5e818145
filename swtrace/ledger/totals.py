"""Counters that only grow: one :class:`TotalsCounter` for the ranks of one series.

They count every record once, even if the peers' records are missing. Only the split by cause waits until the step is
finished. The stall of a record that comes later has no cause. A rank's counters begin with a whole step, so that they
agree with each other: the causes sum to the stall.

An untimed step has no TRANSFER records. Their counts follow from its STEP record: every step broadcasts every layer,
except the first ``k`` layers of step 0, which were filled before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CAUSES, Cause, Distribution, Outcome, Totals
from swtrace.ledger.intake import CELL, Ranked
from swtrace.trace.records import STEP, Records, observed
from swtrace.trace.schema import STEP_FIELDS, Observed, Phase, StepFlag, TransferFlag, Untimed

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

_US, _MS, _S = 1_000, 1_000_000, 1_000_000_000

DURATION_BOUNDS_NS: tuple[int, ...] = (
    *(5 * _US, 10 * _US, 20 * _US, 50 * _US, 100 * _US, 200 * _US, 500 * _US),
    *(_MS, 2 * _MS, 5 * _MS, 10 * _MS, 20 * _MS, 50 * _MS, 100 * _MS, 200 * _MS, 500 * _MS),
    *(_S, 2 * _S, 5 * _S, 10 * _S),
)
"""Bounds of stall, slack and broadcast durations. The default epsilon is one of them."""

STEP_BOUNDS_NS: tuple[int, ...] = (
    *(_MS, 2 * _MS, 5 * _MS, 10 * _MS, 20 * _MS, 50 * _MS, 100 * _MS, 200 * _MS, 500 * _MS),
    *(_S, 2 * _S, 5 * _S, 10 * _S, 30 * _S, 60 * _S),
)


_REASONS = 256
"""Number of possible reasons for an untimed step, known or not."""


class _Histograms:
    """Counts of integers by bucket, one histogram for each row.

    Args:
        edges: Ascending. A value counts for the first edge that is not below it, else for the bucket above the last.
        rows: Number of histograms.
    """

    def __init__(self, edges: Iterable[int], rows: int) -> None:
        self._edges = np.array(sorted(set(edges)), np.int64)
        self._counts = np.zeros((rows, len(self._edges) + 1), np.int64)

    def add(self, row: _Int, values: _Int) -> None:
        """Count values, except those of row -1."""
        rows, buckets = self._counts.shape
        at = (row + 1) * buckets + np.searchsorted(self._edges, values, side="left")
        self._counts += np.bincount(at, minlength=(rows + 1) * buckets).reshape(rows + 1, buckets)[1:]

    def forget(self, rows: slice) -> None:
        """Reset some rows to zero."""
        self._counts[rows] = 0

    def at_most(self, edges: _Int) -> _Int:
        """Return how many values are at most each given edge, and the number of all values last, ``[row, edge]``."""
        reached = self._counts.cumsum(axis=1)
        return np.concatenate((reached[:, self._edges.searchsorted(edges)], reached[:, -1:]), axis=1)


def _distributions(bounds_ns: tuple[int, ...], at_most: _Int, sums_ns: _Int) -> list[Distribution]:
    """Return a histogram per row, from the counts of values at most each bound and of all values, ``[row, bound]``."""
    counts = np.diff(at_most, axis=1, prepend=0).tolist()
    return [Distribution(bounds_ns, tuple(row), sum_ns) for row, sum_ns in zip(counts, sums_ns.tolist(), strict=True)]


class TotalsCounter:
    """Counters of the ranks of one series.

    Args:
        ranks: Size of the group.
        epsilon_ns: A wait is on time if its stall is below this.
        source: ``[position]``: group rank that stores the layer.
        prefetch_step: k.
        sends: Whether a source sends its layers. The source of a pull series does nothing, and its records of its own
            layers are about no transfer.
        receives: Whether the other ranks receive them. In an observed series, each rank has all layers.
    """

    def __init__(
        self,
        *,
        ranks: int,
        epsilon_ns: int,
        source: _Int,
        prefetch_step: int,
        sends: bool = True,
        receives: bool = True,
    ) -> None:
        self._ranks, self._epsilon_ns, self._sends = ranks, epsilon_ns, sends
        self._sent = _SENT & sends
        """Which classes of transfers are sent."""
        self._layers = len(source)
        self._owned = np.bincount(source, minlength=ranks) if receives else np.full(ranks, len(source))
        """``[rank]``: broadcasts per step whose source the rank is."""
        self._prefilled = min(prefetch_step, self._layers)
        self._owned_prefilled = np.bincount(source[:prefetch_step], minlength=ranks)
        """``[rank]``: how many of these step 0 does not have."""
        self._begin = np.zeros(ranks, np.int64)
        """``[rank]``: the first step that is counted."""
        self._transfers = np.zeros((ranks, _CLASSES), np.int64)
        """Transfers by class. Most counts are sums over some classes."""
        self._ready_unobserved = np.zeros(ranks, np.int64)
        self._cause_ns = np.zeros((len(CAUSES), ranks), np.int64)
        self._steps = np.zeros(ranks, np.int64)
        self._aborted = np.zeros(ranks, np.int64)
        self._unwaited_steps = np.zeros(ranks, np.int64)
        self._untimed_steps = np.zeros((ranks, _REASONS), np.int64)
        self._untimed_waits = np.zeros(ranks, np.int64)
        self._untimed_unwaited = np.zeros(ranks, np.int64)
        self._untimed_sent = np.zeros(ranks, np.int64)
        self._untimed_received = np.zeros(ranks, np.int64)
        self._late = _Histograms((epsilon_ns - 1, *_BOUNDS, *(-_BOUNDS - 1)), ranks)
        """Ready after wait begin, of receivers' waits: stall where positive, slack where negative."""
        self._stall_ns = np.zeros(ranks, np.int64)
        self._slack_ns = np.zeros(ranks, np.int64)
        self._duration = _Histograms(DURATION_BOUNDS_NS, 2 * ranks)
        """Issued to ready, for each rank: broadcasts sent, then received."""
        self._duration_ns = np.zeros((ranks, 2), np.int64)
        self._step_duration = _Histograms(STEP_BOUNDS_NS, len(Phase) * ranks)
        """By phase, then by rank."""
        self._step_ns = np.zeros((len(Phase), ranks), np.int64)
        self._last_step = np.zeros(ranks, STEP)
        """The newest STEP record of each rank."""

    def forget(self, rank: int) -> None:
        """Reset a rank to zero."""
        for counts in (
            *(self._begin, self._transfers, self._ready_unobserved, self._steps, self._aborted, self._unwaited_steps),
            *(self._untimed_steps, self._untimed_waits, self._untimed_unwaited),
            *(self._untimed_sent, self._untimed_received, self._stall_ns, self._slack_ns, self._duration_ns),
        ):
            counts[rank] = 0
        self._cause_ns[:, rank] = self._step_ns[:, rank] = 0
        self._last_step[rank] = 0
        self._late.forget(slice(rank, rank + 1))
        self._duration.forget(slice(2 * rank, 2 * rank + 2))
        self._step_duration.forget(slice(rank, None, self._ranks))

    def begin_after(self, step: _Int, rank: _Int) -> None:
        """Leave these steps of these group ranks, and all earlier ones, out of all counts."""
        np.maximum.at(self._begin, rank, step + 1)

    def counts(self, step: int) -> bool:
        """Return whether a step is counted for all ranks."""
        return step >= int(self._begin.max())

    def add(self, ranked: Ranked) -> None:
        """Count TRANSFER and STEP records."""
        is_step = ranked.place == self._layers
        steps, rank = ranked.records.view(CELL)[is_step], ranked.group_rank[is_step]
        self._last_step.view(CELL)[rank] = steps  # keeps the last one of each rank
        counted = ranked.step >= self._begin[ranked.group_rank]
        if not counted.all():
            steps, rank = steps[counted[is_step]], rank[counted[is_step]]
            ranked, is_step = ranked.take(counted), is_step[counted]
        if len(ranked):
            self._add_transfers(ranked, is_step)
            self._add_steps(steps.view(STEP), rank)

    def _add_transfers(self, ranked: Ranked, is_step: _Bool) -> None:
        """Count the TRANSFER records. Durations are summed rank by rank, because records are grouped by rank."""
        records, rank = ranked.records, ranked.group_rank
        starts = ranked.starts
        its = rank[starts]

        def sum_up(into: _Int, values: _Int) -> None:
            np.add.at(into, its, np.add.reduceat(values, starts))

        kind = _CLASS[records["flags"]]
        kind[is_step] = _NO_TRANSFER
        seen = np.bincount(rank * (_CLASSES + 1) + kind, minlength=self._ranks * (_CLASSES + 1))
        self._transfers += seen.reshape(self._ranks, -1)[:, :_CLASSES]
        ready = records["ready_ns"]
        receiver = _RECEIVER[kind]
        late = np.where(receiver, ready - records["wait_begin_ns"], 0)
        self._late.add(np.where(receiver, rank, -1), late)
        sum_up(self._stall_ns, np.maximum(0, late))
        sum_up(self._slack_ns, np.maximum(0, -late))
        bounds = receiver & (observed(records) == Observed.UPPER_BOUND)
        if bounds.any():
            self._count(self._ready_unobserved, rank[bounds])
        duration = np.maximum(0, ready - records["issued_ns"])
        known = ready > 0
        sent, received = self._sent[kind] & known, _RECEIVED[kind] & known
        self._duration.add(np.where(sent | received, 2 * rank + received, -1), duration)
        sum_up(self._duration_ns[:, 0], duration * sent)
        sum_up(self._duration_ns[:, 1], duration * received)

    def _add_steps(self, records: Records, rank: _Int) -> None:
        if not len(records):
            return
        self._count(self._steps, rank)
        self._count(self._aborted, rank[(records["flags"] & StepFlag.ABORTED) != 0])
        self._count(self._unwaited_steps, rank[records["waits"] == 0])
        untimed = records["untimed"] != Untimed.TIMED
        if untimed.any():
            self._add_untimed(records[untimed], rank[untimed])
            records, rank = records[~untimed], rank[~untimed]
        duration = np.maximum(0, records["end_ns"] - records["begin_ns"])
        phase = np.where(records["phase"] < len(Phase), records["phase"], Phase.OTHER).astype(np.int64)
        np.add.at(self._step_ns, (phase, rank), duration)
        self._step_duration.add(phase * self._ranks + rank, duration)

    def _add_untimed(self, records: Records, rank: _Int) -> None:
        np.add.at(self._untimed_steps, (rank, records["untimed"]), 1)
        waits = records["waits"].astype(np.int64)
        np.add.at(self._untimed_waits, rank, waits)
        np.add.at(self._untimed_unwaited, rank, np.maximum(0, self._layers - waits))
        first = records["step"] == 0
        sent = self._owned[rank] - np.where(first, self._owned_prefilled[rank], 0)
        np.add.at(self._untimed_sent, rank, sent)
        np.add.at(self._untimed_received, rank, self._layers - np.where(first, self._prefilled, 0) - sent)

    def add_causes(self, step: _Int, cause_ns: _Int) -> None:
        """Add the stall of finished steps by cause, ``[cause, step, rank]``."""
        self._cause_ns += (cause_ns * (step[:, np.newaxis] >= self._begin)).sum(axis=1)

    def add_late(self, ranked: Ranked) -> None:
        """Count the stall of records of steps that were finished without them: its cause stays unknown."""
        records, rank = ranked.records, ranked.group_rank
        counted = (ranked.place < self._layers) & (ranked.step >= self._begin[rank])
        counted &= _RECEIVER[_CLASS[records["flags"]]]
        stall_ns = np.maximum(0, records["ready_ns"] - records["wait_begin_ns"]) * counted
        np.add.at(self._cause_ns[CAUSES.index(Cause.UNATTRIBUTED)], rank, stall_ns)

    def last_step(self, rank: int) -> Mapping[str, int]:
        """Return the fields of a rank's newest STEP record, all 0 before the first."""
        return dict(zip(_STEP_FIELDS, self._last_step[rank].item(), strict=False))  # the rest is the record tail

    def facts(self, layer_bytes: Mapping[int, int]) -> dict[int, Totals]:
        """Return the current counts of ranks.

        Args:
            layer_bytes: Bytes of one broadcast, by group rank.
        """
        meanings = (self._transfers @ _MEANINGS).tolist()
        on_time = self._late.at_most(np.array([self._epsilon_ns - 1]))[:, 0] * (self._epsilon_ns > 0)
        stall = _distributions(DURATION_BOUNDS_NS, self._late.at_most(_BOUNDS), self._stall_ns)
        earlier = self._late.at_most(-_BOUNDS - 1)
        earlier[:, :-1] = earlier[:, -1:] - earlier[:, :-1]
        slack = _distributions(DURATION_BOUNDS_NS, earlier, self._slack_ns)
        durations = _distributions(DURATION_BOUNDS_NS, self._duration.at_most(_BOUNDS), self._duration_ns.reshape(-1))
        step_durations = _distributions(
            STEP_BOUNDS_NS, self._step_duration.at_most(_STEP_BOUNDS), self._step_ns.reshape(-1)
        )
        totals = {}
        for rank, its_layer_bytes in layer_bytes.items():
            receivers, own, prefilled, unwaited, still_open, sent, received = meanings[rank]
            sent = (sent + int(self._untimed_sent[rank])) * self._sends
            received += int(self._untimed_received[rank])
            totals[rank] = Totals(
                waits={
                    Outcome.ON_TIME: int(on_time[rank]),
                    Outcome.STALLED: receivers - int(on_time[rank]),
                    Outcome.OWN: own,
                    Outcome.PREFILLED: prefilled,
                    Outcome.UNTIMED: int(self._untimed_waits[rank]),
                },
                unwaited=unwaited + int(self._untimed_unwaited[rank]),
                open=still_open,
                sent=sent,
                received=received,
                bytes=(sent + received) * its_layer_bytes,
                ready_unobserved=int(self._ready_unobserved[rank]),
                stall_ns=int(self._stall_ns[rank]),
                cause_ns=dict(zip(CAUSES, self._cause_ns[:, rank].tolist(), strict=True)),
                steps=int(self._steps[rank]),
                untimed_steps=_by_reason(self._untimed_steps[rank]),
                aborted_steps=int(self._aborted[rank]),
                unwaited_steps=int(self._unwaited_steps[rank]),
                stall=stall[rank],
                slack=slack[rank],
                sent_duration=durations[2 * rank],
                received_duration=durations[2 * rank + 1],
                step_duration=dict(zip(_PHASES, step_durations[rank :: self._ranks], strict=True)),
            )
        return totals

    def _count(self, counts: _Int, rank: _Int) -> None:
        counts += np.bincount(rank, minlength=self._ranks)


def _by_reason(counts: _Int) -> dict[str, int]:
    known = dict(zip(_UNTIMED, counts[1 : 1 + len(_UNTIMED)].tolist(), strict=True))
    unknown = int(counts.sum()) - sum(known.values())
    return {**known, "unknown": unknown} if unknown else known


def _having(flag: TransferFlag) -> _Bool:
    """Return which of the 256 flag bytes have a flag."""
    return np.asarray((np.arange(256) & int(flag)) != 0, np.bool_)


_STEP_FIELDS = tuple(field.name for field in STEP_FIELDS)
_PHASES = tuple(phase.name.lower() for phase in Phase)
_UNTIMED = tuple(reason.name.lower() for reason in Untimed if reason is not Untimed.TIMED)
_BOUNDS, _STEP_BOUNDS = np.array(DURATION_BOUNDS_NS, np.int64), np.array(STEP_BOUNDS_NS, np.int64)
_COUNTED = (TransferFlag.OWN, TransferFlag.PREFILLED, TransferFlag.UNWAITED, TransferFlag.OPEN)
_CLASSES = 1 << len(_COUNTED)
_NO_TRANSFER = _CLASSES
_CLASS = sum((_having(flag).astype(np.int64) << bit for bit, flag in enumerate(_COUNTED)), np.zeros(256, np.int64))
"""Class of a transfer by its flags: the counted flags as bits of a number."""
_OWN, _PREFILLED, _UNWAITED, _OPEN = (
    np.append((np.arange(_CLASSES) >> bit) & 1 == 1, False) for bit in range(len(_COUNTED))
)
_WAITED = ~_UNWAITED & (_OWN | ~_OPEN)
_TRANSFER = np.arange(_CLASSES + 1) != _NO_TRANSFER
_RECEIVER = _WAITED & ~_OWN & ~_PREFILLED & _TRANSFER
_SENT, _RECEIVED = _OWN & ~_PREFILLED, ~_OWN & ~_PREFILLED & _TRANSFER
_MEANINGS = np.stack(
    (
        *(_RECEIVER, _WAITED & _OWN & ~_PREFILLED, _WAITED & _PREFILLED, _UNWAITED & ~_OPEN, _UNWAITED & _OPEN),
        *(_SENT, _RECEIVED),
    ),
    axis=1,
)[:_CLASSES].astype(np.int64)
"""``[class, meaning]``: which classes are part of each count."""
