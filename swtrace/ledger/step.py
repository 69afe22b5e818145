"""Compute stall, slack, transfer and the other facts of a series, for blocks of steps at once.

Stall, wake, slack and on time need the instants of one rank. Last issue, backlog, transfer and cause compare ranks. All
arrays are ``[step, rank, position]``. Each row of the table describes one delivery to one receiver.

===============  =====================================================================
stall            ``max(0, ready - wait begin)``
wake             ``wait end - max(ready, wait begin)``
slack            ``max(0, wait begin - ready)``
last issue       the instant from which the broadcast could move to this receiver
before           the end of the previous delivery that this one queues behind
backlog          ``max(0, before - last issue)``
transfer         ``ready - max(last issue, before)``
===============  =====================================================================

Which ranks' issues count for the last issue, and what a delivery queues behind, depends on the transport
(:mod:`~swtrace.ledger.rendezvous`, :mod:`~swtrace.ledger.channel`). Where deliveries to one receiver overlap, the
shared time counts once. So the sum of a receiver's transfers is how long the channel was busy for it.

A source never waits for its own broadcast, and that broadcast's completion on the source says nothing about the
receivers. So only receivers have these facts.

Ranks are compared only if they read the same clock, or clocks that are aligned (:mod:`~swtrace.ledger.alignment`). All
instants of a step are then on one clock, and each comparison of two ranks has a bound. A stall or a late entry that is
explained by a difference below that bound stays unattributed. If a broadcast is ready more than 1 ms before its source
issued it, the clocks differ after all, and the step is not compared.

In a pull series, each rank has steps of its own. They are computed as those of a group of one: its last issue is the
rank's own, and there is no skew. Their facts have the shape of the whole group, with nothing on all other ranks.

A :class:`Steps` computes a column on first access, for all its steps at once, and caches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from swtrace.ledger.alignment import Alignment
from swtrace.ledger.channel import Channel
from swtrace.ledger.facts import CAUSES, Cause, CriticalPath, SeriesKey, StepFacts
from swtrace.ledger.path import Paths, critical_paths
from swtrace.ledger.pending import Waits
from swtrace.ledger.recent import Sums, sum_positions
from swtrace.ledger.rendezvous import Rendezvous
from swtrace.ledger.requests import Links
from swtrace.trace.identity import RankKey, SeriesInfo
from swtrace.trace.schema import StepFlag, TransferFlag

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

_ENTRY, _SKEW, _BACKLOG, _TRANSFER, _UNATTRIBUTED = (
    CAUSES.index(cause) for cause in (Cause.ENTRY_SKEW, Cause.SKEW, Cause.BACKLOG, Cause.TRANSFER, Cause.UNATTRIBUTED)
)


CLOCK_TOLERANCE_NS = 1_000_000
"""How long before its issue a broadcast may seem to be ready: the mapping from device time to host time is some
microseconds off."""


@dataclass(frozen=True, slots=True)
class Constants:
    """Constants of a series, or of one rank of a pull series, shared by all its steps."""

    series: SeriesKey
    ranks: tuple[RankKey, ...]
    """By group rank."""
    layers: tuple[int, ...]
    """Absolute indexes of the layers, by position."""
    source: npt.NDArray[np.uint16]
    """``[position]``: group rank that stores the layer."""
    rendezvous: Rendezvous
    prefetch_step: int
    epsilon_ns: int
    of_rank: int | None
    """Group rank whose steps these are, in a pull series; None if all ranks run the steps together."""

    @property
    def running(self) -> tuple[RankKey, ...]:
        """The ranks that run the steps."""
        return self.ranks if self.of_rank is None else (self.ranks[self.of_rank],)


class _Compared(NamedTuple):
    """Results of comparing ranks, for some waits of receivers, ``[wait]``."""

    last_issue_ns: _Int
    late_rank: npt.NDArray[np.int32]
    before_ns: _Int
    attributed: _Bool
    """The other fields are meaningless where this is False."""

    def of(self, waits: Waits) -> _Compared:
        """Return the results for some waits, from columns."""
        cell = waits.cell
        return _Compared(
            self.last_issue_ns.reshape(-1)[cell],
            self.late_rank.reshape(-1)[cell],
            self.before_ns.reshape(-1)[cell],
            self.attributed.reshape(-1)[cell],
        )


class Steps:
    """Finished steps of one series: the columns of :class:`~swtrace.ledger.facts.StepFacts`, with a leading step axis.

    The rank axis has the ranks that run the steps: the group, or one rank of a pull series. Only :meth:`fact` and
    :attr:`sums` have the shape of the group in any case.

    Args:
        constants: Constants of the series.
        infos: Constants of the ranks that run the steps.
        hosts: Their host names.
        alignment: The steps' records, ascending, and how their ranks are compared.
        channel: What a delivery queues behind. These steps advance it.
        links: Trace contexts of the steps' requests, ``[step][rank]``.
    """

    def __init__(
        self,
        constants: Constants,
        infos: tuple[SeriesInfo | None, ...],
        hosts: tuple[str, ...],
        alignment: Alignment,
        channel: Channel,
        links: Sequence[tuple[Links, ...]],
    ) -> None:
        self.block = block = alignment.block
        self.infos, self.hosts, self._constants, self._alignment = infos, hosts, constants, alignment
        self.links = links
        self._serial = channel.serial
        own, prefilled = self._flagged(TransferFlag.OWN), self._flagged(TransferFlag.PREFILLED)
        self._broadcast = block.present & ~prefilled
        delivery = self._broadcast & ~own
        self.receiver: _Bool = delivery & ~self._flagged(TransferFlag.UNWAITED | TransferFlag.OPEN)
        self.early = self._before_its_issue(delivery)
        """``[step, rank, position]``: a delivery was ready before its source issued it."""
        self.impossible: _Bool = np.asarray(self.early.any(axis=2), np.bool_)
        """``[step, rank]``"""
        self.comparable: _Bool = np.asarray(~self.impossible.any(axis=1) & alignment.comparable, np.bool_)
        self._carried = channel.carry(block, self._broadcast, own)

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.block)

    def facts(self) -> list[StepFacts]:
        """Return the facts of each step."""
        return [StepFacts.of(self, row) for row in range(len(self))]

    def fact(self, name: str, row: int) -> Any:
        """Return a field of one step's facts."""
        if name in _CONSTANTS:
            return getattr(self._constants, name)
        if name in _LISTS:
            return self._listed(self.links[row] if name == "links" else getattr(self, name), _LISTS[name])
        if name == "path":
            return self.path(row)
        value = getattr(self if hasattr(type(self), name) or name in vars(self) else self.block, name)[row]
        of_rank = self._constants.of_rank
        if of_rank is None or isinstance(value, np.generic):
            return value.item() if isinstance(value, np.generic) else value
        if name == "late_rank":
            return self._spread(np.where(value < 0, value, of_rank).astype(value.dtype), axis=0, none=-1)
        return self._spread(value, axis=1 if name == "cause_ns" else 0)

    def _listed(self, values: tuple[Any, ...], none: Any) -> tuple[Any, ...]:
        """Return a value for each rank of the group, from those of the ranks that run the steps."""
        of_rank, ranks = self._constants.of_rank, len(self._constants.ranks)
        return values if of_rank is None else (none,) * of_rank + values + (none,) * (ranks - of_rank - 1)

    def _spread(self, values: npt.NDArray[Any], *, axis: int, none: int = 0) -> npt.NDArray[Any]:
        """Return values whose rank axis has the ranks that run the steps as values of the group."""
        of_rank = self._constants.of_rank
        if of_rank is None:
            return values
        shape = (*values.shape[:axis], len(self._constants.ranks), *values.shape[axis + 1 :])
        spread = np.full(shape, none, values.dtype)
        spread[(slice(None),) * axis + (of_rank,)] = values.take(0, axis=axis)
        return spread

    @cached_property
    def complete(self) -> _Bool:
        """``[step]``: every rank that runs the step ended it, and no record is missing."""
        return np.asarray(self.block.seen.all(axis=(1, 2)), np.bool_)

    @cached_property
    def aborted(self) -> _Bool:
        """``[step]``: some rank ended the step early."""
        return np.asarray((self.block.ended & ((self.block.step_flags & StepFlag.ABORTED) != 0)).any(axis=1), np.bool_)

    @property
    def contradictory(self) -> _Bool:
        """``[step, rank]``: :attr:`impossible`, between two ranks on one clock."""
        if not self.impossible.any():
            return self.impossible
        clock = self._alignment.clock
        return np.asarray((self.early & (clock[:, np.newaxis] == clock[self._constants.source])).any(axis=2), np.bool_)

    @property
    def clock_shift_ns(self) -> _Int:
        """``[step, rank]``: what was added to the rank's instants."""
        return self._alignment.shift_ns

    @property
    def clock_bound_ns(self) -> _Int:
        """``[step, rank]``: largest error of that."""
        return self._alignment.bound_ns

    @property
    def tokens(self) -> npt.NDArray[np.uint32]:
        """``[step, rank]``: tokens of the rank's batch; 0 where the step record is missing."""
        return self.block.tokens

    @cached_property
    def duration_ns(self) -> _Int:
        """``[step, rank]``: forward begin to forward end; 0 where the step record is missing."""
        return np.where(self.block.ended, self.block.end_ns - self.block.begin_ns, 0)

    @property
    def own_ns(self) -> _Int:
        """``[step, rank]``: duration without stall and wake; 0 where the step record is missing."""
        block = self.block
        left = np.maximum(np.maximum(block.ready_ns, block.wait_end_ns), block.wait_begin_ns)
        waited = ((left - block.wait_begin_ns) * self.receiver).sum(axis=2)
        return np.asarray((self.duration_ns - waited) * block.ended, np.int64)

    @cached_property
    def stall_ns(self) -> _Int:
        """Ready after wait begin."""
        return np.asarray(np.maximum(0, self.block.ready_ns - self.block.wait_begin_ns) * self.receiver, np.int64)

    @cached_property
    def wake_ns(self) -> _Int:
        """Wait end after both."""
        block = self.block
        return np.asarray(
            np.maximum(0, block.wait_end_ns - np.maximum(block.ready_ns, block.wait_begin_ns)) * self.receiver, np.int64
        )

    @cached_property
    def slack_ns(self) -> _Int:
        """Ready before wait begin."""
        return np.asarray(np.maximum(0, self.block.wait_begin_ns - self.block.ready_ns) * self.receiver, np.int64)

    @cached_property
    def on_time(self) -> _Bool:
        """Receivers' waits that stalled for less than epsilon."""
        return np.asarray(self.receiver & (self.stall_ns < self._constants.epsilon_ns), np.bool_)

    @cached_property
    def _broadcast_everywhere(self) -> _Bool:
        """``[step, position]``: every rank's record is available, and their instants can be compared."""
        return np.asarray(self._broadcast.all(axis=1) & self.comparable[:, np.newaxis], np.bool_)

    def _compare(self, waits: Waits) -> _Compared:
        """Compare ranks for some waits of receivers."""
        block = self.block
        last_issue_ns, late_rank = self._constants.rendezvous.last_issue(block.issued_ns, waits)
        before_ns, known = self._carried.before(waits)
        known &= self._broadcast_everywhere[waits.step, waits.position]
        before_ns = np.minimum(before_ns, block.ready_ns.reshape(-1)[waits.cell])
        return _Compared(last_issue_ns, late_rank.astype(np.int32), before_ns, known)

    @cached_property
    def _compared(self) -> _Compared:
        """All receivers' waits, as columns ``[step, rank, position]``; late rank is -1 for all waits not attributed."""
        waits = Waits.where(self.receiver)
        compared = self._compare(waits)

        def column(values: npt.NDArray[Any], fill: int = 0) -> npt.NDArray[Any]:
            spread = np.full(self.receiver.shape, fill, values.dtype)
            spread.reshape(-1)[waits.cell] = np.where(compared.attributed, values, fill)
            return spread

        return _Compared(
            column(compared.last_issue_ns),
            column(compared.late_rank, fill=-1),
            column(compared.before_ns),
            column(compared.attributed),
        )

    @property
    def attributed(self) -> _Bool:
        """Where last issue, backlog and transfer are known, from every rank's record and the previous delivery."""
        return self._compared.attributed

    @property
    def last_issue_ns(self) -> _Int:
        """The instant from which the broadcast could move to this receiver; 0 where unknown."""
        return self._compared.last_issue_ns

    @property
    def last_rank(self) -> npt.NDArray[np.int32]:
        """Group rank whose issue is the last one on the aligned clocks; -1 where unknown."""
        return self._compared.late_rank

    @cached_property
    def late_rank(self) -> npt.NDArray[np.int32]:
        """Group rank that issued last; -1 where unknown, or where the bound of two clocks leaves it open."""
        late = self.last_rank
        if not self.clock_bound_ns.any():
            return late
        waits = Waits.where(self.attributed)
        column = late.reshape(-1).astype(np.int64)
        doubt = self._constants.rendezvous.in_doubt(
            self.block.issued_ns, waits, column[waits.cell], self._alignment.between_ns
        )
        column[waits.cell[doubt]] = -1
        return column.reshape(late.shape).astype(np.int32)

    @property
    def before_ns(self) -> _Int:
        """End of what the channel carried to this receiver before."""
        return self._compared.before_ns

    @cached_property
    def backlog_ns(self) -> _Int:
        """Last issue to the end of what the channel carried before."""
        return np.asarray(np.maximum(0, self.before_ns - self.last_issue_ns), np.int64)

    @cached_property
    def transfer_ns(self) -> _Int:
        """From last issue and previous end to ready."""
        moving = self.block.ready_ns - np.maximum(self.last_issue_ns, self.before_ns)
        return np.maximum(0, moving) * self.attributed

    @cached_property
    def entry_skew_ns(self) -> _Int:
        """``[step, rank]``: arrival minus the first arrival; 0 where unknown or below the bound of the clocks."""
        entered = (self.block.ended.all(axis=1) & self.comparable)[:, np.newaxis]
        arrival = self.block.arrival_ns
        skew = arrival - arrival.min(axis=1, keepdims=True)
        step, rank = np.arange(len(arrival))[:, np.newaxis], np.arange(arrival.shape[1])
        known = entered & (skew >= self._alignment.between_ns(step, rank, arrival.argmin(axis=1)[:, np.newaxis]))
        return np.where(known, skew, 0)

    def _split_stalls(self) -> tuple[Waits, _Int]:
        """Return the waits that stalled, and their ``[wait begin, ready]`` by cause, ``[cause, wait]``.

        The causes are skew up to the last issue, then backlog, then transfer. The part of the skew that the late
        rank's later entry into the step explains is entry skew, less the earlier stalls of this step. An operation
        issued in the step before has no entry skew. What the bounds of the clocks leave open is unattributed.
        """
        block, waits = self.block, Waits.where(self.stall_ns)
        cell, row = waits.cell, waits.row
        # If most waits stalled, compare all of them at once: the columns are needed on any later access.
        few = 2 * len(cell) < np.count_nonzero(self.receiver)
        compared = self._compare(waits) if few else self._compared.of(waits)
        attributed, late = compared.attributed, row - waits.rank + compared.late_rank
        stall, begin = self.stall_ns.reshape(-1)[cell], block.wait_begin_ns.reshape(-1)[cell]
        ready = begin + stall
        bound = self._alignment.between_ns(waits.step, waits.rank, compared.late_rank)
        behind = self._behind_bound_ns(waits)

        def within(instants: _Int, least: _Int = begin) -> _Int:
            return np.asarray(np.minimum(np.maximum(instants, least), ready), np.int64)

        # Each cause gets what it certainly explains, whatever the clocks' difference within the bound is.
        earliest, latest, doubt = compared.last_issue_ns, compared.last_issue_ns, np.zeros(1, np.bool_)
        if self._alignment.clock.any():
            rendezvous, between_ns = self._constants.rendezvous, self._alignment.between_ns
            earliest, latest = rendezvous.last_issue_within(block.issued_ns, waits, self._alignment)
            doubt = rendezvous.in_doubt(block.issued_ns, waits, late - row + waits.rank, between_ns)
        first_issue, issued = within(earliest), within(latest)
        queued_first = within(compared.before_ns - behind, issued)
        queued = within(compared.before_ns + behind, issued)
        skew = (first_issue - begin) * attributed
        arrival, ended = block.arrival_ns.reshape(-1), block.ended.reshape(-1)
        first = waits.firsts()
        earlier = np.cumsum(stall) - stall
        earlier -= np.repeat(earlier[first], np.diff(first, append=len(row)))
        owed = arrival[late] - arrival[row] - earlier
        inside = (block.flags.reshape(-1)[cell] & TransferFlag.CROSSES_STEPS) == 0
        inside &= ended[late] & ended[row]
        entry, entry_most = (np.clip(owed + error, 0, skew) * inside for error in (-bound, bound))
        if doubt.any():
            # Some rank was late, but it is not known which: any rank's arrival may explain the skew.
            by_latest = self._latest_arrival_ns[waits.step] + self._alignment.bound_ns[waits.step, waits.rank]
            crosses = (block.flags.reshape(-1)[cell] & TransferFlag.CROSSES_STEPS) != 0
            any_entry = np.clip(by_latest - arrival[row] - earlier, 0, skew) * ~crosses
            entry, entry_most = entry * ~doubt, np.where(doubt, any_entry, entry_most)
        backlog, transfer = (queued_first - issued) * attributed, (ready - queued) * attributed
        causes = (entry, skew - entry_most, backlog, transfer)
        return waits, np.stack((*causes, stall - np.add.reduce(causes)))

    @cached_property
    def _latest_arrival_ns(self) -> _Int:
        """``[step]``: the latest instant at which some rank may have arrived at the first layer."""
        arrival = np.where(self.block.ended, self.block.arrival_ns + self._alignment.bound_ns, 0)
        return np.asarray(arrival.max(axis=1), np.int64)

    def _behind_bound_ns(self, waits: Waits) -> _Int:
        """Return the largest error of the end of what each delivery queued behind.

        Another rank may have seen it. Each rank's first delivery of a step queued behind one of the step before, whose
        instants were shifted by other offsets.
        """
        alignment, step, rank = self._alignment, waits.step, waits.rank
        if not alignment.clock.any():
            return np.zeros(1, np.int64)
        before, within = alignment.before_ns, np.zeros(1, np.int64)
        if self._serial:
            before, within = before.max(axis=1, keepdims=True), alignment.from_any_ns(step, rank)
        received = self._constants.source != np.arange(len(self._constants.ranks))[:, np.newaxis]
        first = np.zeros(len(received), np.int64) if self._serial else received.argmax(axis=1)
        across = alignment.bound_ns[step, rank] + np.broadcast_to(before, alignment.bound_ns.shape)[step, rank]
        return np.where(waits.position <= first[rank], across, within)

    @cached_property
    def transfer_bound_ns(self) -> _Int:
        """``[step, rank, position]``: largest error of :attr:`transfer_ns` by the alignment of clocks."""
        column = np.zeros(self.receiver.shape, np.int64)
        if self._alignment.clock.any():
            waits = Waits.where(self.attributed)
            compared = self._compared.of(waits)
            by_issue = compared.last_issue_ns > compared.before_ns
            between = self._alignment.between_ns(waits.step, waits.rank, compared.late_rank)
            column.reshape(-1)[waits.cell] = np.where(by_issue, between, self._behind_bound_ns(waits))
        return column

    @cached_property
    def cause_ns(self) -> _Int:
        """``[step, cause, rank, position]``."""
        steps, ranks, layers = self.receiver.shape
        column = np.zeros((steps, len(CAUSES), ranks, layers), np.int64)
        waits, causes = self._split_stalls()
        column[waits.step, :, waits.rank, waits.position] = causes.T
        return column

    @cached_property
    def cause_sums_ns(self) -> _Int:
        """``[cause, step, rank]``."""
        steps, ranks, _ = self.receiver.shape
        sums = np.zeros((len(CAUSES), steps * ranks), np.int64)
        waits, causes = self._split_stalls()
        first = waits.firsts()
        if len(first):
            sums[:, waits.row[first]] = np.add.reduceat(causes, first, axis=1)
        return sums.reshape(len(CAUSES), steps, ranks)

    @property
    def whole(self) -> _Bool:
        """``[step, rank]``: the rank ended the step and no record is missing."""
        return self.block.whole

    @cached_property
    def sums(self) -> Sums:
        """``[row, step, rank]``: sums over positions.

        Most steps are only summed. So the columns are dropped then, which take twice the memory of the records.
        """
        known = self.paths.known[:, np.newaxis]
        sums = sum_positions(self, self.cause_sums_ns, self.paths.excess_ns, path_known=known)
        for columns in (self, self.block):
            for name in _of_cells(type(columns)):
                vars(columns).pop(name, None)
        return self._spread(sums, axis=2)

    @cached_property
    def paths(self) -> Paths:
        """Critical paths of the steps that have one."""
        stalled = self.stall_ns >= self._constants.epsilon_ns
        explained = (self.attributed | ~stalled).all(axis=(1, 2))
        waited = ~self._flagged(TransferFlag.UNWAITED).any(axis=(1, 2))
        orderly = ((self.block.step_flags & StepFlag.ABORTED) == 0).all(axis=1)
        known = np.asarray(self.complete & explained & waited & orderly & self.comparable, np.bool_)
        return critical_paths(
            self,
            known,
            self._alignment,
            prefetch_step=self._constants.prefetch_step,
            stalled=stalled,
            serial=self._serial,
        )

    def path(self, row: int) -> CriticalPath | None:
        """Return the critical path of a step, or None."""
        path, of_rank = self.paths.path(row), self._constants.of_rank
        if path is None or of_rank is None:
            return path
        return replace(
            path,
            last_rank=of_rank,
            compute_ns=self._spread(path.compute_ns, axis=0),
            excess_ns=self._spread(path.excess_ns, axis=0),
            entry_ns=self._spread(path.entry_ns, axis=0),
        )

    def _flagged(self, flag: int) -> _Bool:
        return np.asarray((self.block.flags & np.uint8(flag)) != 0, np.bool_)

    def _before_its_issue(self, delivery: _Bool) -> _Bool:
        """Return where a delivery was ready before its source issued it, by more than their clocks may be off."""
        if self._constants.of_rank is not None:
            return np.zeros_like(delivery)  # a copy does not wait for its source
        block, source, alignment = self.block, self._constants.source, self._alignment
        positions = np.arange(len(source))
        sent = self._broadcast[:, source, positions]
        issued = np.where(sent, block.issued_ns[:, source, positions], 0)[:, np.newaxis, :]
        early = np.asarray(delivery & (block.ready_ns > 0) & (block.ready_ns < issued - CLOCK_TOLERANCE_NS), np.bool_)
        if early.any():
            step, rank, position = early.nonzero()
            by_ns = issued[step, 0, position] - CLOCK_TOLERANCE_NS - block.ready_ns[early]
            known = alignment.comparable[step] | (alignment.clock[rank] == alignment.clock[source[position]])
            early[early] = known & (by_ns > alignment.between_ns(step, rank, source[position]))
        return early


def _of_cells(kind: type) -> tuple[str, ...]:
    """Return the names of the cached columns of a class, without small ones that are not worth computing again."""
    return tuple(
        name for name, value in vars(kind).items() if isinstance(value, cached_property) and name not in _SMALL
    )


_SMALL = {"complete", "aborted", "whole", "entry_skew_ns", "cause_sums_ns", "paths", "sums"}
_CONSTANTS = frozenset(each.name for each in fields(Constants))
_LISTS: dict[str, Any] = {"infos": None, "hosts": "", "links": ()}
"""Facts that are not arrays but have a value for each rank, and that of a rank which does not run the step."""
