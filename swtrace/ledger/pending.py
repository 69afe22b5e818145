"""Steps that are not finished yet: records of any number of ranks, in any interleaving, laid out as arrays.

A :class:`PendingSteps` holds one series. A cell is one (step, group rank, position); steps live in
slots ``step & (capacity - 1)``. Capacity grows while ranks are apart and stops at a bound, so that
neither a hung rank nor a hostile ring makes a reader allocate without end: beyond it, the oldest
steps are finished with what is there and counted as evicted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from swtrace.trace.records import Records, clock, observed

_INITIAL_STEPS = 8
_GRACE = 1
"""A rank whose records reach this many steps further has nothing more to say about a step, even if records
of it are missing. One step of grace absorbs records that arrive slightly out of order."""


@dataclass(slots=True)
class Block:
    """Raw columns of ``n`` steps of one series, ascending; ``[step, rank, position]`` or ``[step, rank]``."""

    step: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_]
    issued_ns: npt.NDArray[np.int64]
    ready_ns: npt.NDArray[np.int64]
    wait_begin_ns: npt.NDArray[np.int64]
    wait_end_ns: npt.NDArray[np.int64]
    operation: npt.NDArray[np.uint32]
    reach_position: npt.NDArray[np.uint16]
    window: npt.NDArray[np.uint16]
    observed: npt.NDArray[np.uint8]
    clock: npt.NDArray[np.uint8]
    flags: npt.NDArray[np.uint8]
    ended: npt.NDArray[np.bool_]
    begin_ns: npt.NDArray[np.int64]
    arrival_ns: npt.NDArray[np.int64]
    end_ns: npt.NDArray[np.int64]
    run_delay_us: npt.NDArray[np.uint32]
    steal_us: npt.NDArray[np.uint32]
    tokens: npt.NDArray[np.uint32]
    requests: npt.NDArray[np.uint32]
    phase: npt.NDArray[np.uint8]
    waits: npt.NDArray[np.uint16]
    step_flags: npt.NDArray[np.uint8]

    @classmethod
    def empty(cls, steps: int, ranks: int, layers: int) -> Block:
        """Return a block of ``steps`` steps without records."""
        cells, rows = (steps, ranks, layers), (steps, ranks)
        return cls(
            step=np.full(steps, -1, np.int64),
            present=np.zeros(cells, np.bool_),
            issued_ns=np.zeros(cells, np.int64),
            ready_ns=np.zeros(cells, np.int64),
            wait_begin_ns=np.zeros(cells, np.int64),
            wait_end_ns=np.zeros(cells, np.int64),
            operation=np.zeros(cells, np.uint32),
            reach_position=np.zeros(cells, np.uint16),
            window=np.zeros(cells, np.uint16),
            observed=np.zeros(cells, np.uint8),
            clock=np.zeros(cells, np.uint8),
            flags=np.zeros(cells, np.uint8),
            ended=np.zeros(rows, np.bool_),
            begin_ns=np.zeros(rows, np.int64),
            arrival_ns=np.zeros(rows, np.int64),
            end_ns=np.zeros(rows, np.int64),
            run_delay_us=np.zeros(rows, np.uint32),
            steal_us=np.zeros(rows, np.uint32),
            tokens=np.zeros(rows, np.uint32),
            requests=np.zeros(rows, np.uint32),
            phase=np.zeros(rows, np.uint8),
            waits=np.zeros(rows, np.uint16),
            step_flags=np.zeros(rows, np.uint8),
        )

    def take(self, slots: npt.NDArray[np.int64]) -> Block:
        """Return a copy of the given slots, in that order."""
        return Block(**{f.name: getattr(self, f.name)[slots] for f in fields(self)})

    def put(self, slots: npt.NDArray[np.int64], other: Block) -> None:
        """Copy ``other``'s steps into the given slots."""
        for f in fields(self):
            getattr(self, f.name)[slots] = getattr(other, f.name)

    def clear(self, slots: npt.NDArray[np.int64]) -> None:
        """Make the given slots empty again. Only cells marked present or ended are ever read."""
        self.step[slots] = -1
        self.present[slots] = False
        self.ended[slots] = False

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.step)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a batch: masks over its records."""

    fresh: npt.NDArray[np.bool_]
    late: npt.NDArray[np.bool_]
    duplicate: npt.NDArray[np.bool_]


class PendingSteps:
    """The steps of one series that some rank has not ended yet.

    Args:
        ranks: Size of the group.
        layers: Number of positions.
        max_cells: Bound of ``steps x ranks x layers`` held at once.
    """

    def __init__(self, ranks: int, layers: int, max_cells: int) -> None:
        self._ranks, self._layers = ranks, layers
        self._max_steps = 1 << max(2, (max_cells // max(1, ranks * layers)).bit_length() - 1)
        self._block = Block.empty(min(_INITIAL_STEPS, self._max_steps), ranks, layers)
        self._first: int | None = None
        self._popped_until = 0
        self._newest = -1
        self._frontier = np.zeros(ranks, np.int64)  # every record of earlier steps has been seen
        self._expected = np.zeros(ranks, np.bool_)

    def __len__(self) -> int:
        """Return how many steps are pending."""
        return int((self._block.step >= 0).sum())

    def expect(self, rank: int, *, expected: bool) -> None:
        """Say whether steps wait for this group rank before they are finished."""
        self._expected[rank] = expected

    def room(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of these steps can be stored now, after growing as far as the bound allows.

        Where the answer is False, the caller has to evict: see :meth:`evict_for`.
        """
        if self._first is None:
            self._first = int(steps.min())
        elif self._popped_until == 0:
            # Nothing is finished yet: a rank whose ring reaches further back may still come.
            self._first = min(self._first, max(int(steps.min()), self._newest - self._max_steps + 1))
        span = int(steps.max()) - self._first + 1
        if self._newest >= 0:
            span = max(span, self._newest - self._first + 1)
        if span > len(self._block) and len(self._block) < self._max_steps:
            self._grow(min(self._max_steps, 1 << (span - 1).bit_length()))
        return steps < self._first + len(self._block)

    def evict_for(self, step: int) -> Block:
        """Make room for ``step`` by finishing the oldest steps as they are."""
        return self._pop_before(step - len(self._block) + 1)

    def put_transfers(self, rank: int, records: Records) -> Accepted:
        """Store TRANSFER records of one rank. All steps must have room."""
        step = records["step"].astype(np.int64)
        position = records["position"].astype(np.int64)
        late = step < (self._first or 0)
        slot = step & (len(self._block) - 1)
        duplicate = ~late & (self._block.present[slot, rank, position] | _repeats(slot * self._layers + position))
        fresh = ~late & ~duplicate
        block, new = self._block, records[fresh]
        at = (slot[fresh], rank, position[fresh])
        for column in (
            "issued_ns",
            "ready_ns",
            "wait_begin_ns",
            "wait_end_ns",
            "operation",
            "reach_position",
            "window",
            "flags",
        ):
            getattr(block, column)[at] = new[column]
        block.observed[at] = observed(new)
        block.clock[at] = clock(new)
        block.present[at] = True
        self._note(rank, slot[fresh], step[fresh], ended=False)
        return Accepted(fresh, late, duplicate)

    def put_steps(self, rank: int, records: Records) -> Accepted:
        """Store STEP records of one rank. All steps must have room."""
        step = records["step"].astype(np.int64)
        late = step < (self._first or 0)
        slot = step & (len(self._block) - 1)
        duplicate = ~late & (self._block.ended[slot, rank] | _repeats(slot))
        fresh = ~late & ~duplicate
        block, new, at = self._block, records[fresh], (slot[fresh], rank)
        for column in (
            "begin_ns",
            "arrival_ns",
            "end_ns",
            "run_delay_us",
            "steal_us",
            "tokens",
            "requests",
            "phase",
            "waits",
        ):
            getattr(block, column)[at] = new[column]
        block.step_flags[at] = new["flags"]
        block.ended[at] = True
        self._note(rank, slot[fresh], step[fresh], ended=True)
        return Accepted(fresh, late, duplicate)

    def pop_finished(self) -> Block:
        """Take out the leading steps of which every expected rank has told all it will."""
        if self._first is None or self._newest < self._first:
            return self._block.take(np.empty(0, np.int64))
        expected = self._expected
        until = int(self._frontier[expected].min(initial=self._newest + 1 + _GRACE)) - _GRACE
        until = max(self._first, min(until, self._newest + 1))
        while until <= self._newest:
            slot = until & (len(self._block) - 1)
            whole = self._block.ended[slot] & (self._block.present[slot].all(axis=1))
            if not whole[expected].all():
                break
            until += 1
        return self._pop_before(until)

    def pop_all(self) -> Block:
        """Take out everything."""
        return self._pop_before(self._newest + 1)

    def _note(self, rank: int, slots: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], *, ended: bool) -> None:
        if not len(steps):
            return
        self._block.step[slots] = steps
        newest = int(steps.max())
        self._newest = max(self._newest, newest)
        self._frontier[rank] = max(int(self._frontier[rank]), newest + int(ended))

    def _pop_before(self, step: int) -> Block:
        held = np.sort(self._block.step[(self._block.step >= 0) & (self._block.step < step)])
        slots = held & (len(self._block) - 1)
        popped = self._block.take(slots)
        self._block.clear(slots)
        if self._first is not None and step > self._first:
            self._first = self._popped_until = step
        return popped

    def _grow(self, steps: int) -> None:
        old = self._block
        self._block = Block.empty(steps, self._ranks, self._layers)
        held = np.flatnonzero(old.step >= 0)
        self._block.put(old.step[held] & (steps - 1), old.take(held))


def _repeats(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which keys already occur earlier in the batch."""
    repeats = np.ones(len(keys), np.bool_)
    repeats[np.unique(keys, return_index=True)[1]] = False
    return repeats
