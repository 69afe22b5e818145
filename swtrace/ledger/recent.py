"""Sums over steps of one series, and what they imply, such as efficiency and stall ratio.

Each step is first summed over its positions, into an array with a row for each figure and a column for each rank.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CAUSES, Cause, Mask, Nanoseconds, Recent, StepFacts

if TYPE_CHECKING:
    from swtrace.ledger.step import Steps

Sums = npt.NDArray[np.int64]
"""``[row, ...]`` in the order of the rows below."""

_COUNTED = (
    "step_ns",
    "stall_ns",
    "wake_ns",
    "slack_ns",
    "waits",
    "on_time",
    "attributed_stall_ns",
    "transfer_ns",
    "transfer_bound_ns",
)
"""Rows that :class:`~swtrace.ledger.facts.Recent` has under the same name, and ..."""
_ROWS = (*_COUNTED, "steps", "tokens", "excess_ns", "path_steps", *CAUSES, "transfers", "whole")
"""... other rows that it is computed from. *whole* is 1 where the rank ended the step and no record is missing."""
_STEP_NS, _STALL_NS, _WAKE_NS, _TRANSFERS, _WHOLE = (
    _ROWS.index(name) for name in ("step_ns", "stall_ns", "wake_ns", "transfers", "whole")
)


def sum_positions(
    of: StepFacts | Steps,
    causes: Sums,
    excess_ns: Sums | int,
    *,
    path_known: Mask | bool,
    positions: Mask | None = None,
) -> Sums:
    """Return a step's sums over positions, ``[row, rank]``, or those of several steps, ``[row, step, rank]``.

    Args:
        of: The step or steps.
        causes: Stall by cause, over the same positions.
        excess_ns: Excess of the critical path.
        path_known: Whether there is a critical path.
        positions: Selected positions; None for all. Step time and path always cover the whole step.
    """

    def over(column: npt.NDArray[np.generic]) -> Sums:
        chosen = column if positions is None else column[..., positions]
        return np.asarray(chosen.sum(axis=-1), np.int64)

    step_ns = of.duration_ns
    rows = {
        "step_ns": step_ns,
        "stall_ns": over(of.stall_ns),
        "wake_ns": over(of.wake_ns),
        "slack_ns": over(of.slack_ns),
        "waits": over(of.receiver),
        "on_time": over(of.on_time),
        "attributed_stall_ns": over(of.stall_ns * of.attributed),
        "transfer_ns": over(of.transfer_ns),
        "transfer_bound_ns": over(of.transfer_bound_ns),
        "steps": 1,
        "tokens": of.tokens,
        "excess_ns": excess_ns,
        "path_steps": path_known,
        **dict(zip(CAUSES, causes, strict=True)),
        "transfers": over(of.attributed),
        "whole": of.whole,
    }
    sums = np.empty((len(_ROWS), *step_ns.shape), np.int64)
    for row, name in enumerate(_ROWS):
        sums[row] = rows[name]
    return sums


def steps_each(steps: Iterable[StepFacts]) -> int:
    """Return how many of these steps a rank runs; in a pull series, the rank that runs most."""
    return max(Counter(step.of_rank for step in steps).values(), default=0)


def sums_of(step: StepFacts, positions: Mask | None = None) -> Sums:
    """Return a step's sums over some positions or all, ``[row, rank]``."""
    if positions is None and (summed := step.summed) is not None:
        return summed
    causes = step.cause_ns if positions is None else step.cause_ns[:, :, positions]
    excess_ns = 0 if step.path is None else step.path.excess_ns
    return sum_positions(step, causes.sum(axis=2), excess_ns, path_known=step.path is not None, positions=positions)


def own_ns(sums: Sums) -> Nanoseconds:
    """Return a step's own compute of each rank, ``[rank]``: its duration without stall and wake."""
    return np.asarray(sums[_STEP_NS] - sums[_STALL_NS] - sums[_WAKE_NS], np.int64)


class Total:
    """Sums over steps, of one or several ranks."""

    def __init__(self) -> None:
        self._sums = np.zeros(len(_ROWS), np.int64)
        self._bytes = 0

    def add(self, sums: Sums, layer_bytes: int) -> None:
        """Add a rank's sums, ``[row]``. ``layer_bytes`` is the size of one broadcast."""
        self._sums += sums
        self._bytes += int(sums[_TRANSFERS]) * layer_bytes

    def recent(self) -> Recent:
        """Return the sums, which provide the ratios."""
        rows = dict(zip(_ROWS, self._sums.tolist(), strict=True))
        return Recent(
            **{name: rows[name] for name in (*_COUNTED, "steps", "tokens", "excess_ns", "path_steps")},
            skew_ns=rows[Cause.ENTRY_SKEW] + rows[Cause.SKEW],
            transfer_bytes=self._bytes,
            cause_ns={cause: rows[cause] for cause in CAUSES},
        )


class RecentSteps:
    """The last steps of one series.

    Args:
        steps: How many.
        ranks: Size of the group.
        layer_bytes: Bytes that one broadcast moves.
    """

    def __init__(self, steps: int, ranks: int, layer_bytes: int) -> None:
        self.history: deque[StepFacts] = deque(maxlen=steps)
        self._regular: deque[StepFacts] = deque(maxlen=steps)
        self._unsummed: deque[StepFacts] = deque(maxlen=steps)
        self._summed: deque[Sums] = deque(maxlen=steps)
        self._ranks, self._layer_bytes = ranks, layer_bytes

    def add(self, steps: Iterable[StepFacts], aborted: Iterable[bool]) -> None:
        """Add finished steps. Aborted ones are kept in the history, but left out of the sums."""
        for step, is_aborted in zip(steps, aborted, strict=True):
            self.history.append(step)
            if not is_aborted:
                self._regular.append(step)
                self._unsummed.append(step)

    def __len__(self) -> int:
        """Return the number of steps summed."""
        return len(self._regular)

    def facts(self, covered: Callable[[StepFacts], bool] | None = None) -> tuple[Recent, ...]:
        """Return the sums of each group rank, over all steps or those that are covered.

        Steps with missing records are left out: these would hide stall.
        """
        sums = self._sums()
        if covered is not None:
            sums = sums[np.fromiter(map(covered, self._regular), np.bool_, len(self._regular))]
        of_ranks = (sums * sums[:, _WHOLE, np.newaxis]).sum(axis=0)
        totals = [Total() for _ in range(self._ranks)]
        for rank, total in enumerate(totals):
            total.add(of_ranks[:, rank], self._layer_bytes)
        return tuple(total.recent() for total in totals)

    def _sums(self) -> Sums:
        """Return the sums of each step, ``[step, row, rank]``."""
        self._summed.extend(map(sums_of, self._unsummed))
        self._unsummed.clear()
        if not self._summed:
            return np.zeros((0, len(_ROWS), self._ranks), np.int64)
        return np.stack(self._summed)
