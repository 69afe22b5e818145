"""Counters that only grow: one :class:`TotalsCounter` for one rank of one series.

They count every record once, whether or not the peers' records are at hand; only the split by
cause waits for the step to be finished.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CAUSES, Cause, Distribution, Outcome, Totals
from swtrace.trace.records import Records, observed
from swtrace.trace.schema import Observed, Phase, StepFlag, TransferFlag

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


class _Histogram:
    __slots__ = ("_bounds", "_counts", "_edges", "_sum")

    def __init__(self, bounds_ns: tuple[int, ...]) -> None:
        self._bounds = bounds_ns
        self._edges = np.array(bounds_ns, np.int64)
        self._counts = np.zeros(len(bounds_ns) + 1, np.int64)
        self._sum = 0

    def add(self, values: npt.NDArray[np.int64]) -> None:
        if len(values):
            bucket = np.searchsorted(self._edges, values, side="left")
            self._counts += np.bincount(bucket, minlength=len(self._counts))
            self._sum += int(values.sum())

    def fact(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts.tolist()), self._sum)


class TotalsCounter:
    """Counts what one rank of one series did.

    Args:
        layer_bytes: Bytes that one broadcast moves.
        epsilon_ns: A wait is on time if its stall is below this.
    """

    def __init__(self, *, layer_bytes: int, epsilon_ns: int) -> None:
        self._layer_bytes, self._epsilon_ns = layer_bytes, epsilon_ns
        self._waits = dict.fromkeys(Outcome, 0)
        self._cause_ns = dict.fromkeys(Cause, 0)
        self._unwaited = self._open = self._sent = self._received = self._upper_bounds = self._stall_ns = 0
        self._steps = self._aborted = self._unwaited_steps = 0
        self._stall = _Histogram(DURATION_BOUNDS_NS)
        self._slack = _Histogram(DURATION_BOUNDS_NS)
        self._sent_duration = _Histogram(DURATION_BOUNDS_NS)
        self._received_duration = _Histogram(DURATION_BOUNDS_NS)
        self._step_duration = {phase.name.lower(): _Histogram(STEP_BOUNDS_NS) for phase in Phase}

    def add_transfers(self, records: Records) -> None:
        """Count TRANSFER records."""
        flags = records["flags"]
        own = (flags & TransferFlag.OWN) != 0
        prefilled = (flags & TransferFlag.PREFILLED) != 0
        unwaited = (flags & TransferFlag.UNWAITED) != 0
        is_open = (flags & TransferFlag.OPEN) != 0
        waited = ~unwaited & (own | ~is_open)
        receiver = waited & ~own & ~prefilled
        stall = np.maximum(0, records["ready_ns"] - records["wait_begin_ns"])[receiver]
        slack = np.maximum(0, records["wait_begin_ns"] - records["ready_ns"])[receiver]
        on_time = int((stall < self._epsilon_ns).sum())
        self._waits[Outcome.ON_TIME] += on_time
        self._waits[Outcome.STALLED] += len(stall) - on_time
        self._waits[Outcome.PREFILLED] += int((waited & prefilled).sum())
        self._waits[Outcome.OWN] += int((waited & own & ~prefilled).sum())
        self._unwaited += int((unwaited & ~is_open).sum())
        self._open += int((unwaited & is_open).sum())
        self._upper_bounds += int((receiver & (observed(records) == Observed.UPPER_BOUND)).sum())
        self._stall_ns += int(stall.sum())
        self._stall.add(stall)
        self._slack.add(slack)
        duration = np.maximum(0, records["ready_ns"] - records["issued_ns"])
        known = records["ready_ns"] > 0
        sent, received = own & ~prefilled, ~own & ~prefilled
        self._sent += int(sent.sum())
        self._received += int(received.sum())
        self._sent_duration.add(duration[sent & known])
        self._received_duration.add(duration[received & known])

    def add_steps(self, records: Records) -> None:
        """Count STEP records."""
        self._steps += len(records)
        self._aborted += int(((records["flags"] & StepFlag.ABORTED) != 0).sum())
        self._unwaited_steps += int((records["waits"] == 0).sum())
        duration = np.maximum(0, records["end_ns"] - records["begin_ns"])
        phase = np.where(records["phase"] < len(Phase), records["phase"], Phase.OTHER)
        for which in np.unique(phase).tolist():
            self._step_duration[Phase(which).name.lower()].add(duration[phase == which])

    def add_causes(self, cause_ns: npt.NDArray[np.int64]) -> None:
        """Count the stall of finished steps by cause, ``[cause]``."""
        for cause, ns in zip(CAUSES, cause_ns.tolist(), strict=True):
            self._cause_ns[cause] += ns

    def fact(self) -> Totals:
        """Return the counts as they stand."""
        return Totals(
            waits=dict(self._waits),
            unwaited=self._unwaited,
            open=self._open,
            sent=self._sent,
            received=self._received,
            bytes=(self._sent + self._received) * self._layer_bytes,
            upper_bounds=self._upper_bounds,
            stall_ns=self._stall_ns,
            cause_ns=dict(self._cause_ns),
            steps=self._steps,
            aborted_steps=self._aborted,
            unwaited_steps=self._unwaited_steps,
            stall=self._stall.fact(),
            slack=self._slack.fact(),
            sent_duration=self._sent_duration.fact(),
            received_duration=self._received_duration.fact(),
            step_duration={phase: histogram.fact() for phase, histogram in self._step_duration.items()},
        )
