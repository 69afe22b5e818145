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

from swtrace.ledger.intake import Ranked
from swtrace.trace.records import clock, observed
from swtrace.trace.schema import Untimed

_INITIAL_STEPS = 8
_GRACE = 1
"""A rank whose records reach this many steps further has nothing more to say about a step, even if records
of it are missing. One step of grace absorbs records that arrive slightly out of order."""

_EVICTED_AT_ONCE = 8
"""Where steps have to give way, this part of all pending ones does."""
_REMEMBERED_BYTES = 4 << 20
_REMEMBERED_STEPS = 1024
"""Of finished steps it is known for so many, in at most so many bytes, which records they had."""

_TRANSFER_COLUMNS = tuple(
    (name, name)
    for name in (
        "issued_ns",
        "ready_ns",
        "wait_begin_ns",
        "wait_end_ns",
        "operation",
        "reach_position",
        "window",
        "flags",
    )
)
_STEP_COLUMNS = (
    *((name, name) for name in ("begin_ns", "arrival_ns", "end_ns", "run_delay_us", "steal_us", "tokens", "requests")),
    *((name, name) for name in ("phase", "untimed", "waits")),
    ("step_flags", "flags"),
)
"""Column of the block, and field of the record that goes there."""


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
    launched_ns: npt.NDArray[np.int64]
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
    untimed: npt.NDArray[np.uint8]
    """``[step, rank]``: why an ended step has no instants and no TRANSFER records; 0 where it has."""
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
            launched_ns=np.zeros(cells, np.int64),
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
            untimed=np.zeros(rows, np.uint8),
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

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """``[step, rank]``: it ended the step and every record of it is at hand."""
        return np.asarray(self.ended & self.present.all(axis=2), np.bool_)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of records: masks over them. The others were stored."""

    late: npt.NDArray[np.bool_]
    duplicate: npt.NDArray[np.bool_]


class _FinishedRecords:
    """Which records the last finished steps had: one that comes again must not count again."""

    def __init__(self, ranks: int, layers: int) -> None:
        self._layers = layers
        cells = ranks * (layers + 1)
        self._steps = max(4, min(_REMEMBERED_STEPS, _REMEMBERED_BYTES // cells))
        self._step = np.full(self._steps, -1, np.int64)
        self._seen = np.zeros((self._steps, ranks, layers + 1), np.bool_)
        self._last = np.full((2, ranks), -1, np.int64)
        """``step * layers + position`` of each rank's last TRANSFER record, and step of its last STEP record."""

    def add(self, block: Block) -> None:
        """Remember finished steps, ascending."""
        kept = slice(-self._steps, None)
        step, present, ended = block.step[kept], block.present[kept], block.ended[kept]
        slot = step % self._steps
        self._step[slot] = step
        self._seen[slot, :, :-1] = present
        self._seen[slot, :, -1] = ended
        if len(step):
            number = step[:, np.newaxis]
            highest = self._layers - 1 - present[:, :, ::-1].argmax(axis=2)
            transfer = np.where(present.any(axis=2), number * self._layers + highest, -1).max(axis=0)
            end = np.where(ended, number, -1).max(axis=0)
            np.maximum(self._last, np.stack((transfer, end)), out=self._last)

    def again(
        self, step: npt.NDArray[np.int64], rank: npt.NDArray[np.int64], position: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return which records of finished steps were there before, and remember them all.

        Of steps too old to be remembered: what is not behind all that its rank has recorded.
        """
        kind = (position == self._layers).astype(np.int64)
        key = np.where(kind, step, step * self._layers + position)
        first = np.zeros(len(key), np.bool_)
        first[np.unique(np.stack((rank, key)), axis=1, return_index=True)[1]] = True
        slot = step % self._steps
        remembered = self._step[slot] == step
        there = np.where(remembered, self._seen[slot, rank, position], key <= self._last[kind, rank])
        self._seen[slot[remembered], rank[remembered], position[remembered]] = True
        np.maximum.at(self._last, (kind, rank), key)
        return np.asarray(there | ~first, np.bool_)

    def forget(self, rank: int) -> None:
        """A rank begins anew."""
        self._seen[:, rank] = False
        self._last[:, rank] = -1


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
        self._order = np.empty(0, np.int32)
        self._finished = _FinishedRecords(ranks, layers)

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
        """Make room for ``step`` by finishing the oldest steps as they are, several at once: each time costs."""
        first = 0 if self._first is None else self._first
        return self._pop_before(max(step - len(self._block) + 1, first + len(self._block) // _EVICTED_AT_ONCE))

    def forget(self, rank: int) -> None:
        """Know nothing of what a rank recorded in finished steps."""
        self._finished.forget(rank)

    def put_transfers(self, ranked: Ranked) -> Accepted:
        """Store TRANSFER records. All steps must have room."""
        return self._put(ranked, _TRANSFER_COLUMNS, ended=False)

    def put_steps(self, ranked: Ranked) -> Accepted:
        """Store STEP records. All steps must have room."""
        return self._put(ranked, _STEP_COLUMNS, ended=True)

    def put_launches(self, ranked: Ranked) -> None:
        """Store LAUNCH records, each behind the TRANSFER record that it is about; without that it says nothing."""
        if self._first is None or not len(ranked):
            return
        step = ranked.step
        slot = step & (len(self._block) - 1)
        at = (slot * self._ranks + ranked.group_rank) * self._layers + ranked.records["position"]
        known = (self._block.step[slot] == step) & self._block.present.reshape(-1)[at]
        self._block.launched_ns.reshape(-1)[at[known]] = ranked.records["issued_ns"][known]

    def _put(self, ranked: Ranked, columns: tuple[tuple[str, str], ...], *, ended: bool) -> Accepted:
        records = ranked.records
        step = ranked.step
        late = step < (self._first or 0)
        # Rows and cells are counted through: one index into flat columns is much faster than two or three.
        slot = step & (len(self._block) - 1)
        at = slot * self._ranks + ranked.group_rank
        seen = self._block.ended.reshape(-1)
        if not ended:
            at = at * self._layers + records["position"]
            seen = self._block.present.reshape(-1)
        duplicate = np.zeros(len(step), np.bool_)
        duplicate[~late] = seen[at[~late]] | self._repeats(at[~late])
        rank = ranked.group_rank
        position = np.full(len(step), self._layers) if ended else records["position"].astype(np.int64)
        if late.any():
            again = self._finished.again(step[late], rank[late], position[late])
            duplicate[late] = again
            late[late] = ~again
        fresh = ~(late | duplicate)
        if not fresh.all():
            records, slot, step, at, rank = records[fresh], slot[fresh], step[fresh], at[fresh], rank[fresh]
        if len(records):
            for column, name in columns:
                getattr(self._block, column).reshape(-1)[at] = records[name]
            if not ended:
                self._block.observed.reshape(-1)[at] = observed(records)
                self._block.clock.reshape(-1)[at] = clock(records)
                self._block.launched_ns.reshape(-1)[at] = 0
            seen[at] = True
            self._block.step[slot] = step
            self._newest = max(self._newest, int(step.max()))
            np.maximum.at(self._frontier, rank, step + int(ended))
        return Accepted(late, duplicate)

    def _repeats(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which keys already occur earlier in the batch: those that are not the last to be stored backwards."""
        cells = len(self._block) * self._ranks * self._layers
        if len(self._order) < cells:
            self._order = np.empty(cells, np.int32)
        order = np.arange(len(keys), dtype=np.int32)
        self._order[keys[::-1]] = order[::-1]
        return np.asarray(self._order[keys] != order, np.bool_)

    def pop_finished(self) -> Block:
        """Take out the leading steps of which every expected rank has told all it will."""
        if self._first is None or self._newest < self._first:
            return self._block.take(np.empty(0, np.int64))
        expected = self._expected
        until = int(self._frontier[expected].min(initial=self._newest + 1 + _GRACE)) - _GRACE
        until = max(self._first, min(until, self._newest + 1))
        while until <= self._newest:
            slot = until & (len(self._block) - 1)
            told = self._block.present[slot].all(axis=1) | (self._block.untimed[slot] != Untimed.TIMED)
            whole = self._block.ended[slot] & told
            if not whole[expected].all():
                break
            until += 1
        return self._pop_before(until)

    def pop_all(self) -> Block:
        """Take out everything."""
        return self._pop_before(self._newest + 1)

    def _pop_before(self, step: int) -> Block:
        held = np.sort(self._block.step[(self._block.step >= 0) & (self._block.step < step)])
        slots = held & (len(self._block) - 1)
        popped = self._block.take(slots)
        self._block.clear(slots)
        self._finished.add(popped)
        if self._first is not None and step > self._first:
            self._first = self._popped_until = step
        return popped

    def _grow(self, steps: int) -> None:
        old = self._block
        self._block = Block.empty(steps, self._ranks, self._layers)
        held = np.flatnonzero(old.step >= 0)
        self._block.put(old.step[held] & (steps - 1), old.take(held))
