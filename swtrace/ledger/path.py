"""The critical path of a step: which stretch of which rank, or of the channel, the step's end waited for.

The split of a stall by cause is proximate: a peer that issued late was often late only because it
had been held up itself. So the path is walked back from the end of the rank that ended last. On a
rank, it runs back through compute to the latest wait that stalled; from there over the wake and the
transfer to whatever the transfer waited for: the rank that issued last, or the previous operation
on the channel, and on from there, to the first position.

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
    compute: _Int
    excess: _Int
    entry: _Int
    transfer: _Int
    wake: _Int


def critical_paths(block: Block, derived: Derived, *, prefetch_step: int, epsilon_ns: int) -> list[CriticalPath]:
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
        compute=np.zeros((steps, ranks), np.int64),
        excess=np.zeros((steps, ranks), np.int64),
        entry=np.zeros((steps, ranks), np.int64),
        transfer=np.zeros(steps, np.int64),
        wake=np.zeros(steps, np.int64),
    )
    for position in range(layers - 1, -1, -1):
        _leave_rank(walk, block, derived, position, epsilon_ns)
        _leave_channel(walk, block, derived, position, prefetch_step, first_arrival)
    entered = np.flatnonzero(walk.at == -1)
    _compute(walk, entered, block.arrival_ns[entered])
    rank = walk.rank[entered]
    walk.entry[entered, rank] += block.arrival_ns[entered, rank] - first_arrival[entered]
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
    took = walk.until[rows] - since
    row = np.arange(len(rows))
    own = took[row, rank]
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
    end = block.wait_end_ns[rows, rank, position]
    stalled = derived.stall_ns[rows, rank, position] >= epsilon_ns
    ready = np.where(stalled, block.ready_ns[rows, rank, position], begin)
    walk.wake[rows] += end - ready
    walk.moment[rows] = ready
    walk.on_channel[rows] = stalled
    ran = rows[~stalled]
    walk.until[ran] = block.wait_begin_ns[ran, :, position]
    walk.at[ran] = position - 1


def _leave_channel(
    walk: _Walk, block: Block, derived: Derived, position: int, prefetch_step: int, first_arrival: _Int
) -> None:
    """Walk the steps that are on the channel back over the operation at ``position``."""
    rows = np.flatnonzero((walk.at == position) & walk.on_channel)
    if not len(rows):
        return
    rank = walk.rank[rows]
    issued = derived.last_issue_ns[rows, rank, position]
    previous = derived.previous_ready_ns[rows, position]
    began = np.maximum(np.maximum(issued, previous), first_arrival[rows])
    walk.transfer[rows] += np.maximum(0, walk.moment[rows] - began)
    walk.moment[rows] = np.minimum(walk.moment[rows], began)

    queued = previous > issued
    behind = rows[queued]
    if position > 0 and len(behind):
        receivers = np.where(derived.receiver[behind, :, position - 1], block.ready_ns[behind, :, position - 1], 0)
        walk.rank[behind] = receivers.argmax(axis=1)
        known = receivers.max(axis=1) > 0
        walk.at[behind] = np.where(known, position - 1, -2)
        behind = behind[~known]
    # Behind an operation of the step before: the channel was busy since this step began.
    walk.transfer[behind] += walk.moment[behind] - first_arrival[behind]
    walk.at[behind] = -2

    moved = rows[~queued]
    late = derived.late_rank[moved, rank[~queued], position]
    reached = position - prefetch_step
    if reached < 0:  # issued in the step before: the path leaves this step
        walk.entry[moved, late] += walk.moment[moved] - first_arrival[moved]
        walk.at[moved] = -2
        return
    walk.rank[moved] = late
    walk.until[moved] = block.issued_ns[moved, :, position]
    walk.on_channel[moved] = False
    walk.at[moved] = reached - 1
