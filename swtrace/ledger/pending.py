"""Unfinished steps: records of any number of ranks, in any interleaving, each in its own cell.

A :class:`PendingSteps` holds one series. Each (step, group rank, position) has a cell for its TRANSFER record, and each
(step, group rank) has one more, behind the last position, for its STEP record. A step uses slot
``step & (capacity - 1)``. The capacity grows while ranks are apart, up to a bound, so that neither a hung rank nor a
hostile ring makes a reader allocate without limit. Beyond the bound, the oldest steps are finished with the available
records and counted as evicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from swtrace.ledger.intake import CELL, Ranked
from swtrace.trace.records import STEP, TRANSFER, WORDS
from swtrace.trace.schema import Untimed

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

_INITIAL_STEPS = 8
_GRACE = 1
"""A rank whose records are this many steps ahead is done with a step, even if records of the step are missing. One
step of grace allows for records that arrive slightly out of order."""

_EVICTED_AT_ONCE = 8
"""An eviction finishes one in this many of all pending steps."""
_REMEMBERED_BYTES = 4 << 20
_REMEMBERED_STEPS = 1024
"""Bounds, in bytes and steps, of what is remembered about which records finished steps had."""


def _of_transfers(name: str) -> Any:
    """Return a column of a block: a field of the TRANSFER records, ``[step, rank, position]``."""
    return cached_property(lambda block: block.shown(block.cells[:, :, :-1].view(TRANSFER)[name], name))


def _of_steps(name: str) -> Any:
    """Return a column of a block: a field of the STEP records, ``[step, rank]``."""
    return cached_property(lambda block: block.shown(block.cells[:, :, -1].view(STEP)[name], name))


class Block:
    """Records of some steps of one series, ascending. Columns are copied from the records on access.

    Args:
        step: ``[step]``, their numbers.
        cells: ``[step, rank, position]``, with the STEP record behind the last position.
        seen: The same shape: the record is available.
        launched_ns: ``[step, rank, position]``; None if there is no LAUNCH record.
        shift_ns: ``[step, rank]``: what to add to the rank's instants; None for nothing.
    """

    def __init__(
        self,
        step: _Int,
        cells: npt.NDArray[np.void],
        seen: _Bool,
        launched_ns: _Int | None,
        shift_ns: _Int | None = None,
    ) -> None:
        self.step, self.cells, self.seen = step, cells, seen
        self._launched_ns, self._shift_ns = launched_ns, shift_ns
        self.present = seen[:, :, :-1]
        self.ended = seen[:, :, -1]

    issued_ns: npt.NDArray[np.int64] = _of_transfers("issued_ns")
    ready_ns: npt.NDArray[np.int64] = _of_transfers("ready_ns")
    wait_begin_ns: npt.NDArray[np.int64] = _of_transfers("wait_begin_ns")
    wait_end_ns: npt.NDArray[np.int64] = _of_transfers("wait_end_ns")
    operation: npt.NDArray[np.uint32] = _of_transfers("operation")
    reach_position: npt.NDArray[np.uint16] = _of_transfers("reach_position")
    window: npt.NDArray[np.uint16] = _of_transfers("window")
    flags: npt.NDArray[np.uint8] = _of_transfers("flags")
    begin_ns: npt.NDArray[np.int64] = _of_steps("begin_ns")
    arrival_ns: npt.NDArray[np.int64] = _of_steps("arrival_ns")
    end_ns: npt.NDArray[np.int64] = _of_steps("end_ns")
    run_delay_us: npt.NDArray[np.uint32] = _of_steps("run_delay_us")
    steal_us: npt.NDArray[np.uint32] = _of_steps("steal_us")
    tokens: npt.NDArray[np.uint32] = _of_steps("tokens")
    requests: npt.NDArray[np.uint32] = _of_steps("requests")
    phase: npt.NDArray[np.uint8] = _of_steps("phase")
    untimed: npt.NDArray[np.uint8] = _of_steps("untimed")
    """``[step, rank]``: why an ended step has no instants and no TRANSFER records; 0 if it has them."""
    waits: npt.NDArray[np.uint16] = _of_steps("waits")
    step_flags: npt.NDArray[np.uint8] = _of_steps("flags")
    _observed_clock: npt.NDArray[np.uint8] = _of_transfers("observed_clock")

    @cached_property
    def observed(self) -> npt.NDArray[np.uint8]:
        """``[step, rank, position]``: how the ready instant was observed."""
        return np.asarray(self._observed_clock & 0x0F, np.uint8)

    @cached_property
    def clock(self) -> npt.NDArray[np.uint8]:
        """``[step, rank, position]``: the clock of the instants."""
        return np.asarray(self._observed_clock >> 4, np.uint8)

    @cached_property
    def launched_ns(self) -> _Int:
        """``[step, rank, position]``: when the host launched the issue; 0 if not recorded."""
        if self._launched_ns is None:
            return np.zeros(self.present.shape, np.int64)
        return np.asarray(self.shown(self._launched_ns, "launched_ns"), np.int64)

    @cached_property
    def whole(self) -> _Bool:
        """``[step, rank]``: the rank ended the step and no record is missing."""
        return np.asarray(self.seen.all(axis=2), np.bool_)

    def shown(self, column: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        """Return a column of the records, with its instants shifted. Unknown instants, which are 0, stay 0."""
        if self._shift_ns is None or not name.endswith("_ns"):
            return np.ascontiguousarray(column)
        shift_ns = self._shift_ns.reshape(self._shift_ns.shape + (1,) * (column.ndim - 2))
        return np.where(column > 0, column + shift_ns, 0)

    def shifted(self, shift_ns: _Int) -> Block:
        """Return the same steps with ``[step, rank]`` added to the ranks' instants."""
        return Block(self.step, self.cells, self.seen, self._launched_ns, shift_ns)

    def take(self, rows: npt.NDArray[np.int64]) -> Block:
        """Return some of the steps, in the given order, before they are shifted."""
        launched_ns = None if self._launched_ns is None else self._launched_ns[rows]
        return Block(self.step[rows], self.cells.take(rows, axis=0), self.seen[rows], launched_ns)

    def with_ended(self, ended: _Bool) -> Block:
        """Return the same steps, as if only these ranks had ended them."""
        seen = np.concatenate((self.present, ended[:, :, np.newaxis]), axis=2)
        return Block(self.step, self.cells, seen, self._launched_ns)

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.step)


class Waits(NamedTuple):
    """Some waits of a block, ascending, ``[wait]``."""

    cell: _Int
    """Flat index into ``[step, rank, position]``."""
    row: _Int
    """Flat index into ``[step, rank]``."""
    step: _Int
    rank: _Int
    position: _Int

    @classmethod
    def where(cls, chosen: npt.NDArray[Any]) -> Self:
        """Return the waits whose values in a column, ``[step, rank, position]``, are not 0."""
        _, ranks, layers = chosen.shape
        cell = np.flatnonzero(chosen)
        row = cell // layers
        step = row // ranks
        return cls(cell, row, step, row - step * ranks, cell - row * layers)

    def firsts(self) -> npt.NDArray[np.intp]:
        """Return the index of the first wait of each step and rank."""
        return np.flatnonzero(np.diff(self.row, prepend=-1))


@dataclass(frozen=True, slots=True)
class Accepted:
    """Masks over records that were not stored."""

    late: _Bool
    duplicate: _Bool


class _FinishedRecords:
    """Which records the last finished steps had, so that repeated records do not count twice."""

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
        step, seen = block.step[kept], block.seen[kept]
        slot = step % self._steps
        self._step[slot] = step
        self._seen[slot] = seen
        if len(step):
            present, ended, number = seen[:, :, :-1], seen[:, :, -1], step[:, np.newaxis]
            highest = self._layers - 1 - present[:, :, ::-1].argmax(axis=2)
            transfer = np.where(present.any(axis=2), number * self._layers + highest, -1).max(axis=0)
            end = np.where(ended, number, -1).max(axis=0)
            np.maximum(self._last, np.stack((transfer, end)), out=self._last)

    def again(self, step: _Int, rank: _Int, position: _Int) -> _Bool:
        """Return which records of finished steps are repeated, and remember them all.

        In steps too old to be remembered, a record counts as repeated unless it is ahead of all records of its rank.
        """
        kind = (position == self._layers).astype(np.int64)
        key = np.where(kind, step, step * self._layers + position)
        first = np.zeros(len(key), np.bool_)
        first[np.unique(np.stack((kind, rank, key)), axis=1, return_index=True)[1]] = True
        slot = step % self._steps
        remembered = self._step[slot] == step
        there = np.where(remembered, self._seen[slot, rank, position], key <= self._last[kind, rank])
        self._seen[slot[remembered], rank[remembered], position[remembered]] = True
        np.maximum.at(self._last, (kind, rank), key)
        return np.asarray(there | ~first, np.bool_)

    def forget(self, rank: int) -> None:
        """Forget a rank, because it begins again."""
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
        self._allocate(min(_INITIAL_STEPS, self._max_steps))
        self._first: int | None = None
        self._popped_until = 0
        self._newest = -1
        self._frontier = np.zeros(ranks, np.int64)  # all records of earlier steps have been seen
        self._expected = np.zeros(ranks, np.bool_)
        self._order = np.empty(0, np.int32)
        self._finished = _FinishedRecords(ranks, layers)

    def _allocate(self, capacity: int) -> None:
        """Allocate this many steps. Only cells marked as seen are ever read."""
        self._step = np.full(capacity, -1, np.int64)
        self._cells = np.empty((capacity, self._ranks, self._layers + 1), CELL)
        self._seen = np.zeros((capacity, self._ranks, self._layers + 1), np.bool_)
        self._launched_ns: _Int | None = None

    def __len__(self) -> int:
        """Return the number of pending steps."""
        return int((self._step >= 0).sum())

    def expect(self, rank: int, *, expected: bool) -> None:
        """Set whether steps wait for this group rank before they are finished."""
        self._expected[rank] = expected

    def takes_all(self, ranked: Ranked) -> bool:
        """Return whether no record is late and all have room, no matter how they are split into batches.

        The records of each rank must follow each other. A step then waits for all its ranks' records.
        """
        first, last = int(ranked.step.min()), int(ranked.step.max())
        return (
            self._first is not None
            and self._first <= first
            and max(last, self._newest) - self._first < self._max_steps
            and bool(self._expected[ranked.group_rank[ranked.starts]].all())
        )

    def room(self, steps: _Int) -> _Bool:
        """Return which of these steps can be stored now, after growing as far as the bound allows.

        Where the result is False, the caller must evict: see :meth:`evict_for`.
        """
        lowest, highest = int(steps.min()), int(steps.max())
        if self._first is None:
            self._first = lowest
        elif self._popped_until == 0:
            # No step is finished yet, so a rank whose ring reaches further back may still come.
            self._first = min(self._first, max(lowest, self._newest - self._max_steps + 1))
        span = max(highest, self._newest) - self._first + 1
        if span > len(self._step) and len(self._step) < self._max_steps:
            self._grow(min(self._max_steps, 1 << (span - 1).bit_length()))
        return np.asarray(steps < self._first + len(self._step), np.bool_)

    def evict_for(self, step: int) -> Block:
        """Make room for ``step`` by finishing the oldest steps, several at once because each eviction costs time."""
        first = 0 if self._first is None else self._first
        return self._pop_before(max(step - len(self._step) + 1, first + len(self._step) // _EVICTED_AT_ONCE))

    def forget(self, rank: int) -> None:
        """Forget what a rank recorded in finished steps."""
        self._finished.forget(rank)

    def put(self, ranked: Ranked) -> Accepted:
        """Store TRANSFER and STEP records. All steps must have room."""
        step, slot, at = ranked.step, ranked.step & (len(self._step) - 1), self._at(ranked)
        if ranked.in_order:
            late = duplicate = np.zeros(len(step), np.bool_)
        else:
            late = step < (self._first or 0)
            duplicate = self._known_or_repeated(at, late)
        if late.any():
            again = self._finished.again(step[late], ranked.group_rank[late], ranked.place[late])
            duplicate[late] = again
            late[late] = ~again
        stored = ranked.take(~(late | duplicate))
        if len(stored):
            if stored is not ranked:
                step, slot, at = stored.step, stored.step & (len(self._step) - 1), self._at(stored)
            self._cells.reshape(-1)[at] = stored.records.view(CELL)
            self._seen.reshape(-1)[at] = True
            self._step[slot] = step
            self._newest = max(self._newest, int(step.max()))
            reached = np.maximum.reduceat(step + (stored.place == self._layers), stored.starts)
            np.maximum.at(self._frontier, stored.group_rank[stored.starts], reached)
        return Accepted(late, duplicate)

    def put_launches(self, ranked: Ranked) -> None:
        """Store LAUNCH records beside their TRANSFER records. Those without a TRANSFER record are ignored."""
        if self._first is None or not len(ranked):
            return
        at = self._at(ranked)
        known = (self._step[ranked.step & (len(self._step) - 1)] == ranked.step) & self._seen.reshape(-1)[at]
        if self._launched_ns is None:
            self._launched_ns = np.zeros(self._seen.shape, np.int64)
        self._launched_ns.reshape(-1)[at[known]] = ranked.records["issued_ns"][known]

    def _at(self, ranked: Ranked) -> _Int:
        """Return the flat cell index of each record, because one index is much faster than two or three."""
        slot = ranked.step & (len(self._step) - 1)
        return (slot * self._ranks + ranked.group_rank) * (self._layers + 1) + ranked.place

    def _known_or_repeated(self, at: _Int, late: _Bool) -> _Bool:
        """Return which records are for a filled cell, or repeat an earlier one of these records.

        Indexes are stored in reverse order, so that each cell keeps its first record. All others are repeats.
        """
        duplicate = np.zeros(len(at), np.bool_)
        if late.any():
            at = at[~late]
        if len(self._order) < self._seen.size:
            self._order = np.empty(self._seen.size, np.int32)
        order = np.arange(len(at), dtype=np.int32)
        self._order[at[::-1]] = order[::-1]
        duplicate[~late] = self._seen.reshape(-1)[at] | (self._order[at] != order)
        return duplicate

    def pop_finished(self) -> Block:
        """Remove and return the leading steps that are finished by every expected rank."""
        if self._first is None or self._newest < self._first:
            return self._take(np.empty(0, np.int64))
        expected = self._expected
        until = int(self._frontier[expected].min(initial=self._newest + 1 + _GRACE)) - _GRACE
        until = max(self._first, min(until, self._newest + 1))
        while until <= self._newest and self._has_all(until & (len(self._step) - 1))[expected].all():
            until += 1
        return self._pop_before(until)

    def _has_all(self, slot: int) -> _Bool:
        """Return which ranks' records of a step are complete, ``[rank]``. An untimed step has no transfers."""
        seen, untimed = self._seen[slot], self._cells[slot, :, -1].view(STEP)["untimed"] != Untimed.TIMED
        return np.asarray(seen[:, -1] & (seen.all(axis=1) | untimed), np.bool_)

    def pop_all(self) -> Block:
        """Remove and return all steps."""
        return self._pop_before(self._newest + 1)

    def _pop_before(self, step: int) -> Block:
        held = np.sort(self._step[(self._step >= 0) & (self._step < step)])
        slots = held & (len(self._step) - 1)
        popped = self._take(slots)
        self._step[slots] = -1
        self._seen[slots] = False
        if self._launched_ns is not None:
            self._launched_ns[slots] = 0
        self._finished.add(popped)
        if self._first is not None and step > self._first:
            self._first = self._popped_until = step
        return popped

    def _take(self, slots: _Int) -> Block:
        """Return a copy of some slots, with zeros where records are missing."""
        cells, seen = self._cells.take(slots, axis=0), self._seen[slots]
        if not seen.all():
            cells.view(WORDS).reshape(*seen.shape, -1)[~seen] = 0
        launched_ns = None if self._launched_ns is None else self._launched_ns[slots, :, :-1]
        return Block(self._step[slots], cells, seen, launched_ns)

    def _grow(self, capacity: int) -> None:
        held = np.flatnonzero(self._step >= 0)
        step, cells, seen, launched_ns = self._step[held], self._cells[held], self._seen[held], self._launched_ns
        self._allocate(capacity)
        slots = step & (capacity - 1)
        self._step[slots], self._cells[slots], self._seen[slots] = step, cells, seen
        if launched_ns is not None:
            self._launched_ns = np.zeros(self._seen.shape, np.int64)
            self._launched_ns[slots] = launched_ns[held]
