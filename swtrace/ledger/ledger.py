"""Records in, facts out. No I/O and no clock: the same records give the same facts, for every view.

Each record is counted at once (:mod:`~swtrace.ledger.totals`) and laid out with those of the other
ranks (:mod:`~swtrace.ledger.pending`). A step that every rank has ended is finished: its facts are
computed (:mod:`~swtrace.ledger.step`, :mod:`~swtrace.ledger.path`) and summed up over the last steps
(:mod:`~swtrace.ledger.recent`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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
from swtrace.ledger.path import critical_paths
from swtrace.ledger.pending import Block, PendingSteps
from swtrace.ledger.recent import RecentSteps
from swtrace.ledger.rendezvous import Rendezvous
from swtrace.ledger.step import Channel, Derived, derive
from swtrace.ledger.totals import TotalsCounter
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import STEP as STEP_RECORD
from swtrace.trace.records import Records
from swtrace.trace.schema import Clock, Kind, StepFlag, TransferFlag

DEFAULT_EPSILON_NS = 20_000
DEFAULT_RECENT_STEPS = 64
DEFAULT_MAX_CELLS = 1 << 21


@dataclass(slots=True)
class _Rank:
    identity: RankIdentity
    series: tuple[SeriesInfo, ...] = ()
    ended: bool = False
    records: int = 0
    last_record_ns: int = 0
    duplicate: int = 0
    late: int = 0
    missing: int = 0
    unknown: int = 0
    evicted: int = 0


@dataclass(slots=True)
class _Member:
    """One rank of one series."""

    rank: RankKey
    info: SeriesInfo
    totals: TotalsCounter
    last_step: int | None = None
    last_stall_ns: int = 0
    effective: int | None = None


@dataclass(slots=True)
class _Series:
    key: SeriesKey
    layers: int
    rendezvous: Rendezvous
    source: npt.NDArray[np.int64]
    pending: PendingSteps
    recent: RecentSteps
    prefetch_step: int
    members: dict[int, _Member] = field(default_factory=dict)
    """By group rank."""
    channel: Channel = field(default_factory=Channel)

    @property
    def ranks(self) -> tuple[RankKey, ...]:
        return tuple(RankKey(self.key.run_id, rank) for rank in self.key.group_ranks)


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
        known = self._ranks[rank]
        known.series = series
        for info in series:
            if not info.refused:
                self._join(rank, info)

    def add(self, rank: RankKey, records: Records) -> None:
        """Take in a batch of one rank's records, in the order in which the rank wrote them."""
        known = self._ranks[rank]
        known.records += len(records)
        claimed = np.zeros(len(records), np.bool_)
        for index, info in enumerate(known.series):
            if info.refused:
                continue
            mine = records["series"] == index
            transfers = mine & (records["kind"] == Kind.TRANSFER) & (records["position"] < info.num_layers)
            steps = mine & (records["kind"] == Kind.STEP)
            claimed |= transfers | steps
            if (transfers | steps).any():
                self._add(known, self._join(rank, info), info.rank_in_group, records[transfers], records[steps])
        known.unknown += int((~claimed).sum())

    def rank_ended(self, rank: RankKey) -> None:
        """Say that a rank will write no more and that all it wrote was added: steps no longer wait for it."""
        self._ranks[rank].ended = True
        for series in self._expect(rank, expected=False):
            self._finish(series, series.pending.pop_finished())

    def flush(self) -> None:
        """Finish everything pending: there will be no more records."""
        for series in self._series.values():
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
                        evicted_steps=rank.evicted,
                    ),
                )
                for rank in self._ranks.values()
            ),
            series=tuple(self._series_facts(series) for series in self._series.values()),
            steps_untaken=self._steps_untaken,
        )

    def forget(self, rank: RankKey) -> None:
        """Drop a rank that ended, and every series of which it was the last rank."""
        self.rank_ended(rank)
        del self._ranks[rank]
        for key, series in list(self._series.items()):
            series.members = {g: m for g, m in series.members.items() if m.rank != rank}
            if not series.members:
                del self._series[key]

    # -- how ---------------------------------------------------------------------------------------

    def _join(self, rank: RankKey, info: SeriesInfo) -> _Series:
        key = SeriesKey(rank.run_id, info.name, info.start_layer, info.group_ranks)
        series = self._series.get(key)
        if series is None:
            ranks = len(info.group_ranks)
            source = np.array([info.source(position) for position in range(info.num_layers)], np.int64)
            series = self._series[key] = _Series(
                key=key,
                layers=info.num_layers,
                rendezvous=Rendezvous(info.rendezvous, ranks, source),
                source=source,
                pending=PendingSteps(ranks, info.num_layers, self._max_cells),
                recent=RecentSteps(self._recent_steps, ranks, info.layer_bytes),
                prefetch_step=info.prefetch_step,
            )
            for other in series.ranks:
                if other in self._ranks and not self._ranks[other].ended:
                    self._expect(other, expected=True)
        if info.rank_in_group not in series.members:
            series.members[info.rank_in_group] = _Member(
                rank, info, TotalsCounter(layer_bytes=info.layer_bytes, epsilon_ns=self._epsilon_ns)
            )
        return series

    def _expect(self, rank: RankKey, *, expected: bool) -> list[_Series]:
        """Let the steps of a rank's series wait for it, or no longer. It need not have told its series yet.

        Returns:
            The series whose group the rank belongs to.
        """
        theirs = [series for series in self._series.values() if rank in series.ranks]
        for series in theirs:
            series.pending.expect(series.ranks.index(rank), expected=expected)
        return theirs

    def _add(self, rank: _Rank, series: _Series, group_rank: int, transfers: Records, steps: Records) -> None:
        member = series.members[group_rank]
        if transfers["position"].size and int(transfers["position"].max()) >= series.layers:
            # Another rank of this group registered a shorter series under the same name.
            fits = transfers["position"] < series.layers
            rank.unknown += int((~fits).sum())
            transfers = transfers[fits]
        steps = steps.view(STEP_RECORD)
        while len(transfers) or len(steps):
            numbers = np.concatenate((transfers["step"], steps["step"])).astype(np.int64)
            room = series.pending.room(numbers)
            here, there = room[: len(transfers)], room[len(transfers) :]
            if not room.any():
                self._evict(series, int(numbers.min()))
                continue
            self._store(rank, member, series, group_rank, transfers[here], steps[there])
            transfers, steps = transfers[~here], steps[~there]
        self._finish(series, series.pending.pop_finished())

    def _store(
        self, rank: _Rank, member: _Member, series: _Series, group_rank: int, transfers: Records, steps: Records
    ) -> None:
        if len(transfers):
            accepted = series.pending.put_transfers(group_rank, transfers)
            rank.duplicate += int(accepted.duplicate.sum())
            rank.late += int(accepted.late.sum())
            member.totals.add_transfers(transfers[~accepted.duplicate])
            ends = np.maximum(transfers["wait_end_ns"], transfers["ready_ns"])
            rank.last_record_ns = max(rank.last_record_ns, int(ends.max()))
        if len(steps):
            accepted = series.pending.put_steps(group_rank, steps)
            rank.duplicate += int(accepted.duplicate.sum())
            rank.late += int(accepted.late.sum())
            member.totals.add_steps(steps[~accepted.duplicate])
            rank.last_record_ns = max(rank.last_record_ns, int(steps["end_ns"].max()))

    def _evict(self, series: _Series, step: int) -> None:
        """Finish the oldest steps early, to make room; the ranks that are behind are the ones that lose."""
        block = series.pending.evict_for(step)
        for group_rank, member in series.members.items():
            self._ranks[member.rank].evicted += int((~block.ended[:, group_rank]).sum())
        self._finish(series, block)

    def _finish(self, series: _Series, block: Block) -> None:
        block = _without_open_tail(block)
        if not len(block):
            return
        derived = derive(
            block,
            rendezvous=series.rendezvous,
            comparable=self._comparable(series, block),
            epsilon_ns=self._epsilon_ns,
            channel=series.channel,
        )
        complete = np.asarray(block.ended.all(axis=1) & block.present.all(axis=(1, 2)), np.bool_)
        paths = self._paths(series, block, derived, complete)
        for i in range(len(block)):
            facts = _step_facts(series, block, derived, i, complete=bool(complete[i]), path=paths.get(i))
            series.recent.add(facts)
            if self._untaken is not None:
                self._steps_untaken += len(self._untaken) == self._untaken.maxlen
                self._untaken.append(facts)
        for group_rank, member in series.members.items():
            member.totals.add_causes(derived.cause_ns[:, :, group_rank].sum(axis=(0, 2)))
            self._ranks[member.rank].missing += int((~block.present[:, group_rank]).sum())
            _note_last_step(series, member, group_rank, block, derived)

    def _comparable(self, series: _Series, block: Block) -> bool:
        """Whether the instants of all ranks are of one clock: one host, or one simulation."""
        if (block.clock[block.present] == Clock.VIRTUAL).all():
            return True
        return len({self._ranks[member.rank].identity.boot_id for member in series.members.values()}) == 1

    def _paths(
        self, series: _Series, block: Block, derived: Derived, complete: npt.NDArray[np.bool_]
    ) -> dict[int, CriticalPath]:
        stalled = derived.stall_ns >= self._epsilon_ns
        explained = (derived.attributed | ~stalled).all(axis=(1, 2))
        whole = ((block.flags & TransferFlag.UNWAITED) == 0).all(axis=(1, 2))
        orderly = ((block.step_flags & StepFlag.ABORTED) == 0).all(axis=1)
        rows = np.flatnonzero(complete & explained & whole & orderly)
        if not len(rows):
            return {}
        paths = critical_paths(
            block.take(rows), derived.take(rows), prefetch_step=series.prefetch_step, epsilon_ns=self._epsilon_ns
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
                    totals=member.totals.fact(),
                    recent=recent[group_rank],
                    last_step=member.last_step,
                    last_stall_ns=member.last_stall_ns,
                    effective_prefetch_step=member.effective,
                )
                for group_rank, member in sorted(series.members.items())
            ),
            steps=len(series.recent),
            straggler=series.recent.straggler(series.ranks),
            pending_steps=len(series.pending),
        )


def _without_open_tail(block: Block) -> Block:
    """Drop the step that never came: a run ends with its first k broadcasts under way."""
    is_open = ~block.present | ((block.flags & TransferFlag.OPEN) != 0)
    never_came = ~block.ended.any(axis=1) & is_open.all(axis=(1, 2))
    return block.take(np.flatnonzero(~never_came)) if never_came.any() else block


def _note_last_step(series: _Series, member: _Member, group_rank: int, block: Block, derived: Derived) -> None:
    ended = np.flatnonzero(block.ended[:, group_rank])
    if not len(ended):
        return
    i = int(ended[-1])
    member.last_step = int(block.step[i])
    member.last_stall_ns = int(derived.stall_ns[i, group_rank].sum())
    issued = block.present[i, group_rank] & ((block.flags[i, group_rank] & TransferFlag.PREFILLED) == 0)
    if issued.any():
        reached = block.reach_position[i, group_rank].astype(np.int64)
        ahead = (np.arange(series.layers) - reached) % series.layers
        member.effective = int(ahead[issued].min())


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
        entry_skew_ns=derived.entry_skew_ns[i],
        path=path,
    )
