"""What a delivery queues behind: the end of what the channel carried to its receiver before.

============  ==========================================================================================
``serial``    one operation at a time on the communicator: the latest receiver's ready of the operation before
``receiver``  deliveries to other ranks do not matter: the latest ready of this receiver's own deliveries
              that were there before this one
============  ==========================================================================================

An operation in a device's stream is ``serial``, gloo runs operations side by side and is ``receiver``. A rank that
was the source of the operation before received nothing from it: what it learns about the channel then is
the peers' ready (``serial``), or nothing (``receiver``).

Operations are numbered on their communicator. Along a step's positions and over to the next step the numbers
follow each other; where they do not, records are missing, and what came before is not known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from swtrace.ledger.pending import Block

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

SERIAL, RECEIVER = "serial", "receiver"

_NUMBERS = 0xFFFFFFFF
"""Operation numbers wrap here."""


class Channel:
    """The channel of one series. It carries over from one block of steps to the next.

    Args:
        kind: ``serial`` or ``receiver``; anything else is taken as ``receiver``, which compares fewer ranks.
        ranks: Size of the group.
        layers: Number of positions.
    """

    def __init__(self, kind: str, ranks: int, layers: int) -> None:
        self.serial = kind == SERIAL
        rows = 1 if self.serial else ranks
        self._number = np.zeros(rows, np.int64)
        """Of the last operation (``serial``), or of the last one to each rank."""
        self._ready_ns = np.zeros(rows, np.int64)
        self._known = np.zeros(rows, np.bool_)
        self._since = np.zeros(rows, np.int64)
        """Operations since that one."""
        self._tail_ns = np.zeros((ranks, layers), np.int64)
        """Ready instants of the last step's deliveries; 0 for other positions."""

    def before(self, block: Block, broadcast: _Bool, own: _Bool) -> tuple[_Int, _Bool]:
        """Return the end of what was carried before, and where it is known, ``[step, rank, position]``.

        0 where nothing was carried before.

        Args:
            block: Steps ascending, following those of the call before.
            broadcast: ``[step, rank, position]``: a record of a broadcast is at hand.
            own: The rank is its source.
        """
        if self.serial:
            end, known = self._of_operations(block, broadcast, broadcast & ~own)
            shape = block.present.shape
            return np.broadcast_to(end[:, np.newaxis], shape), np.broadcast_to(known[:, np.newaxis], shape)
        return self._of_receivers(block, broadcast, own)

    def _of_operations(self, block: Block, broadcast: _Bool, delivery: _Bool) -> tuple[_Int, _Bool]:
        steps, _, layers = block.present.shape
        there = broadcast.any(axis=1).reshape(1, -1)
        number = np.where(broadcast, block.operation, 0).max(axis=1).reshape(1, -1).astype(np.int64)
        ready = np.where(delivery, block.ready_ns, 0).max(axis=1).reshape(1, -1)
        ready_known = (broadcast & (~delivery | (block.ready_ns > 0))).all(axis=1).reshape(1, -1)
        prefilled = block.present.any(axis=1).reshape(1, -1) & ~there
        end, known = self._follow(block, there, ~prefilled, number, np.where(ready_known, ready, 0))
        return end.reshape(steps, layers), known.reshape(steps, layers)

    def _of_receivers(self, block: Block, broadcast: _Bool, own: _Bool) -> tuple[_Int, _Bool]:
        steps, ranks, layers = block.present.shape

        def by_rank(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return column.transpose(1, 0, 2).reshape(ranks, -1)

        def by_step(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return column.reshape(ranks, steps, layers).transpose(1, 0, 2)

        delivery = broadcast & ~own
        ready = block.ready_ns * delivery
        ready_by_rank = np.asarray(by_rank(ready), np.int64)
        end, known = self._follow(
            block,
            np.asarray(by_rank(broadcast), np.bool_),
            np.asarray(by_rank(delivery | ~block.present), np.bool_),
            np.asarray(by_rank(block.operation), np.int64),
            ready_by_rank,
        )
        end, known = by_step(end), by_step(known)
        if len(block):
            # Nearly always, none overtook any other.
            deliveries = np.concatenate((self._tail_ns, ready_by_rank), axis=1)
            if ((deliveries > 0) & (deliveries < np.maximum.accumulate(deliveries, axis=1))).any():
                end = self._by_time(end, known, ready)
            self._tail_ns = ready[-1]
        return end, known

    def _follow(self, block: Block, there: _Bool, expected: _Bool, number: _Int, ready: _Int) -> tuple[_Int, _Bool]:
        """Return the ready of the last expected operation before each, and where it is known, ``[row, operation]``.

        Args:
            block: For the step numbers.
            there: A record is at hand.
            expected: Operations to look for; where no record of one is at hand, what follows it is not known.
            number: Of the operations that are there.
            ready: 0 where not known.
        """
        rows, operations = expected.shape
        if not operations:
            return np.zeros((rows, 0), np.int64), np.zeros((rows, 0), np.bool_)
        # The last one before the block stands in front.
        at = np.arange(1, operations + 1)
        looked_for = np.concatenate((np.zeros((rows, 1), np.int64), np.where(expected, at, 0)), axis=1)
        last = np.maximum.accumulate(looked_for, axis=1)
        previous = last[:, :-1]
        numbers = np.concatenate((self._number[:, np.newaxis], number), axis=1)
        instants = np.concatenate((self._ready_ns[:, np.newaxis], ready), axis=1)
        known = np.concatenate((self._known[:, np.newaxis], there & (ready > 0)), axis=1)
        distance = at - previous + np.where(previous == 0, self._since[:, np.newaxis], 0)

        flat = previous + np.arange(0, numbers.size, operations + 1)[:, np.newaxis]

        def taken(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.asarray(column.reshape(-1)[flat])

        follows = ((number - taken(numbers)) & _NUMBERS) == distance
        known_before = np.asarray(there & taken(known) & follows, np.bool_)
        # Nothing came before operation 0, nor before those of a rank that was the source of all before.
        early = np.repeat(block.step <= 1, operations // len(block))
        first = there & ~known_before & early & (number < distance)
        end = np.where(known_before, taken(instants), 0)

        row, final = np.arange(rows), last[:, -1]
        self._since = operations - final + np.where(final == 0, self._since, 0)
        self._number, self._ready_ns = numbers[row, final], instants[row, final]
        self._known = known[row, final]
        return np.asarray(end, np.int64), np.asarray(known_before | first, np.bool_)

    def _by_time(self, end: _Int, known: _Bool, ready: _Int) -> _Int:
        """Put deliveries that overtook others in the order in which they were there, within a step and the one before.

        What was there later than a delivery did not hold it up.
        """
        before = np.concatenate((self._tail_ns[np.newaxis], ready[:-1]))
        both = np.concatenate((before, ready), axis=2)
        highest = np.maximum.accumulate(both, axis=2)
        step, rank = np.nonzero(((both > 0) & (both < highest)).any(axis=2))
        if not len(step):
            return end
        layers = ready.shape[2]
        rows = both[step, rank]
        order = np.argsort(rows, axis=1, kind="stable")
        ordered = np.take_along_axis(rows, order, axis=1)
        ordered[:, 1:] = ordered[:, :-1].copy()
        ordered[:, 0] = 0
        by_time = np.empty_like(rows)
        np.put_along_axis(by_time, order, ordered, axis=1)
        end = end.copy()
        end[step, rank] = np.where(known[step, rank], by_time[:, layers:], 0)
        return end
