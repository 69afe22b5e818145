"""Sums over the last steps of one series, and what follows from them: efficiency, stall ratio, the straggler."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CAUSES, Cause, Recent, StepFacts, Straggler
from swtrace.trace.identity import RankKey

_SKEWS = [CAUSES.index(Cause.ENTRY_SKEW), CAUSES.index(Cause.SKEW)]

STRAGGLER_SHARE = 0.05
"""A rank is named only if its excess takes at least this share of the typical step ..."""
STRAGGLER_FACTOR = 3.0
"""... is at least this many times that of the rank with the next highest excess ..."""
STRAGGLER_CONSISTENCY = 0.9
"""... and is the highest in at least this share of the steps. Of two equal ranks, either is the slower one in
about half of the steps."""
STRAGGLER_STEPS = 16
"""Fewer steps prove nothing: equal ranks pass the test above in 16 steps with a chance below 0.1 %."""


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over one step's positions; ``[rank]``."""

    whole: npt.NDArray[np.bool_]
    step_ns: npt.NDArray[np.int64]
    stall_ns: npt.NDArray[np.int64]
    wake_ns: npt.NDArray[np.int64]
    slack_ns: npt.NDArray[np.int64]
    waits: npt.NDArray[np.int64]
    on_time: npt.NDArray[np.int64]
    attributed_stall_ns: npt.NDArray[np.int64]
    transfer_ns: npt.NDArray[np.int64]
    transfers: npt.NDArray[np.int64]
    cause_ns: npt.NDArray[np.int64]
    """``[cause, rank]``"""
    excess_ns: npt.NDArray[np.int64] | None


_COUNTED = ("step_ns", "stall_ns", "wake_ns", "slack_ns", "waits", "on_time", "attributed_stall_ns", "transfer_ns")
"""Sums that :class:`~swtrace.ledger.facts.Recent` has under the same name."""


class RecentSteps:
    """The last steps of one series.

    Args:
        steps: How many.
        ranks: Size of the group.
        layer_bytes: Bytes that one broadcast moves.
    """

    def __init__(self, steps: int, ranks: int, layer_bytes: int) -> None:
        self.history: deque[StepFacts] = deque(maxlen=steps)
        self._sums: deque[_Sums] = deque(maxlen=steps)
        self._ranks, self._layer_bytes = ranks, layer_bytes

    def add(self, facts: StepFacts) -> None:
        """Take in a finished step. Aborted steps stay in the history and out of the sums."""
        self.history.append(facts)
        duration = facts.duration_ns
        if facts.aborted:
            return
        self._sums.append(
            _Sums(
                whole=facts.whole,
                step_ns=duration,
                stall_ns=facts.stall_ns.sum(axis=1),
                wake_ns=facts.wake_ns.sum(axis=1),
                slack_ns=facts.slack_ns.sum(axis=1),
                waits=facts.receiver.sum(axis=1),
                on_time=facts.on_time.sum(axis=1),
                attributed_stall_ns=np.where(facts.attributed, facts.stall_ns, 0).sum(axis=1),
                transfer_ns=facts.transfer_ns.sum(axis=1),
                transfers=facts.attributed.sum(axis=1),
                cause_ns=facts.cause_ns.sum(axis=2),
                excess_ns=None if facts.path is None else facts.path.excess_ns,
            )
        )

    def __len__(self) -> int:
        """Return the number of steps summed."""
        return len(self._sums)

    def facts(self) -> tuple[Recent, ...]:
        """Return the sums of each group rank, over its whole steps: where records are missing, so is stall."""
        sums = list(self._sums)
        paths = [s for s in sums if s.excess_ns is not None]
        total = {name: self._over_steps(name, sums) for name in _COUNTED}
        steps, path_steps = self._over_steps("whole", sums), self._over_steps("whole", paths)
        cause, excess = self._over_steps("cause_ns", sums, len(CAUSES)), self._over_steps("excess_ns", paths)
        return tuple(
            Recent(
                steps=int(steps[rank]),
                **{name: int(ns[rank]) for name, ns in total.items()},
                skew_ns=int(cause[_SKEWS, rank].sum()),
                transfer_bytes=int(transfers) * self._layer_bytes,
                cause_ns=dict(zip(CAUSES, cause[:, rank].tolist(), strict=True)),
                excess_ns=int(excess[rank]),
                path_steps=int(path_steps[rank]),
            )
            for rank, transfers in enumerate(self._over_steps("transfers", sums))
        )

    def _over_steps(self, name: str, sums: list[_Sums], *rows: int) -> npt.NDArray[np.int64]:
        """Return the sum of a column over each rank's whole steps, ``[rank]`` or ``[row, rank]``."""
        total = np.zeros((*rows, self._ranks), np.int64)
        for each in sums:
            np.add(total, getattr(each, name), out=total, where=each.whole)
        return total

    def straggler(self, ranks: tuple[RankKey, ...]) -> Straggler | None:
        """Return the rank whose excess stands clearly above all others' in the typical step, if one does.

        Medians over the steps: one slow step names nobody.
        """
        rows = [s for s in self._sums if s.excess_ns is not None and s.whole.all()]
        if len(rows) < STRAGGLER_STEPS or self._ranks < 2:  # noqa: PLR2004 - one rank cannot be late
            return None
        by_step = np.stack([s.excess_ns for s in rows if s.excess_ns is not None])
        excess = np.median(by_step, axis=0)
        step_ns = float(np.median([s.step_ns.max() for s in rows]))
        order = np.argsort(excess)
        worst, following = float(excess[order[-1]]), max(0.0, float(excess[order[-2]]))
        consistency = float((by_step.argmax(axis=1) == order[-1]).mean())
        if (
            worst < max(1.0, STRAGGLER_SHARE * step_ns)
            or worst < STRAGGLER_FACTOR * following
            or consistency < STRAGGLER_CONSISTENCY
        ):
            return None
        return Straggler(
            rank=ranks[int(order[-1])],
            excess_ns=int(worst),
            next_excess_ns=int(following),
            share=worst / step_ns,
            consistency=consistency,
        )
