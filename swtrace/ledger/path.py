"""The critical path of a step: the stretches of ranks and of the channel that determined when the step ended.

The split of a stall by cause is proximate: a peer often issues late only because it stalled itself. So this
module walks the path back from the end of the rank that ended last. On a rank, the walk goes back through compute to
the latest wait that stalled, then over the wake and the transfer. From there it goes to what the transfer waited for:
the rank that issued last, or the previous delivery on the channel. It repeats this until the first position.

The walk keeps one current instant, which only moves back. It measures every part as the difference of two successive
values of that instant. So the parts always sum to the length of the step.

A stretch of compute on the path has an excess: the time beyond the other ranks' median for the same stretch. It is
negative if the stretch was faster. Negative excess counts too; otherwise the noise of every rank on the path would
add up to a positive excess.

All steps are walked at once, in two passes. The first finds the stops of each walk, from wait to wait and over the
channel. The second computes the parts between the stops, as columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CriticalPath

if TYPE_CHECKING:
    from swtrace.ledger.alignment import Alignment
    from swtrace.ledger.step import Steps

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

_TRANSFER, _WAKE, _COMPUTE, _ENTRY = range(4)
"""Kinds of path parts."""
_HOPS = 4
"""Number of hops between checks whether all walks have ended or wait for a delivery to be found."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The critical paths of some steps, ``[step]`` or ``[step, rank]``; zeros for a step without one."""

    known: _Bool
    last_rank: _Int
    compute_ns: _Int
    excess_ns: _Int
    entry_ns: _Int
    entry_bound_ns: _Int
    transfer_ns: _Int
    wake_ns: _Int
    length_ns: _Int

    def path(self, row: int) -> CriticalPath | None:
        """Return the critical path of a step, or None."""
        if not self.known[row]:
            return None
        return CriticalPath(
            last_rank=int(self.last_rank[row]),
            compute_ns=self.compute_ns[row],
            excess_ns=self.excess_ns[row],
            entry_ns=self.entry_ns[row],
            entry_bound_ns=int(self.entry_bound_ns[row]),
            transfer_ns=int(self.transfer_ns[row]),
            wake_ns=int(self.wake_ns[row]),
            length_ns=int(self.length_ns[row]),
        )


def critical_paths(
    steps: Steps, known: _Bool, alignment: Alignment, *, prefetch_step: int, stalled: _Bool, serial: bool
) -> Paths:
    """Return the critical paths of steps.

    Args:
        steps: Finished steps.
        known: ``[step]``: the step has a path; it is complete and was not aborted.
        alignment: How the clocks of the ranks were aligned.
        prefetch_step: k.
        stalled: ``[step, rank, position]``: the wait stalled long enough for the path to follow it.
        serial: The channel carries one operation at a time.
    """
    count, ranks, _ = steps.receiver.shape
    paths = Paths(
        known,
        *(np.zeros(shape, np.int64) for shape in ((count,), *[(count, ranks)] * 3, *[(count,)] * 4)),
    )
    row = np.flatnonzero(known)
    if len(row):
        walk = _Walk(steps, prefetch_step, stalled, serial=serial)
        last = steps.block.end_ns[row].argmax(axis=1)
        stops = walk.stops(row, last)
        parts, excess = walk.parts(row, last, stops)
        paths.last_rank[row] = last
        paths.compute_ns[row], paths.entry_ns[row] = parts[:, _COMPUTE], parts[:, _ENTRY]
        if alignment.clock.any():
            paths.entry_bound_ns[row] = _entry_bound_ns(alignment, row, parts[:, _ENTRY])
        paths.transfer_ns[row], paths.wake_ns[row] = parts[:, _TRANSFER].sum(axis=1), parts[:, _WAKE].sum(axis=1)
        paths.excess_ns[row] = excess
        paths.length_ns[row] = steps.block.end_ns[row, last] - steps.block.arrival_ns[row].min(axis=1)
    return paths


def _entry_bound_ns(alignment: Alignment, row: _Int, entry_ns: _Int) -> _Int:
    """Return the largest error of the late entry, ``[step, rank]``, of each path, whichever rank was the first."""
    arrival, first = alignment.block.arrival_ns[row], alignment.block.arrival_ns[row].argmin(axis=1)
    each, shown = np.arange(len(row)), entry_ns.max(axis=1)
    rank = np.where(shown > 0, entry_ns.argmax(axis=1), first)
    begin = np.maximum(arrival[each, first] + shown, arrival[each, rank])
    after = begin[:, np.newaxis] - arrival
    bound = alignment.between_ns(row[:, np.newaxis], rank[:, np.newaxis], np.arange(arrival.shape[1]))
    return np.asarray(np.maximum((after + bound).max(axis=1) - shown, shown - (after - bound).max(axis=1)), np.int64)


class _Walk:
    """The stops of a walk, numbered consecutively.

    First come the waits, ``[step, rank, position]``, then the deliveries in the same order, then each rank's entry
    into each step. The last number is the end of every walk.
    """

    def __init__(self, steps: Steps, prefetch_step: int, stalled: _Bool, *, serial: bool) -> None:
        self._steps, self._k, self._stalled, self._serial = steps, prefetch_step, stalled, serial
        self._shape = stalled.shape
        self._entries = 2 * stalled.size
        self._end = self._entries + stalled.shape[0] * stalled.shape[1]
        self._queued = steps.before_ns > steps.last_issue_ns

    def stops(self, row: _Int, last: _Int) -> _Int:
        """Return the stops of each step's walk, ``[stop, step]``, until all walks end. Some stops appear twice.

        Args:
            row: The steps to walk.
            last: The rank that ended last, for each step.
        """
        layers = self._shape[2]
        following = self._following()
        stop = (row * self._shape[1] + last) * layers + layers - 1
        stops: list[_Int] = []
        while True:
            for _ in range(_HOPS):
                stops.append(stop)
                stop = following[stop]
            stays = following[stop] == stop
            waiting = stop[stays & (stop < self._end)]
            if len(waiting):
                following[waiting] = self._behind(waiting - self._stalled.size)
            elif stays.all():
                return np.array(stops)

    def _following(self) -> _Int:
        """Return the stop after each stop. A delivery points to itself until what it queued behind is found."""
        steps, (count, ranks, layers) = self._steps, self._shape
        cell: npt.NDArray[np.int64] = np.arange(self._stalled.size).reshape(self._shape)
        entry = self._entries + cell[:, :, 0] // layers
        before = cell - 1
        before[:, :, 0] = entry
        of_waits = np.where(self._stalled, self._stalled.size + cell, before)
        # A delivery that did not queue leads to the rank that issued last, to its wait before the reach.
        k = self._k
        issued_at = np.full(self._shape, self._end, np.int64)
        late = steps.last_rank[:, :, k:].astype(np.int64)
        issuer = np.arange(0, count * ranks, ranks)[:, np.newaxis, np.newaxis] + late
        issued_at[:, :, k:] = issuer * layers + np.arange(-1, layers - 1 - k)
        issued_at[:, :, k : k + 1] = self._entries + issuer[:, :, :1]
        queue = self._one_behind() if self._serial else self._stalled.size + cell
        self._issued_at = issued_at
        of_deliveries = np.where(self._queued, queue, issued_at)
        of_deliveries[~steps.attributed] = self._end
        return np.concatenate((of_waits, of_deliveries, np.full_like(entry, self._end), [self._end]), axis=None)

    def _one_behind(self) -> _Int:
        """Return the previous operation's latest delivery for each delivery; the end if it is in another step."""
        steps, (_, ranks, layers) = self._steps, self._shape
        ready = steps.block.ready_ns * steps.receiver
        latest, rank = ready.max(axis=1)[:, np.newaxis, :-1], ready.argmax(axis=1)
        at = (np.arange(len(rank))[:, np.newaxis] * ranks + rank) * layers + np.arange(layers)
        one = np.full(self._shape, self._end, np.int64)
        behind = (self._stalled.size + at)[:, np.newaxis, :-1]
        one[:, :, 1:] = np.where(latest == steps.before_ns[:, :, 1:], behind, self._end)
        return one

    def _behind(self, cell: _Int) -> _Int:
        """Return the stop after each of these deliveries, which queued behind another one to the same rank."""
        steps, layers = self._steps, self._shape[2]
        position = cell % layers
        row = cell // layers
        before = steps.before_ns.reshape(-1)[cell]
        there = steps.receiver.reshape(-1, layers)[row] & (
            steps.block.ready_ns.reshape(-1, layers)[row] == before[:, np.newaxis]
        )
        there[np.arange(len(cell)), position] = False
        first = there.argmax(axis=1)
        behind = np.where(there.any(axis=1), self._stalled.size + row * layers + first, self._end)
        # A delivery that was issued later and overtook this one is not followed.
        overtook = (behind < self._end) & (first > position)
        self._queued.reshape(-1)[cell[overtook]] = False
        return np.where(overtook, self._issued_at.reshape(-1)[cell], behind)

    def parts(self, row: _Int, last: _Int, stops: _Int) -> tuple[_Int, _Int]:
        """Return the parts of the walks, ``[step, part, rank]``, and the excess of their compute, ``[step, rank]``.

        Each stop moves a walk back to one or two instants, if these are earlier and inside the step.
        """
        steps, block, (_, ranks, layers) = self._steps, self._steps.block, self._shape
        size, waits = self._stalled.size, stops < self._stalled.size
        deliveries = ~waits & (stops < self._entries)
        entries = ~waits & ~deliveries & (stops < self._end)
        cell = np.where(deliveries, stops - size, stops)
        cell[~waits & ~deliveries] = 0
        enters = np.where(entries, stops - self._entries, 0)
        rank = np.where(entries, enters, cell // layers) % ranks
        first = block.arrival_ns[row].min(axis=1)
        never = np.iinfo(np.int64).max

        def of(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.asarray(column.reshape(-1)[cell])

        ends = np.concatenate((stops[1:], np.full((1, len(row)), self._end))) == self._end
        attributed, queued = of(steps.attributed), of(self._queued)
        arrived = block.arrival_ns.reshape(-1)[enters]
        came_from = np.where(attributed, np.where(queued, of(steps.before_ns), of(steps.last_issue_ns)), first)
        held_from = np.where(of(self._stalled), of(block.ready_ns), of(block.wait_begin_ns))
        one = np.where(waits, of(block.wait_end_ns), np.where(deliveries, came_from, np.where(entries, arrived, never)))
        leaves = entries | (deliveries & attributed & ends)
        two = np.where(waits, held_from, np.where(leaves, first, never))
        instants = np.stack((one, two), axis=1).reshape(-1, len(row))
        moment = block.end_ns[row, last]
        back = np.minimum(np.minimum.accumulate(instants, axis=0), moment)
        moved = -np.diff(np.maximum(first, back), axis=0, prepend=moment[np.newaxis])
        moved_one, moved_two = moved.reshape(len(stops), 2, -1).transpose(1, 0, 2)
        parts = np.zeros((len(row), 4, ranks), np.int64)
        walk = np.broadcast_to(np.arange(len(row)), stops.shape)
        np.add.at(parts, (walk, np.where(deliveries, _TRANSFER, _COMPUTE), rank), moved_one)
        entered_by = np.where(deliveries & ~queued, of(steps.last_rank), rank)
        second = np.where(waits, _WAKE, np.where(deliveries & queued, _TRANSFER, _ENTRY))
        np.add.at(parts, (walk, second, entered_by), moved_two)

        excess = np.zeros((len(row), ranks), np.int64)
        computes = waits | entries
        if ranks > 1:
            took = self._others_median(row, stops, computes, cell, rank)
            np.add.at(excess, (walk[computes], rank[computes]), moved_one[computes] - took)
        return parts, excess

    def _others_median(self, row: _Int, stops: _Int, computes: _Bool, cell: _Int, rank: _Int) -> _Int:
        """Return the other ranks' median for each stretch of compute before a stop."""
        block, (_, ranks, layers) = self._steps.block, self._shape
        which, walk = np.nonzero(computes)
        step, come = row[walk], which > 0
        # For each stop and the stop before it: the cells of all ranks at its position.
        of_all = np.arange(0, ranks * layers, layers)
        position, before = cell[which, walk] % layers, cell[which - come, walk] % layers
        at = (step * (ranks * layers) + position)[:, np.newaxis] + of_all
        since = block.wait_end_ns.reshape(-1)[at]
        entered = stops[which, walk] >= self._stalled.size
        since[entered] = block.arrival_ns[step[entered]]
        issued = stops[which - come, walk] >= self._stalled.size
        at += (before - position + issued * self._stalled.size)[:, np.newaxis]
        until = np.concatenate((block.wait_begin_ns, block.issued_ns), axis=None)[at]
        until[~come] = block.end_ns[step[~come]]
        took = np.maximum(0, until - since)
        took[np.arange(len(took)), rank[which, walk]] = np.iinfo(np.int64).max
        middle = ((ranks - 2) // 2, (ranks - 1) // 2)
        others = np.partition(took, middle, axis=1)
        return np.asarray((others[:, middle[0]] + others[:, middle[1]]) // 2, np.int64)
