"""Records in, facts out. No I/O and no clock: the same records give the same facts, for every view.

Each record is counted at once (:mod:`~swtrace.ledger.totals`) and laid out with those of the other
ranks (:mod:`~swtrace.ledger.pending`). A step that every rank has ended is finished: its facts are
computed (:mod:`~swtrace.ledger.step`, :mod:`~swtrace.ledger.path`) and summed up over the last steps
(:mod:`~swtrace.ledger.recent`). A step that no rank timed is counted, and has no facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from swtrace.errors import IntakeError
from swtrace.ledger.channel import Channel
from swtrace.ledger.facts import (
    CriticalPath,
    LedgerFacts,
    Oddities,
    RankFacts,
    SeriesFacts,
    SeriesKey,
    SeriesRankFacts,
    StepFacts,
)
from swtrace.ledger.intake import Batch, Ranked, Routes, Sorted, rounds
from swtrace.ledger.latest import Latest
from swtrace.ledger.numbering import Numbering
from swtrace.ledger.path import critical_paths
from swtrace.ledger.pending import Accepted, Block, PendingSteps
from swtrace.ledger.recent import RecentSteps
from swtrace.ledger.rendezvous import Rendezvous
from swtrace.ledger.step import Derived, derive
from swtrace.ledger.totals import TotalsCounter
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import Records
from swtrace.trace.schema import Clock, StepFlag, TransferFlag, Untimed

DEFAULT_EPSILON_NS = 20_000
DEFAULT_RECENT_STEPS = 64
DEFAULT_MAX_CELLS = 1 << 21


@dataclass(slots=True)
class _Rank:
    identity: RankIdentity
    series: tuple[SeriesInfo, ...] = ()
    routes: Routes = field(default_factory=Routes)
    ended: bool = False
    records: int = 0
    last_record_ns: int = 0
    duplicate: int = 0
    late: int = 0
    missing: int = 0
    unknown: int = 0
    wild: int = 0
    impossible: int = 0
    evicted: int = 0


@dataclass(slots=True)
class _Member:
    """One rank of one series."""

    rank: RankKey
    info: SeriesInfo


@dataclass(slots=True)
class _Series:
    key: SeriesKey
    number: int
    ranks: tuple[RankKey, ...]
    """By group rank."""
    untraced: frozenset[RankKey]
    """Those of them that record nothing of it, whatever else they record."""
    layers: int
    rendezvous: Rendezvous
    source: npt.NDArray[np.int64]
    pending: PendingSteps
    totals: TotalsCounter
    latest: Latest
    recent: RecentSteps
    prefetch_step: int
    channel: Channel
    numbering: Numbering
    impossible_steps: int = 0
    """Steps in which a broadcast was ready before its source issued it."""
    members: dict[int, _Member] = field(default_factory=dict)
    """By group rank."""
    left: dict[int, int] = field(default_factory=dict)
    """When those started that were forgotten, by group rank: one that started at another time begins a new life."""


class Ledger:
    """Turns the records of any number of ranks into facts.

    Args:
        epsilon_ns: A wait is on time if its stall is below this.
        recent_steps: How many finished steps :class:`~swtrace.ledger.facts.Recent` covers.
        max_cells: Bound of ``steps x ranks x layers`` of unfinished steps held per series.
        keep_untaken: How many finished steps wait for :meth:`take_steps`. 0: none, nobody will ask.
    """

    def __init__(
        self,
        *,
        epsilon_ns: int = DEFAULT_EPSILON_NS,
        recent_steps: int = DEFAULT_RECENT_STEPS,
        max_cells: int = DEFAULT_MAX_CELLS,
        keep_untaken: int = 0,
    ) -> None:
        self._epsilon_ns = epsilon_ns
        self._recent_steps = recent_steps
        self._max_cells = max_cells
        self._ranks: dict[RankKey, _Rank] = {}
        self._series: dict[SeriesKey, _Series] = {}
        self._by_number: dict[int, _Series] = {}
        self._numbers = 0
        self._untaken: deque[StepFacts] | None = deque(maxlen=keep_untaken) if keep_untaken else None
        self._steps_untaken = 0

    # -- what goes in ------------------------------------------------------------------------------

    def add_rank(self, identity: RankIdentity) -> None:
        """Introduce a rank. Its steps are waited for from now on, until :meth:`rank_ended`."""
        rank = self._ranks.setdefault(identity.key, _Rank(identity))
        rank.identity, rank.ended = identity, False
        self._expect(identity.key, expected=True)

    def set_series(self, rank: RankKey, series: tuple[SeriesInfo, ...]) -> None:
        """Set the series table of a rank's ring: records name their series by index in it. It only grows."""
        self._ranks[rank].series = series
        self._route(rank)

    def add(self, rank: RankKey, records: Records) -> None:
        """Take in a batch of one rank's records, in the order in which the rank wrote them."""
        self.add_batches(((rank, records),))

    def add_batches(self, batches: Sequence[Batch]) -> None:
        """Take in batches of any number of ranks, as :meth:`add` takes in one.

        It states the same facts and costs much less than one call for each of many ranks.

        Raises:
            IntakeError: the records of some ranks could not be taken in; those of all others were.
        """
        reasons: dict[tuple[str, int], Exception] = {}
        for batch in rounds(batches):
            self._add([self._ranks[rank] for rank, _ in batch], [records for _, records in batch], reasons)
        if reasons:
            raise IntakeError(reasons)

    def rank_ended(self, rank: RankKey) -> None:
        """Say that a rank will write no more and that all it wrote was added: steps no longer wait for it."""
        self._ranks[rank].ended = True
        for series in self._expect(rank, expected=False):
            self._finish(series, series.pending.pop_finished())

    def flush(self) -> None:
        """Finish everything pending: there will be no more records."""
        for series in self._by_number.values():
            self._finish(series, series.pending.pop_all())

    # -- what comes out ----------------------------------------------------------------------------

    def take_steps(self) -> tuple[StepFacts, ...]:
        """Return the steps finished since the last call, oldest first."""
        if self._untaken is None:
            return ()
        taken = tuple(self._untaken)
        self._untaken.clear()
        return taken

    def history(self, key: SeriesKey) -> tuple[StepFacts, ...]:
        """Return the last finished steps of a series, oldest first."""
        return tuple(self._series[key].recent.history)

    def facts(self) -> LedgerFacts:
        """Return everything this ledger states, as it stands."""
        return LedgerFacts(
            ranks=tuple(
                RankFacts(
                    identity=rank.identity,
                    records=rank.records,
                    last_record_ns=rank.last_record_ns,
                    oddities=Oddities(
                        duplicate=rank.duplicate,
                        late=rank.late,
                        missing=rank.missing,
                        unknown=rank.unknown,
                        wild=rank.wild,
                        impossible=rank.impossible,
                        evicted_steps=rank.evicted,
                    ),
                )
                for rank in self._ranks.values()
            ),
            series=tuple(self._series_facts(series) for series in self._series.values()),
            steps_untaken=self._steps_untaken,
        )

    def forget(self, rank: RankKey) -> None:
        """Drop a rank that ended, and every series of which it was the last rank.

        If it comes back with another start, its series begin a new life: their group was formed anew. Members that
        have not come back by then stay with the life before, which is not stated any more.
        """
        self.rank_ended(rank)
        start_ns = self._ranks.pop(rank).identity.start_time_ns
        for series in list(self._by_number.values()):
            series.left |= {g: start_ns for g, m in series.members.items() if m.rank == rank}
            series.members = {g: m for g, m in series.members.items() if m.rank != rank}
            if not series.members:
                del self._by_number[series.number]
                if self._series.get(series.key) is series:
                    del self._series[series.key]
                # Two ranks that claim one place in a group are one member: the other one's claim is good now.
                for other, known in self._ranks.items():
                    if series.number in known.routes.numbers:
                        self._route(other)

    # -- how ---------------------------------------------------------------------------------------

    def _route(self, rank: RankKey) -> None:
        """Join a rank to the series of its table."""
        known = self._ranks[rank]
        for index, info in enumerate(known.series):
            if not info.refused:
                series = self._join(rank, info)
                # Another rank of this group may have registered a shorter series under the same name.
                layers = min(info.num_layers, series.layers)
                known.routes.set(index, series.number, info.rank_in_group, layers)

    def _join(self, rank: RankKey, info: SeriesInfo) -> _Series:
        key = SeriesKey(rank.run_id, info.name, info.start_layer, info.group_ranks)
        series = self._series.get(key)
        if series is None or self._starts_anew(series, info.rank_in_group, rank):
            series = self._series[key] = self._by_number[self._numbers] = self._make(key, info)
            self._numbers += 1
            for other in series.ranks:
                if other in self._ranks and not self._ranks[other].ended:
                    self._expect(other, expected=True)
        if info.rank_in_group not in series.members:
            series.members[info.rank_in_group] = _Member(rank, info)
            series.totals.forget(info.rank_in_group)
            series.pending.forget(info.rank_in_group)
            series.numbering.forget(info.rank_in_group)
            series.latest.forget(info.rank_in_group)
        return series

    def _make(self, key: SeriesKey, info: SeriesInfo) -> _Series:
        ranks = len(info.group_ranks)
        source = np.array([info.source(position) for position in range(info.num_layers)], np.int64)
        return _Series(
            key=key,
            number=self._numbers,
            ranks=tuple(RankKey(key.run_id, rank) for rank in key.group_ranks),
            untraced=frozenset(RankKey(key.run_id, untraced.rank) for untraced in info.untraced),
            layers=info.num_layers,
            rendezvous=Rendezvous(info.rendezvous, ranks, source),
            source=source,
            pending=PendingSteps(ranks, info.num_layers, self._max_cells),
            totals=TotalsCounter(
                ranks=ranks, epsilon_ns=self._epsilon_ns, source=source, prefetch_step=info.prefetch_step
            ),
            latest=Latest(ranks),
            recent=RecentSteps(self._recent_steps, ranks, info.layer_bytes),
            prefetch_step=info.prefetch_step,
            channel=Channel(info.queue, ranks, info.num_layers),
            numbering=Numbering(ranks),
        )

    def _expect(self, rank: RankKey, *, expected: bool) -> list[_Series]:
        """Let the steps of a rank's series wait for it, or no longer. It need not have told its series yet.

        Returns:
            The series whose group the rank belongs to.
        """
        theirs = [series for series in self._by_number.values() if rank in series.ranks]
        for series in theirs:
            group_rank = series.ranks.index(rank)
            if not (expected and self._starts_anew(series, group_rank, rank)):
                series.pending.expect(group_rank, expected=expected and rank not in series.untraced)
        return theirs

    def _starts_anew(self, series: _Series, group_rank: int, rank: RankKey) -> bool:
        """Whether a rank comes back to a series that it left, in another process: it has no part in that life of it."""
        start_ns = self._ranks[rank].identity.start_time_ns
        return series.left.get(group_rank, start_ns) != start_ns

    def _add(self, ranks: list[_Rank], batches: list[Records], reasons: dict[tuple[str, int], Exception]) -> None:
        """Take in one batch of each of some ranks; what those raise whose records cannot be, goes to ``reasons``."""
        batch = Sorted.of([rank.routes for rank in ranks], batches)
        for rank, records, unknown in zip(ranks, batches, batch.unknown.tolist(), strict=True):
            rank.records += len(records)
            rank.unknown += unknown
        for number, transfers, steps, launches in batch.of_series:
            series = self._by_number[number]
            parts = [self._numbered(ranks, series, each) for each in (transfers, steps, launches)]
            try:
                self._take_in(ranks, series, *parts)
            except Exception:  # noqa: BLE001 (whose records raise it is found rank by rank: no other loses its own)
                for origin, rank in enumerate(ranks):
                    try:
                        self._take_in(ranks, series, *(part.of_batch(origin) for part in parts))
                    except Exception as error:  # noqa: BLE001 (it goes to the caller, once all others are taken in)
                        reasons[rank.identity.key] = error

    def _take_in(self, ranks: list[_Rank], series: _Series, transfers: Ranked, steps: Ranked, launches: Ranked) -> None:
        """Lay out records of one series and finish what they complete.

        Where there is no room for all, the oldest steps go first, of all ranks: what they finish makes room.
        """
        while len(transfers) or len(steps):
            numbers = np.concatenate((transfers.step, steps.step))
            room = series.pending.room(numbers)
            if not room.any():
                self._evict(series, int(numbers.min()))
                continue
            here, there = room[: len(transfers)], room[len(transfers) :]
            self._store(ranks, series, transfers.take(here), steps.take(there))
            series.pending.put_launches(launches)
            transfers, steps = transfers.take(~here), steps.take(~there)
            self._finish(series, series.pending.pop_finished())
        series.pending.put_launches(launches)

    def _numbered(self, ranks: list[_Rank], series: _Series, ranked: Ranked) -> Ranked:
        """Return the records with step numbers that do not wrap, without those whose number cannot be."""
        ranked, wild = series.numbering.number(ranked)
        if not wild.any():
            return ranked
        for origin in ranked.origin[wild].tolist():
            ranks[origin].wild += 1
        return ranked.take(~wild)

    def _store(self, ranks: list[_Rank], series: _Series, transfers: Ranked, steps: Ranked) -> None:
        if len(transfers):
            accepted = series.pending.put_transfers(transfers)
            series.totals.add_transfers(transfers.take(~accepted.duplicate))
            ends = np.maximum(transfers.records["wait_end_ns"], transfers.records["ready_ns"])
            _note(ranks, transfers, accepted, ends)
        if len(steps):
            accepted = series.pending.put_steps(steps)
            series.totals.add_steps(steps.take(~accepted.duplicate))
            _note(ranks, steps, accepted, steps.records["end_ns"])

    def _evict(self, series: _Series, step: int) -> None:
        """Finish the oldest steps early, to make room; the ranks that are behind are the ones that lose."""
        block = series.pending.evict_for(step)
        for group_rank, member in series.members.items():
            self._ranks[member.rank].evicted += int((~block.ended[:, group_rank]).sum())
        self._finish(series, block)

    def _finish(self, series: _Series, block: Block) -> None:
        block = _without_open_tail(block)
        missing = (~(block.present | _without_transfers(block)[:, :, np.newaxis])).sum(axis=(0, 2)).tolist()
        for group_rank, member in series.members.items():
            self._ranks[member.rank].missing += missing[group_rank]
        block = _timed(block)
        if not len(block):
            return
        derived = derive(
            block,
            rendezvous=series.rendezvous,
            source=series.source,
            one_clock=self._one_clock(series, block),
            epsilon_ns=self._epsilon_ns,
            channel=series.channel,
        )
        if derived.impossible.any():
            series.impossible_steps += int(derived.impossible.any(axis=1).sum())
            for group_rank, member in series.members.items():
                self._ranks[member.rank].impossible += int(derived.impossible[:, group_rank].sum())
        complete = np.asarray(block.whole.all(axis=1), np.bool_)
        paths = self._paths(series, block, derived, complete)
        for i in range(len(block)):
            facts = _step_facts(series, block, derived, i, complete=bool(complete[i]), path=paths.get(i))
            series.recent.add(facts)
            if self._untaken is not None:
                self._steps_untaken += len(self._untaken) == self._untaken.maxlen
                self._untaken.append(facts)
        series.totals.add_causes(derived.cause_ns.sum(axis=(0, 3)))
        series.latest.add(block, derived)

    def _one_clock(self, series: _Series, block: Block) -> bool:
        """Whether all ranks say that their instants are of one clock: one host, or one simulation."""
        if (block.clock[block.present] == Clock.VIRTUAL).all():
            return True
        return len(self._clocks(series)) == 1

    def _clocks(self, series: _Series) -> set[str]:
        return {self._ranks[member.rank].identity.clock for member in series.members.values()}

    def _paths(
        self, series: _Series, block: Block, derived: Derived, complete: npt.NDArray[np.bool_]
    ) -> dict[int, CriticalPath]:
        stalled = derived.stall_ns >= self._epsilon_ns
        explained = (derived.attributed | ~stalled).all(axis=(1, 2))
        whole = ((block.flags & TransferFlag.UNWAITED) == 0).all(axis=(1, 2))
        orderly = ((block.step_flags & StepFlag.ABORTED) == 0).all(axis=1)
        rows = np.flatnonzero(complete & explained & whole & orderly & derived.comparable)
        if not len(rows):
            return {}
        paths = critical_paths(
            block.take(rows),
            derived.take(rows),
            prefetch_step=series.prefetch_step,
            epsilon_ns=self._epsilon_ns,
            serial=series.channel.serial,
        )
        return dict(zip(rows.tolist(), paths, strict=True))

    def _series_facts(self, series: _Series) -> SeriesFacts:
        recent = series.recent.facts()
        return SeriesFacts(
            key=series.key,
            ranks=tuple(
                SeriesRankFacts(
                    rank=member.rank,
                    info=member.info,
                    totals=series.totals.fact(group_rank, layer_bytes=member.info.layer_bytes),
                    recent=recent[group_rank],
                    last_step=series.latest.step(group_rank),
                    last_stall_ns=series.latest.stall_ns(group_rank),
                    effective_prefetch_step=series.latest.effective_prefetch_step(group_rank),
                )
                for group_rank, member in sorted(series.members.items())
            ),
            steps=len(series.recent),
            straggler=series.recent.straggler(series.ranks),
            pending_steps=len(series.pending),
            clocks=len(self._clocks(series)),
            impossible_steps=series.impossible_steps,
        )


def _without_open_tail(block: Block) -> Block:
    """Drop the step that never came: a run ends with its first k broadcasts under way."""
    is_open = ~block.present | ((block.flags & TransferFlag.OPEN) != 0)
    never_came = ~block.ended.any(axis=1) & is_open.all(axis=(1, 2))
    return block.take(np.flatnonzero(~never_came)) if never_came.any() else block


def _without_transfers(block: Block) -> npt.NDArray[np.bool_]:
    """Return which ranks' steps have no TRANSFER records to miss, ``[step, rank]``.

    What one rank left out as one of those between every n-th, all ranks leave out: also one whose STEP record is lost.
    """
    untimed = block.ended & (block.untimed != Untimed.TIMED)
    sampled = (untimed & (block.untimed == Untimed.SAMPLED)).any(axis=1, keepdims=True)
    return np.asarray(untimed | (sampled & ~block.ended), np.bool_)


def _timed(block: Block) -> Block:
    """Return what has instants: in an untimed step, a rank counts as not ended; without any other, the step goes."""
    untimed = block.ended & (block.untimed != Untimed.TIMED)
    if not untimed.any():
        return block
    ended = block.ended & ~untimed
    rows = np.flatnonzero(ended.any(axis=1) | block.present.any(axis=(1, 2)))
    block = block.take(rows)
    block.ended = ended[rows]
    return block


def _note(ranks: list[_Rank], ranked: Ranked, accepted: Accepted, ends_ns: npt.NDArray[np.int64]) -> None:
    """Note each rank's last instant, and which of its records came late or twice."""
    last = np.zeros(len(ranks), np.int64)
    np.maximum.at(last, ranked.origin, ends_ns)
    for rank, ns in zip(ranks, last.tolist(), strict=True):
        rank.last_record_ns = max(rank.last_record_ns, ns)
    for origin in ranked.origin[accepted.duplicate].tolist():
        ranks[origin].duplicate += 1
    for origin in ranked.origin[accepted.late].tolist():
        ranks[origin].late += 1


def _step_facts(
    series: _Series, block: Block, derived: Derived, i: int, *, complete: bool, path: CriticalPath | None
) -> StepFacts:
    return StepFacts(
        series=series.key,
        step=int(block.step[i]),
        ranks=series.ranks,
        infos=tuple(series.members[rank].info if rank in series.members else None for rank in range(len(series.ranks))),
        present=block.present[i],
        ended=block.ended[i],
        complete=complete,
        issued_ns=block.issued_ns[i],
        ready_ns=block.ready_ns[i],
        wait_begin_ns=block.wait_begin_ns[i],
        wait_end_ns=block.wait_end_ns[i],
        observed=block.observed[i],
        clock=block.clock[i],
        launched_ns=block.launched_ns[i],
        flags=block.flags[i],
        window=block.window[i],
        reach_position=block.reach_position[i],
        source=series.source.astype(np.uint16),
        receiver=derived.receiver[i],
        stall_ns=derived.stall_ns[i],
        wake_ns=derived.wake_ns[i],
        slack_ns=derived.slack_ns[i],
        on_time=derived.on_time[i],
        attributed=derived.attributed[i],
        last_issue_ns=derived.last_issue_ns[i],
        late_rank=derived.late_rank[i],
        backlog_ns=derived.backlog_ns[i],
        transfer_ns=derived.transfer_ns[i],
        cause_ns=derived.cause_ns[i],
        begin_ns=block.begin_ns[i],
        arrival_ns=block.arrival_ns[i],
        end_ns=block.end_ns[i],
        phase=block.phase[i],
        tokens=block.tokens[i],
        requests=block.requests[i],
        run_delay_us=block.run_delay_us[i],
        steal_us=block.steal_us[i],
        step_flags=block.step_flags[i],
        waits=block.waits[i],
        comparable=bool(derived.comparable[i]),
        entry_skew_ns=derived.entry_skew_ns[i],
        path=path,
    )
