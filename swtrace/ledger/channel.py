"""What a delivery queues behind: the end of the previous delivery on the channel to its receiver.

============  ==========================================================================================
``serial``    one operation at a time on the communicator: the instant at which the operation before was
              ready on all its receivers
``receiver``  deliveries to other ranks do not matter: the ready of the last delivery to this receiver that
              completed before this one
``stream``    copies to one rank, one at a time, in the order of their numbers, whatever their positions: the
              ready of the copy before
============  ==========================================================================================

A device stream is ``serial``. gloo runs operations in parallel and is ``receiver``. A rank that was the source of the
previous operation received nothing from it. With ``serial``, the peers' ready instants then show when the channel was
free. With ``receiver``, nothing shows it.

Operations are numbered on their communicator. Except in a stream, the numbers are consecutive along a step's positions
and into the next step. If a number is missing, so are records, and the previous operation is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from swtrace.ledger.pending import Block, Waits

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

SERIAL, RECEIVER, STREAM = "serial", "receiver", "stream"

_NUMBERS = 0xFFFFFFFF
"""Operation numbers wrap here."""


@dataclass(frozen=True, slots=True)
class _Last:
    """The last operation on a channel: one row for all ranks (``serial``), or one for each."""

    number: _Int
    """Number of the last operation, overall or to each rank."""
    ready_ns: _Int
    known: _Bool
    since: _Int
    """Operations since the last one."""
    tail_ns: _Int
    """``[rank, position]``: ready instants of the last step's deliveries; 0 for other positions."""


class Queue(Protocol):
    """What a channel carried in some steps."""

    def before(self, waits: Waits) -> tuple[_Int, _Bool]:
        """Return the end of the previous delivery for each wait, and where it is known."""


class Channel:
    """The channel of one series. Its state is kept from one block of steps to the next.

    Args:
        kind: ``serial``, ``stream`` or ``receiver``; anything else counts as ``receiver``, which compares fewer ranks.
        ranks: Size of the group.
        layers: Number of positions.
    """

    def __init__(self, kind: str, ranks: int, layers: int) -> None:
        self.serial = kind == SERIAL
        self._stream = _Copies.none(ranks) if kind == STREAM else None
        rows = 1 if self.serial else ranks
        self._last = _Last(
            number=np.zeros(rows, np.int64),
            ready_ns=np.zeros(rows, np.int64),
            known=np.zeros(rows, np.bool_),
            since=np.zeros(rows, np.int64),
            tail_ns=np.zeros((ranks, layers), np.int64),
        )

    def carry(self, block: Block, broadcast: _Bool, own: _Bool) -> Queue:
        """Return what the channel carried in some steps.

        Args:
            block: Steps ascending, following those of the previous call; at least one.
            broadcast: ``[step, rank, position]``: a record of a broadcast is available.
            own: ``[step, rank, position]``: the rank is the source.
        """
        if self._stream is not None:
            self._stream, before = _Copies.of(block, broadcast), self._stream
            return InOrder(before.followed_by(self._stream), block)
        carried = Carried(
            serial=self.serial, block=block, broadcast=broadcast, delivery=broadcast & ~own, before=self._last
        )
        self._last = carried.last()
        return carried


@dataclass(frozen=True, slots=True)
class _Copies:
    """Copies to each rank, ``[rank, copy]``."""

    number: _Int
    ready_ns: _Int
    there: _Bool

    @classmethod
    def none(cls, ranks: int) -> Self:
        """Return no copies."""
        return cls(np.zeros((ranks, 0), np.int64), np.zeros((ranks, 0), np.int64), np.zeros((ranks, 0), np.bool_))

    @classmethod
    def of(cls, block: Block, there: _Bool) -> Self:
        """Return the copies of some steps."""

        def by_rank(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return column.transpose(1, 0, 2).reshape(column.shape[1], -1)

        return cls(by_rank(block.operation.astype(np.int64)), by_rank(block.ready_ns), by_rank(there))

    def followed_by(self, others: _Copies) -> _Copies:
        """Return these copies and the others."""
        pairs = ((getattr(self, name), getattr(others, name)) for name in ("number", "ready_ns", "there"))
        return _Copies(*(np.concatenate(pair, axis=1) for pair in pairs))


class InOrder:
    """The copies of a stream in some steps, and in the steps before them."""

    def __init__(self, copies: _Copies, block: Block) -> None:
        self._copies, self._block = copies, block

    def before(self, waits: Waits) -> tuple[_Int, _Bool]:
        """Return the end of the copy before for each wait, and where it is known.

        What the stream carried before the first recorded copy is unknown.
        """
        end, known = np.zeros(len(waits.rank), np.int64), np.zeros(len(waits.rank), np.bool_)
        for rank in np.unique(waits.rank).tolist():
            there = self._copies.there[rank]
            number, ready_ns = self._copies.number[rank][there], self._copies.ready_ns[rank][there]
            if not len(number):
                continue
            of_rank = np.flatnonzero(waits.rank == rank)
            wanted = (self._block.operation.reshape(-1)[waits.cell[of_rank]].astype(np.int64) - 1) & _NUMBERS
            order = np.argsort(number, kind="stable")
            at = order[np.minimum(np.searchsorted(number, wanted, sorter=order), len(number) - 1)]
            found = (number[at] == wanted) & (ready_ns[at] > 0)
            end[of_rank], known[of_rank] = np.where(found, ready_ns[at], 0), found
        return end, known


class Carried:
    """Operations of a channel in some steps, and the last one before them.

    Columns are ``[step, row, position]``, with one row for all ranks (``serial``) or one for each.
    """

    def __init__(self, *, serial: bool, block: Block, broadcast: _Bool, delivery: _Bool, before: _Last) -> None:
        self._serial, self._block, self._delivery, self._before = serial, block, delivery, before
        self._there: _Bool
        self._expected: _Bool
        self._number: npt.NDArray[Any]
        self._ready_ns: _Int
        if serial:
            self._there = np.asarray(broadcast.any(axis=1, keepdims=True), np.bool_)
            self._expected = self._there | ~block.present.any(axis=1, keepdims=True)
            self._number = np.where(broadcast, block.operation, 0).max(axis=1, keepdims=True)
            ready_ns = np.where(delivery, block.ready_ns, 0).max(axis=1, keepdims=True)
            everywhere = (broadcast & (~delivery | (block.ready_ns > 0))).all(axis=1, keepdims=True)
            self._ready_ns = np.where(everywhere, ready_ns, 0)
        else:
            self._there, self._expected = broadcast, delivery | ~block.present
            self._number, self._ready_ns = block.operation, block.ready_ns

    @cached_property
    def _by_row(self) -> _Bool:
        """``[row, operation]``: operations that others may queue behind, including those whose records are missing."""
        return np.asarray(self._expected.transpose(1, 0, 2).reshape(self._expected.shape[1], -1), np.bool_)

    def _latest(self) -> _Int:
        """Return the latest operation to queue behind, ``[row, operation]``; -1 where it is not in these steps."""
        rows, operations = self._by_row.shape
        latest = np.full((rows, operations + 1), -1, np.int64)
        np.maximum.accumulate(np.where(self._by_row, np.arange(operations), -1), axis=1, out=latest[:, 1:])
        return latest

    def last(self) -> _Last:
        """Return the last operation as of the end of these steps."""
        before, (steps, rows, layers) = self._before, self._expected.shape
        operations = steps * layers
        behind = self._by_row[:, ::-1].argmax(axis=1)
        some = self._by_row[np.arange(rows), operations - 1 - behind]
        step, position = np.divmod(operations - 1 - behind, layers)
        at = (step, np.arange(rows), position)
        return _Last(
            np.where(some, self._number[at], before.number),
            np.where(some, self._ready_ns[at], before.ready_ns),
            np.where(some, self._there[at] & (self._ready_ns[at] > 0), before.known),
            np.where(some, behind, operations + before.since),
            before.tail_ns if self._serial else self._block.ready_ns[-1] * self._delivery[-1],
        )

    def before(self, waits: Waits) -> tuple[_Int, _Bool]:
        """Return the end of the previous delivery for each wait, and where it is known.

        The end is 0 where nothing was carried before.
        """
        if self._serial:
            # The answer is the same for all ranks: compute it once per operation.
            operations = Waits.where(np.ones_like(self._there))
            of_all = self._follow(operations.step, operations.rank, operations.position)
            end, known = (column[waits.step * self._there.shape[2] + waits.position] for column in of_all)
            return end, known
        end, known = self._follow(waits.step, waits.rank, waits.position)
        # Deliveries rarely overtake each other.
        if self._overtaken.any():
            which = np.flatnonzero(self._overtaken.reshape(-1)[waits.row])
            by_time = self._by_time()[waits.row[which], waits.position[which]]
            end[which] = np.where(known[which], by_time, 0)
        return end, known

    def _follow(self, step: _Int, row: _Int, position: _Int) -> tuple[_Int, _Bool]:
        """Return the ready instant of the last expected operation before each one, and where it is known."""
        before, (steps, rows, layers) = self._before, self._expected.shape
        operation = step * layers + position
        previous = self._latest().reshape(-1)[row * (steps * layers + 1) + operation]
        inside = previous >= 0
        # Others are preceded by the last operation before these steps.
        step_before = previous // layers
        at = (step_before * rows + row) * layers + (previous - step_before * layers)
        at[~inside] = 0
        cell = (step * rows + row) * layers + position
        ready_ns = self._ready_ns.reshape(-1)[at]
        there, number = self._there.reshape(-1), self._number.reshape(-1)
        distance = operation - previous
        number_before, known_before = number[at].astype(np.int64), there[at] & (ready_ns > 0)
        if not inside.all():
            of_row = row[~inside]
            distance[~inside] = operation[~inside] + 1 + before.since[of_row]
            number_before[~inside], known_before[~inside] = before.number[of_row], before.known[of_row]
            ready_ns[~inside] = before.ready_ns[of_row]
        number_now, there_now = number[cell].astype(np.int64), there[cell]
        known = there_now & known_before & (((number_now - number_before) & _NUMBERS) == distance)
        # Nothing precedes operation 0, nor the first delivery to a rank that was the source of all earlier operations.
        first = there_now & ~known & (self._block.step[step] <= 1) & (number_now < distance)
        return np.where(known, ready_ns, 0), np.asarray(known | first, np.bool_)

    @cached_property
    def _deliveries_ns(self) -> _Int:
        """``[1 + step, rank, position]``: ready instants of deliveries, starting with the step before; 0 elsewhere."""
        return np.concatenate((self._before.tail_ns[np.newaxis], self._block.ready_ns * self._delivery))

    @cached_property
    def _overtaken(self) -> _Bool:
        """``[step, rank]``: in this step or the one before, a delivery overtook one that was issued earlier."""
        ready = self._deliveries_ns
        highest = np.maximum.accumulate(ready, axis=2)
        disordered = np.asarray(((ready > 0) & (ready < highest)).any(axis=2), np.bool_)
        lowest = np.where(ready > 0, ready, np.iinfo(np.int64).max).min(axis=2)
        return np.asarray(disordered[1:] | disordered[:-1] | (lowest[1:] < highest[:-1, :, -1]), np.bool_)

    def _by_time(self) -> _Int:
        """Return the ready instant of the delivery that completed before, ``[step and rank, position]``.

        Only rows with overtaking have values. Deliveries of a step and the one before are sorted by ready instant,
        because a delivery does not queue behind one that completes later.
        """
        ready = self._deliveries_ns
        layers = ready.shape[2]
        rows = np.flatnonzero(self._overtaken)
        both = np.concatenate((ready[:-1], ready[1:]), axis=2).reshape(-1, 2 * layers)[rows]
        order = np.argsort(both, axis=1, kind="stable")
        ordered = np.take_along_axis(both, order, axis=1)
        ordered[:, 1:] = ordered[:, :-1].copy()
        ordered[:, 0] = 0
        by_time = np.empty_like(both)
        np.put_along_axis(by_time, order, ordered, axis=1)
        all_rows = np.zeros((self._overtaken.size, layers), np.int64)
        all_rows[rows] = by_time[:, layers:]
        return all_rows
