"""Every formula of a shared-weight series, in one place, over blocks of steps at once.

The consumer's side needs one rank only: stall, wake, slack, on time. The channel's side compares
ranks: last issue, backlog, transfer, cause. All arrays are ``[step, rank, position]``.

===============  =====================================================================
stall            ``max(0, ready - wait begin)``
wake             ``wait end - max(ready, wait begin)``
slack            ``max(0, wait begin - ready)``
last issue       the instant from which the broadcast could move (see below)
R                the latest receiver's ready
R_prev           R of the previous operation on the same communicator
backlog          ``max(0, R_prev - last issue)``
transfer         ``R - max(last issue, R_prev)``
===============  =====================================================================

Whose issues the last issue is the last of, depends on the transport
(:mod:`~swtrace.ledger.rendezvous`). A source never waits: stall, slack and on time are facts about
receivers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import CAUSES, Cause
from swtrace.ledger.pending import Block
from swtrace.ledger.rendezvous import Rendezvous
from swtrace.trace.schema import TransferFlag

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

_ENTRY, _SKEW, _BACKLOG, _TRANSFER, _UNATTRIBUTED = (
    CAUSES.index(cause) for cause in (Cause.ENTRY_SKEW, Cause.SKEW, Cause.BACKLOG, Cause.TRANSFER, Cause.UNATTRIBUTED)
)


@dataclass(slots=True)
class Channel:
    """What carries over from one block to the next: the last operation's number and its R."""

    operation: int = -1
    ready_ns: int = 0
    known: bool = False


@dataclass(frozen=True, slots=True)
class Derived:
    """Facts computed from a block; ``[step, rank, position]``, causes ``[step, cause, rank, position]``."""

    receiver: _Bool
    stall_ns: _Int
    wake_ns: _Int
    slack_ns: _Int
    on_time: _Bool
    attributed: _Bool
    last_issue_ns: _Int
    late_rank: npt.NDArray[np.int32]
    previous_ready_ns: _Int
    """``[step, position]``: R_prev."""
    backlog_ns: _Int
    transfer_ns: _Int
    cause_ns: _Int
    entry_skew_ns: _Int
    """``[step, rank]``"""

    def take(self, rows: npt.NDArray[np.intp]) -> Derived:
        """Return the facts of some of the steps."""
        return Derived(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def derive(
    block: Block,
    *,
    rendezvous: Rendezvous,
    comparable: bool,
    epsilon_ns: int,
    channel: Channel,
) -> Derived:
    """Compute all facts of a block.

    Args:
        block: Raw columns, steps ascending.
        rendezvous: From when an operation can move.
        comparable: Whether all ranks' instants are of one clock.
        epsilon_ns: A wait is on time if its stall is below this.
        channel: The last operation of the block before; updated.
    """
    flags = block.flags
    own = _flagged(flags, TransferFlag.OWN)
    prefilled = _flagged(flags, TransferFlag.PREFILLED)
    unwaited = _flagged(flags, TransferFlag.UNWAITED | TransferFlag.OPEN)
    receiver = block.present & ~own & ~prefilled & ~unwaited
    begin, end, ready = block.wait_begin_ns, block.wait_end_ns, block.ready_ns

    stall = np.where(receiver, np.maximum(0, ready - begin), 0)
    wake = np.where(receiver, np.maximum(0, end - np.maximum(ready, begin)), 0)
    slack = np.where(receiver, np.maximum(0, begin - ready), 0)
    on_time = receiver & (stall < epsilon_ns)

    broadcast = block.present & ~prefilled
    last_issue, late = rendezvous.last_issue(block.issued_ns)
    previous_ready, previous_known = _previous_ready(block, broadcast & ~own, broadcast, channel)
    everyone_known = broadcast.all(axis=1, keepdims=True)
    attributed = receiver & everyone_known & previous_known[:, np.newaxis, :] & comparable

    before = previous_ready[:, np.newaxis, :]
    latest = _latest_ready(block, broadcast & ~own)[:, np.newaxis, :]
    backlog = np.where(attributed, np.maximum(0, before - last_issue), 0)
    transfer = np.where(attributed, np.maximum(0, latest - np.maximum(last_issue, before)), 0)

    arrived = np.where(block.ended, block.arrival_ns, np.iinfo(np.int64).max)
    entry = np.where(block.ended, block.arrival_ns - arrived.min(axis=1, keepdims=True), 0)
    return Derived(
        receiver=receiver,
        stall_ns=stall,
        wake_ns=wake,
        slack_ns=slack,
        on_time=on_time,
        attributed=attributed,
        last_issue_ns=np.where(attributed, last_issue, 0),
        late_rank=np.where(attributed, late, -1).astype(np.int32),
        previous_ready_ns=previous_ready,
        backlog_ns=backlog,
        transfer_ns=transfer,
        cause_ns=_causes(block, stall, attributed, last_issue, late, before),
        entry_skew_ns=entry if comparable else np.zeros_like(entry),
    )


def _flagged(flags: npt.NDArray[np.uint8], flag: int) -> _Bool:
    return np.asarray((flags & np.uint8(flag)) != 0, np.bool_)


def _latest_ready(block: Block, receivers: _Bool) -> _Int:
    """Return R, ``[step, position]``: 0 where no receiver's ready is known."""
    return np.asarray(np.where(receivers, block.ready_ns, 0).max(axis=1), np.int64)


def _previous_ready(block: Block, receivers: _Bool, broadcast: _Bool, channel: Channel) -> tuple[_Int, _Bool]:
    """Return R_prev and where it is known, ``[step, position]``, and move ``channel`` on.

    Operations are numbered on their communicator; along a step's positions and over to the next step the numbers
    follow each other unless records are missing. Operation 0 has no predecessor: its R_prev is 0.
    """
    steps, _, layers = block.present.shape
    any_rank = broadcast.any(axis=1).ravel()
    number = np.where(broadcast, block.operation, 0).max(axis=1).astype(np.int64).ravel()
    ready = _latest_ready(block, receivers).ravel()
    ready_known = (broadcast & (~receivers | (block.ready_ns > 0))).all(axis=1).ravel()

    before_ready = np.concatenate(([channel.ready_ns], ready[:-1]))
    before_number = np.concatenate(([channel.operation], number[:-1]))
    before_known = np.concatenate(([channel.known], ready_known[:-1]))
    follows = ((number - before_number) & 0xFFFFFFFF) == 1
    first = any_rank & (number == 0) & ~(before_known & follows)
    if len(number) and any_rank[-1]:
        channel.operation, channel.ready_ns, channel.known = int(number[-1]), int(ready[-1]), bool(ready_known[-1])
    elif len(number):
        channel.known = False
    known = any_rank & ((before_known & follows) | first)
    previous = np.where(first | ~known, 0, before_ready)
    return previous.reshape(steps, layers), known.reshape(steps, layers)


def _causes(
    block: Block, stall: _Int, attributed: _Bool, last_issue: _Int, late: npt.NDArray[np.int64], before: _Int
) -> _Int:
    """Split ``[wait begin, ready]`` of every wait: skew up to the last issue, then backlog, then transfer.

    Of the skew, what the late rank's later entry into the step explains is entry skew, as far as earlier stalls
    of this step have not already evened it out. An operation issued in the step before is no matter of entry.
    """
    begin = block.wait_begin_ns
    ready = begin + stall
    issued = np.clip(last_issue, begin, ready)
    queued = np.clip(np.maximum(last_issue, before), issued, ready)
    skew = issued - begin
    crosses = _flagged(block.flags, TransferFlag.CROSSES_STEPS)
    steps = np.arange(stall.shape[0])[:, np.newaxis, np.newaxis]
    lead = block.arrival_ns[steps, late] - block.arrival_ns[:, :, np.newaxis]
    both_arrived = block.ended[steps, late] & block.ended[:, :, np.newaxis]
    evened_out = np.cumsum(stall, axis=2) - stall
    entry = np.where(both_arrived & ~crosses, np.clip(lead - evened_out, 0, skew), 0)

    cause = np.zeros((stall.shape[0], len(CAUSES), *stall.shape[1:]), np.int64)
    cause[:, _ENTRY] = np.where(attributed, entry, 0)
    cause[:, _SKEW] = np.where(attributed, skew - entry, 0)
    cause[:, _BACKLOG] = np.where(attributed, queued - issued, 0)
    cause[:, _TRANSFER] = np.where(attributed, ready - queued, 0)
    cause[:, _UNATTRIBUTED] = np.where(attributed, 0, stall)
    return cause
