"""Counters that only grow: one :class:`TotalsCounter` for the ranks of one series.

They count every record once, whether or not the peers' records are at hand; only the split by
cause waits for the step to be finished.

An untimed step has no TRANSFER records. What these would have counted follows from its STEP record: every
step broadcasts every layer, except that the first ``k`` of step 0 were there already.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CAUSES, Distribution, Outcome, Totals
from swtrace.ledger.intake import Ranked
from swtrace.trace.records import Records, observed
from swtrace.trace.schema import Observed, Phase, StepFlag, TransferFlag, Untimed

_Int = npt.NDArray[np.int64]

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


_FLAGS = 256
"""What a transfer's flags can be."""
_REASONS = 256
"""What a step's reason to be untimed can be, known or not."""


class _Histograms:
    """One histogram for each rank."""

    __slots__ = ("_bounds", "_counts", "_edges", "_sums")

    def __init__(self, bounds_ns: tuple[int, ...], ranks: int) -> None:
        self._bounds = bounds_ns
        self._edges = np.array(bounds_ns, np.int64)
        self._counts = np.zeros((ranks, len(bounds_ns) + 1), np.int64)
        self._sums = np.zeros(ranks, np.int64)

    def add(self, rank: _Int, values: _Int) -> None:
        if len(values):
            ranks, buckets = self._counts.shape
            at = rank * buckets + np.searchsorted(self._edges, values, side="left")
            self._counts += np.bincount(at, minlength=ranks * buckets).reshape(ranks, buckets)
            np.add.at(self._sums, rank, values)

    def forget(self, rank: int) -> None:
        self._counts[rank] = self._sums[rank] = 0

    def fact(self, rank: int) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts[rank].tolist()), int(self._sums[rank]))


class TotalsCounter:
    """Counts what the ranks of one series did.

    Args:
        ranks: Size of the group.
        epsilon_ns: A wait is on time if its stall is below this.
        source: ``[position]``, group rank that keeps the layer.
        prefetch_step: k.
    """

    def __init__(self, *, ranks: int, epsilon_ns: int, source: _Int, prefetch_step: int) -> None:
        self._ranks, self._epsilon_ns = ranks, epsilon_ns
        self._layers = len(source)
        self._owned = np.bincount(source, minlength=ranks)
        """``[rank]``: broadcasts of a step whose source the rank is."""
        self._prefilled = min(prefetch_step, self._layers)
        self._owned_prefilled = np.bincount(source[:prefetch_step], minlength=ranks)
        """``[rank]``: how many fewer they are in step 0."""
        self._transfers = np.zeros((ranks, _FLAGS), np.int64)
        """Transfers by their flags: most of what is counted is a sum over some of them."""
        self._on_time = np.zeros(ranks, np.int64)
        self._upper_bounds = np.zeros(ranks, np.int64)
        self._cause_ns = np.zeros((len(CAUSES), ranks), np.int64)
        self._steps = np.zeros(ranks, np.int64)
        self._aborted = np.zeros(ranks, np.int64)
        self._unwaited_steps = np.zeros(ranks, np.int64)
        self._untimed_steps = np.zeros((ranks, _REASONS), np.int64)
        self._untimed_waits = np.zeros(ranks, np.int64)
        self._untimed_unwaited = np.zeros(ranks, np.int64)
        self._untimed_sent = np.zeros(ranks, np.int64)
        self._untimed_received = np.zeros(ranks, np.int64)
        self._stall = _Histograms(DURATION_BOUNDS_NS, ranks)
        self._slack = _Histograms(DURATION_BOUNDS_NS, ranks)
        self._sent_duration = _Histograms(DURATION_BOUNDS_NS, ranks)
        self._received_duration = _Histograms(DURATION_BOUNDS_NS, ranks)
        self._step_duration = {phase: _Histograms(STEP_BOUNDS_NS, ranks) for phase in Phase}

    def forget(self, rank: int) -> None:
        """Count a rank from zero again."""
        for counts in (
            *(self._on_time, self._upper_bounds, self._steps, self._aborted, self._unwaited_steps),
            *(self._untimed_waits, self._untimed_unwaited, self._untimed_sent, self._untimed_received),
            *(self._untimed_steps, self._transfers),
        ):
            counts[rank] = 0
        self._cause_ns[:, rank] = 0
        for histograms in (
            *(self._stall, self._slack, self._sent_duration, self._received_duration),
            *self._step_duration.values(),
        ):
            histograms.forget(rank)

    def add_transfers(self, ranked: Ranked) -> None:
        """Count TRANSFER records."""
        records, rank = ranked.records, ranked.group_rank
        flags = records["flags"]
        seen = np.bincount(rank * _FLAGS + flags, minlength=self._ranks * _FLAGS)
        self._transfers += seen.reshape(self._ranks, _FLAGS)
        ready = records["ready_ns"]
        receiver = _RECEIVER[flags]
        waited = rank[receiver]
        late = (ready - records["wait_begin_ns"])[receiver]
        stall, slack = np.maximum(0, late), np.maximum(0, -late)
        self._count(self._on_time, waited[stall < self._epsilon_ns])
        self._count(self._upper_bounds, waited[observed(records)[receiver] == Observed.UPPER_BOUND])
        self._stall.add(waited, stall)
        self._slack.add(waited, slack)
        duration = np.maximum(0, ready - records["issued_ns"])
        known = ready > 0
        for which, histograms in ((_SENT, self._sent_duration), (_RECEIVED, self._received_duration)):
            these = which[flags] & known
            histograms.add(rank[these], duration[these])

    def add_steps(self, ranked: Ranked) -> None:
        """Count STEP records."""
        records, rank = ranked.records, ranked.group_rank
        self._count(self._steps, rank)
        self._count(self._aborted, rank[(records["flags"] & StepFlag.ABORTED) != 0])
        self._count(self._unwaited_steps, rank[records["waits"] == 0])
        untimed = records["untimed"] != Untimed.TIMED
        if untimed.any():
            self._add_untimed(records[untimed], rank[untimed])
            records, rank = records[~untimed], rank[~untimed]
        duration = np.maximum(0, records["end_ns"] - records["begin_ns"])
        phase = np.where(records["phase"] < len(Phase), records["phase"], Phase.OTHER)
        for which in set(phase.tolist()):
            self._step_duration[Phase(which)].add(rank[phase == which], duration[phase == which])

    def _add_untimed(self, records: Records, rank: _Int) -> None:
        np.add.at(self._untimed_steps, (rank, records["untimed"]), 1)
        waits = records["waits"].astype(np.int64)
        np.add.at(self._untimed_waits, rank, waits)
        np.add.at(self._untimed_unwaited, rank, np.maximum(0, self._layers - waits))
        first = records["step"] == 0
        sent = self._owned[rank] - np.where(first, self._owned_prefilled[rank], 0)
        np.add.at(self._untimed_sent, rank, sent)
        np.add.at(self._untimed_received, rank, self._layers - np.where(first, self._prefilled, 0) - sent)

    def add_causes(self, cause_ns: _Int) -> None:
        """Count the stall of finished steps by cause, ``[cause, rank]``."""
        self._cause_ns += cause_ns

    def fact(self, rank: int, *, layer_bytes: int) -> Totals:
        """Return a rank's counts as they stand.

        Args:
            rank: Group rank.
            layer_bytes: Bytes that one broadcast moves.
        """
        receivers, own, prefilled, unwaited, still_open, sent, received = (self._transfers[rank] @ _CLASSES).tolist()
        sent += int(self._untimed_sent[rank])
        received += int(self._untimed_received[rank])
        on_time = int(self._on_time[rank])
        stall = self._stall.fact(rank)
        return Totals(
            waits={
                Outcome.ON_TIME: on_time,
                Outcome.STALLED: receivers - on_time,
                Outcome.OWN: own,
                Outcome.PREFILLED: prefilled,
                Outcome.UNTIMED: int(self._untimed_waits[rank]),
            },
            unwaited=unwaited + int(self._untimed_unwaited[rank]),
            open=still_open,
            sent=sent,
            received=received,
            bytes=(sent + received) * layer_bytes,
            upper_bounds=int(self._upper_bounds[rank]),
            stall_ns=stall.sum_ns,
            cause_ns=dict(zip(CAUSES, self._cause_ns[:, rank].tolist(), strict=True)),
            steps=int(self._steps[rank]),
            untimed_steps=_by_reason(self._untimed_steps[rank]),
            aborted_steps=int(self._aborted[rank]),
            unwaited_steps=int(self._unwaited_steps[rank]),
            stall=stall,
            slack=self._slack.fact(rank),
            sent_duration=self._sent_duration.fact(rank),
            received_duration=self._received_duration.fact(rank),
            step_duration={phase.name.lower(): each.fact(rank) for phase, each in self._step_duration.items()},
        )

    def _count(self, counts: _Int, rank: _Int) -> None:
        counts += np.bincount(rank, minlength=self._ranks)


def _by_reason(counts: _Int) -> dict[str, int]:
    known = {reason.name.lower(): int(counts[reason]) for reason in Untimed if reason is not Untimed.TIMED}
    unknown = int(counts.sum()) - sum(known.values())
    return {**known, "unknown": unknown} if unknown else known


def _having(flag: TransferFlag) -> npt.NDArray[np.bool_]:
    """Return which flags bytes have a flag."""
    return np.asarray((np.arange(_FLAGS) & int(flag)) != 0, np.bool_)


_OWN, _PREFILLED = _having(TransferFlag.OWN), _having(TransferFlag.PREFILLED)
_UNWAITED, _OPEN = _having(TransferFlag.UNWAITED), _having(TransferFlag.OPEN)
_WAITED = ~_UNWAITED & (_OWN | ~_OPEN)
_RECEIVER = _WAITED & ~_OWN & ~_PREFILLED
_SENT, _RECEIVED = _OWN & ~_PREFILLED, ~_OWN & ~_PREFILLED
_CLASSES = np.stack(
    (
        *(_RECEIVER, _WAITED & _OWN & ~_PREFILLED, _WAITED & _PREFILLED, _UNWAITED & ~_OPEN, _UNWAITED & _OPEN),
        *(_SENT, _RECEIVED),
    ),
    axis=1,
).astype(np.int64)
"""``[flags, class]``: which flags make a transfer one of a class."""
