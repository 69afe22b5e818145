"""The critical path of a step: which stretch of which rank, or of the channel, the step's end waited for.

The split of a stall by cause is proximate: a peer that issued late was often late only because it
had been held up itself. So the path is walked back from the end of the rank that ended last. On a
rank, it runs back through compute to the latest wait that stalled; from there over the wake and the
transfer to whatever the transfer waited for: the rank that issued last, or the delivery that the channel
carried before, and on from there, to the first position.

The walk stands at one moment, which only moves back, and every part is a difference of two moments: so the parts
sum up to the step whatever the instants are.

A stretch of compute on the path has an excess: what it took beyond the other ranks' median for the
same stretch, negative where it took less. (Counting only what is above would charge every rank that
stays on the path for its noise.) Every step of a batch is walked at once: one pass over the
positions, last to first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CriticalPath
from swtrace.ledger.pending import Block
from swtrace.ledger.step import Derived

_Int = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Walk:
    """Where each step's walk stands: on a rank at a time, or on the channel at an operation."""

    rank: _Int
    at: _Int
    """Position of the wait or operation to look at next; -1 at the entry, -2 when done."""
    on_channel: npt.NDArray[np.bool_]
    until: _Int
    """``[step, rank]``: the instant the current stretch ends, had it run on that rank."""
    moment: _Int
    """``[step]``: the instant the walk has come back to."""
    first_arrival: _Int
    """``[step]``: where it ends."""
    compute: _Int
    excess: _Int
    entry: _Int
    transfer: _Int
    wake: _Int

    def back_to(self, rows: npt.NDArray[np.intp], instant: _Int) -> _Int:
        """Move some steps' walks back to an instant, as far as it is back and in the step; return by how much."""
        moment = np.maximum(self.first_arrival[rows], np.minimum(self.moment[rows], instant))
        moved = self.moment[rows] - moment
        self.moment[rows] = moment
        return np.asarray(moved, np.int64)


def critical_paths(
    block: Block, derived: Derived, *, prefetch_step: int, epsilon_ns: int, serial: bool
) -> list[CriticalPath]:
    """Return the critical path of each step of a block whose steps are complete and not aborted."""
    steps, ranks, layers = block.present.shape
    row = np.arange(steps)
    last = block.end_ns.argmax(axis=1)
    first_arrival = block.arrival_ns.min(axis=1)
    walk = _Walk(
        rank=last.copy(),
        at=np.full(steps, layers - 1, np.int64),
        on_channel=np.zeros(steps, np.bool_),
        until=block.end_ns.copy(),
        moment=block.end_ns[row, last],
        first_arrival=first_arrival,
        compute=np.zeros((steps, ranks), np.int64),
        excess=np.zeros((steps, ranks), np.int64),
        entry=np.zeros((steps, ranks), np.int64),
        transfer=np.zeros(steps, np.int64),
        wake=np.zeros(steps, np.int64),
    )
    for position in range(layers - 1, -1, -1):
        _leave_rank(walk, block, derived, position, epsilon_ns)
        _leave_channel(walk, block, derived, position, prefetch_step, serial=serial)
    entered = np.flatnonzero(walk.at == -1)
    _compute(walk, entered, block.arrival_ns[entered])
    walk.entry[entered, walk.rank[entered]] += walk.back_to(entered, first_arrival[entered])
    return [
        CriticalPath(
            last_rank=int(last[i]),
            compute_ns=walk.compute[i],
            excess_ns=walk.excess[i],
            entry_ns=walk.entry[i],
            transfer_ns=int(walk.transfer[i]),
            wake_ns=int(walk.wake[i]),
            length_ns=int(block.end_ns[i, last[i]] - first_arrival[i]),
        )
        for i in range(steps)
    ]


def _compute(walk: _Walk, rows: npt.NDArray[np.intp], since: _Int) -> None:
    """Account the stretch from ``since`` (``[row, rank]``) to where the walk stands, on the walk's rank."""
    rank = walk.rank[rows]
    own = walk.back_to(rows, since[np.arange(len(rows)), rank])
    took = np.maximum(0, walk.until[rows] - since)
    others = np.sort(
        took[np.arange(took.shape[1]) != rank[:, np.newaxis]].reshape(len(rows), took.shape[1] - 1), axis=1
    )
    middle = others.shape[1]
    walk.compute[rows, rank] += own
    walk.excess[rows, rank] += own - (others[:, (middle - 1) // 2] + others[:, middle // 2]) // 2


def _leave_rank(walk: _Walk, block: Block, derived: Derived, position: int, epsilon_ns: int) -> None:
    """Walk the steps that are on a rank back over its wait at ``position``."""
    rows = np.flatnonzero((walk.at == position) & ~walk.on_channel)
    if not len(rows):
        return
    _compute(walk, rows, block.wait_end_ns[rows, :, position])
    rank = walk.rank[rows]
    begin = block.wait_begin_ns[rows, rank, position]
    stalled = derived.stall_ns[rows, rank, position] >= epsilon_ns
    ready = np.where(stalled, block.ready_ns[rows, rank, position], begin)
    walk.wake[rows] += walk.back_to(rows, ready)
    walk.on_channel[rows] = stalled
    ran = rows[~stalled]
    walk.until[ran] = block.wait_begin_ns[ran, :, position]
    walk.at[ran] = position - 1


def _leave_channel(
    walk: _Walk, block: Block, derived: Derived, position: int, prefetch_step: int, *, serial: bool
) -> None:
    """Walk the steps that are on the channel back over the delivery at ``position``."""
    rows = np.flatnonzero((walk.at == position) & walk.on_channel)
    if not len(rows):
        return
    known = derived.attributed[rows, walk.rank[rows], position]
    if not known.all():
        unknown = rows[~known]
        walk.transfer[unknown] += walk.back_to(unknown, walk.first_arrival[unknown])
        walk.at[unknown] = -2
        rows = rows[known]
    rank = walk.rank[rows]
    issued = derived.last_issue_ns[rows, rank, position]
    before = derived.before_ns[rows, rank, position]
    queued = before > issued
    if queued.any():
        behind_rank, behind_position = _behind(block, derived, rows, rank, position, serial=serial)
        # What was issued later and overtook it is not followed: the walk has passed its position.
        queued &= behind_position < position
        behind, at = rows[queued], behind_position[queued]
        walk.transfer[behind] += walk.back_to(behind, before[queued])
        walk.rank[behind], walk.at[behind] = behind_rank[queued], at
        # Behind a delivery of the step before: the channel was busy since this step began.
        earlier = behind[at < 0]
        walk.transfer[earlier] += walk.back_to(earlier, walk.first_arrival[earlier])
        walk.at[earlier] = -2

    moved = rows[~queued]
    walk.transfer[moved] += walk.back_to(moved, issued[~queued])
    late = derived.late_rank[moved, rank[~queued], position]
    reached = position - prefetch_step
    if reached < 0:  # issued in the step before: the path leaves this step
        walk.entry[moved, late] += walk.back_to(moved, walk.first_arrival[moved])
        walk.at[moved] = -2
        return
    walk.rank[moved] = late
    walk.until[moved] = block.issued_ns[moved, :, position]
    walk.on_channel[moved] = False
    walk.at[moved] = reached - 1


def _behind(
    block: Block, derived: Derived, rows: npt.NDArray[np.intp], walk_rank: _Int, position: int, *, serial: bool
) -> tuple[_Int, _Int]:
    """Return rank and position of the delivery behind which each one at ``position`` queued; -1: of another step."""
    before = derived.before_ns[rows, walk_rank, position]
    rank, at = walk_rank.copy(), np.full(len(rows), -1, np.int64)
    if serial:
        if position > 0:
            ready = np.where(derived.receiver[rows, :, position - 1], block.ready_ns[rows, :, position - 1], 0)
            rank = ready.argmax(axis=1)
            at = np.where(ready.max(axis=1) == before, position - 1, -1)
        return rank, at
    there = derived.receiver[rows, rank] & (block.ready_ns[rows, rank] == before[:, np.newaxis])
    there[:, position] = False
    return rank, np.where(there.any(axis=1), there.argmax(axis=1), -1)
