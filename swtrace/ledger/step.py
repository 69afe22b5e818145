"""Every formula of a shared-weight series, in one place, over blocks of steps at once.

The consumer's side needs one rank only: stall, wake, slack, on time. The channel's side compares
ranks: last issue, backlog, transfer, cause. All arrays are ``[step, rank, position]``; each row of the table is
about one delivery, to one receiver.

===============  =====================================================================
stall            ``max(0, ready - wait begin)``
wake             ``wait end - max(ready, wait begin)``
slack            ``max(0, wait begin - ready)``
last issue       the instant from which the broadcast could move to this receiver
before           the end of what the channel carried to this receiver before
backlog          ``max(0, before - last issue)``
transfer         ``ready - max(last issue, before)``
===============  =====================================================================

Whose issues the last issue is the last of, and what a delivery queues behind, depends on the transport
(:mod:`~swtrace.ledger.rendezvous`, :mod:`~swtrace.ledger.channel`). Where deliveries to one receiver overlap,
the time they share counts once: the sum of its transfers is how long the channel was busy for it.

A source never waits, and its own completion says nothing: all of these are facts about receivers.

Ranks are compared only where their instants can be of one clock. A broadcast that is ready before its source
issued it shows that they are not: such a step is not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from swtrace.ledger.channel import Channel
from swtrace.ledger.facts import CAUSES, Cause
from swtrace.ledger.pending import Block
from swtrace.ledger.rendezvous import Rendezvous
from swtrace.trace.schema import TransferFlag

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

_ENTRY, _SKEW, _BACKLOG, _TRANSFER, _UNATTRIBUTED = (
    CAUSES.index(cause) for cause in (Cause.ENTRY_SKEW, Cause.SKEW, Cause.BACKLOG, Cause.TRANSFER, Cause.UNATTRIBUTED)
)


CLOCK_TOLERANCE_NS = 1_000_000
"""By how much a broadcast may seem to be ready before its source issued it: device time that is mapped to host time is
some microseconds off."""


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
    before_ns: _Int
    """End of what the channel carried to this receiver before."""
    backlog_ns: _Int
    transfer_ns: _Int
    cause_ns: _Int
    entry_skew_ns: _Int
    """``[step, rank]``; 0 where it is not known."""
    comparable: _Bool
    """``[step]``: all ranks' instants can be of one clock."""
    impossible: _Bool
    """``[step, rank]``: some delivery was ready before its source issued it."""

    def take(self, rows: npt.NDArray[np.intp]) -> Derived:
        """Return the facts of some of the steps."""
        return Derived(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def derive(
    block: Block,
    *,
    rendezvous: Rendezvous,
    source: _Int,
    one_clock: bool,
    epsilon_ns: int,
    channel: Channel,
) -> Derived:
    """Compute all facts of a block.

    Args:
        block: Raw columns, steps ascending.
        rendezvous: From when an operation can move.
        source: ``[position]``, group rank that keeps the layer.
        one_clock: Whether all ranks say that their instants are of one clock.
        epsilon_ns: A wait is on time if its stall is below this.
        channel: What a delivery queues behind; moved on by this block.
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
    impossible = _before_its_issue(block, broadcast & ~own, broadcast, source)
    comparable = np.asarray(~impossible.any(axis=1) & one_clock, np.bool_)
    last_issue, late = rendezvous.last_issue(block.issued_ns)
    before, before_known = channel.before(block, broadcast, own)
    everyone_known = broadcast.all(axis=1, keepdims=True)
    attributed = receiver & everyone_known & before_known & comparable[:, np.newaxis, np.newaxis]
    before = np.where(attributed, np.minimum(before, ready), 0)

    backlog = np.where(attributed, np.maximum(0, before - last_issue), 0)
    transfer = np.where(attributed, np.maximum(0, ready - np.maximum(last_issue, before)), 0)

    entered = np.asarray(block.ended.all(axis=1) & comparable, np.bool_)[:, np.newaxis]
    entry = np.where(entered, block.arrival_ns - block.arrival_ns.min(axis=1, keepdims=True), 0)
    return Derived(
        receiver=receiver,
        stall_ns=stall,
        wake_ns=wake,
        slack_ns=slack,
        on_time=on_time,
        attributed=attributed,
        last_issue_ns=np.where(attributed, last_issue, 0),
        late_rank=np.where(attributed, late, -1).astype(np.int32),
        before_ns=before,
        backlog_ns=backlog,
        transfer_ns=transfer,
        cause_ns=_causes(block, stall, attributed, last_issue, late, before),
        entry_skew_ns=entry,
        comparable=comparable,
        impossible=impossible,
    )


def _flagged(flags: npt.NDArray[np.uint8], flag: int) -> _Bool:
    return np.asarray((flags & np.uint8(flag)) != 0, np.bool_)


def _before_its_issue(block: Block, delivery: _Bool, broadcast: _Bool, source: _Int) -> _Bool:
    """Return ``[step, rank]``: some delivery was ready before its source issued it, which no clock can show twice."""
    positions = np.arange(len(source))
    issued = np.where(broadcast[:, source, positions], block.issued_ns[:, source, positions], 0)[:, np.newaxis, :]
    early = delivery & (block.ready_ns > 0) & (block.ready_ns < issued - CLOCK_TOLERANCE_NS)
    return np.asarray(early.any(axis=2), np.bool_)


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
