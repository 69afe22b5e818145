"""Turn records into facts, without I/O or a clock: the same records give the same facts in every view.

Records are collected until there are many or facts are requested, so that the overhead is paid once. Then each
record is counted (:mod:`~swtrace.ledger.totals`) and stored beside those of the other ranks
(:mod:`~swtrace.ledger.pending`). A step is finished when every rank that runs it has ended it: the whole group, or one
rank of a pull series, whose ranks have nothing to do with each other's steps. Its facts are computed on access
(:mod:`~swtrace.ledger.step`, :mod:`~swtrace.ledger.path`) or when they are summed over the last steps
(:mod:`~swtrace.ledger.recent`). A step that no rank timed is counted, but has no facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt

from swtrace.errors import IntakeError
from swtrace.ledger.alignment import Aligner, Probe, Probes
from swtrace.ledger.channel import Channel
from swtrace.ledger.comparison import covers, plan_of
from swtrace.ledger.facts import (
    LedgerFacts,
    Oddities,
    RankFacts,
    SeriesFacts,
    SeriesKey,
    SeriesRankFacts,
    StepFacts,
)
from swtrace.ledger.intake import Batch, Ranked, Round, Routes, Sorted, by_rank, rounds
from swtrace.ledger.latest import Latest
from swtrace.ledger.numbering import Numbering
from swtrace.ledger.pending import Accepted, Block, PendingSteps
from swtrace.ledger.recent import RecentSteps
from swtrace.ledger.rendezvous import Rendezvous
from swtrace.ledger.requests import RequestLinks
from swtrace.ledger.step import Constants, Steps
from swtrace.ledger.stragglers import ComputeHistory, OwnCompute
from swtrace.ledger.totals import TotalsCounter
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import STEP, Records
from swtrace.trace.schema import Clock, Kind, TransferFlag, Untimed

DEFAULT_EPSILON_NS = 20_000
DEFAULT_RECENT_STEPS = 64
DEFAULT_MAX_CELLS = 1 << 21

_TOGETHER = 1 << 16
"""This many records are processed together, at most twice as many: the overhead per record is small, and the columns
still fit into a cache."""


@dataclass(slots=True)
class _Rank:
    identity: RankIdentity
    series: tuple[SeriesInfo, ...] = ()
    routes: Routes = field(default_factory=Routes)
    ended: bool = False
    history: int = 0
    """Sequence number up to which records are history; 0 once a later one was added."""
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
    """A series, or one rank's part of a pull series. Ranks are numbered among those that run its steps."""

    constants: Constants
    number: int
    untraced: frozenset[RankKey]
    """Ranks that do not record this series, even if they record others."""
    layers: int
    pending: PendingSteps
    totals: TotalsCounter
    latest: Latest
    recent: RecentSteps
    compute: ComputeHistory
    """Empty in a pull series, which compares no ranks."""
    channel: Channel
    numbering: Numbering
    aligner: Aligner
    requests: RequestLinks
    impossible_steps: int = 0
    """Steps in which a broadcast was ready before its source issued it."""
    members: dict[int, _Member] = field(default_factory=dict)
    cached_facts: SeriesFacts | None = None
    """Cached facts, until a record arrives."""
    left: dict[int, int] = field(default_factory=dict)
    """Start times of forgotten members. One with another start time begins a new life of the series."""

    @property
    def ranks(self) -> tuple[RankKey, ...]:
        """The ranks that run its steps."""
        return self.constants.running

    @property
    def infos(self) -> tuple[SeriesInfo | None, ...]:
        """Constants of the members."""
        return tuple(self.members[rank].info if rank in self.members else None for rank in range(len(self.ranks)))


class Ledger:
    """Turns the records of any number of ranks into facts.

    Added records may be processed later, at the latest on the next call of any other method. That call then raises any
    :class:`~swtrace.errors.IntakeError`. :meth:`process_added` processes them at once. Added arrays belong to
    the ledger.

    Args:
        epsilon_ns: A wait is on time if its stall is below this.
        recent_steps: How many finished steps :class:`~swtrace.ledger.facts.Recent` covers.
        max_cells: Bound of ``steps x ranks x layers`` of unfinished steps held per series.
        keep_untaken: How many finished steps are kept for :meth:`take_steps`; 0 for none.
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
        self._series: dict[SeriesKey, dict[int | None, _Series]] = {}
        """The second key is the group rank that runs the steps, in a pull series; None if all ranks run them."""
        self._by_number: dict[int, _Series] = {}
        self._numbers = 0
        self._probes = Probes()
        self._untaken: deque[StepFacts] | None = deque(maxlen=keep_untaken) if keep_untaken else None
        self._steps_untaken = 0
        self._collected: list[Round] = []
        self._collected_records = 0

    # -- what goes in ------------------------------------------------------------------------------

    def add_rank(self, identity: RankIdentity, *, history: int = 0) -> None:
        """Add a rank. Steps wait for it from now on, until :meth:`rank_ended`.

        Args:
            identity: The rank.
            history: Sequence number up to which its records are history. Totals begin with the first step that has no
                such record. All other facts include history.
        """
        self.process_added()
        rank = self._ranks.setdefault(identity.key, _Rank(identity))
        rank.identity, rank.ended, rank.history = identity, False, history
        for series in self._by_number.values():
            series.cached_facts = None
            for group_rank, member in series.members.items():
                if member.rank == identity.key:
                    series.aligner.set_clock(group_rank, identity.clock)
        self._expect(identity.key, expected=True)

    def set_series(self, rank: RankKey, series: tuple[SeriesInfo, ...]) -> None:
        """Set the series table of a rank's ring. Records refer to their series by index in it. It only grows."""
        self.process_added()
        self._ranks[rank].series = series
        self._route(rank)

    def add(self, rank: RankKey, records: Records) -> None:
        """Add a batch of one rank's records, in the order in which the rank wrote them."""
        self.add_batches(((rank, records),))

    def add_batches(self, batches: Sequence[Batch]) -> None:
        """Add batches of any number of ranks, as :meth:`add` does for one.

        Raises:
            IntakeError: The records of some ranks could not be processed. Those of all others were.
        """
        for each in rounds(batches, _TOGETHER):
            for rank, records in each.items():
                self._ranks[rank].records += len(records)
                self._collected_records += len(records)
            self._collected.append(each)
        if self._collected_records >= _TOGETHER:
            self.process_added()

    def add_probe(self, probe: Probe) -> None:
        """Add what a process measured about another host's clock. Records added before do not use it."""
        self.process_added()
        self._probes.add(probe)

    def process_added(self) -> None:
        """Process all added records.

        Raises:
            IntakeError: The records of some ranks could not be processed. Those of all others were.
        """
        collected, self._collected, self._collected_records = self._collected, [], 0
        reasons: dict[tuple[str, int], Exception] = {}
        together, count = [], 0
        for each in collected:
            together.append(each)
            count += sum(map(len, each.values()))
            if count >= _TOGETHER:
                self._process_rounds(together, reasons)
                together, count = [], 0
        if together:
            self._process_rounds(together, reasons)
        if reasons:
            raise IntakeError(reasons)

    def rank_ended(self, rank: RankKey) -> None:
        """Mark a rank as ended, with all its records added. Steps no longer wait for it."""
        self.process_added()
        self._ranks[rank].ended = True
        for series in self._expect(rank, expected=False):
            self._finish(series, series.pending.pop_finished())

    def flush(self) -> None:
        """Finish all pending steps, because no more records will follow."""
        self.process_added()
        for series in self._by_number.values():
            self._finish(series, series.pending.pop_all())

    # -- what comes out ----------------------------------------------------------------------------

    def take_steps(self) -> tuple[StepFacts, ...]:
        """Return the steps finished since the last call, oldest first."""
        self.process_added()
        if self._untaken is None:
            return ()
        taken = tuple(self._untaken)
        self._untaken.clear()
        return taken

    def history(self, key: SeriesKey) -> tuple[StepFacts, ...]:
        """Return the last finished steps of a series, oldest first; of a pull series, the last ones of each rank."""
        self.process_added()
        parts = [series.recent.history for series in self._series[key].values()]
        return tuple(parts[0] if len(parts) == 1 else sorted(chain.from_iterable(parts), key=_last_ns))

    def counts(self, step: StepFacts) -> bool:
        """Return whether a finished step is part of the totals of all of its ranks, and not history."""
        series = self._series.get(step.series, {}).get(step.of_rank)
        return series is None or series.totals.counts(step.step)

    def facts(self) -> LedgerFacts:
        """Return all facts as of now."""
        self.process_added()
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
            series=tuple(
                self._merged([self._series_facts(each) for each in of.values()]) for of in self._series.values()
            ),
            steps_untaken=self._steps_untaken,
        )

    def forget(self, rank: RankKey) -> None:
        """Drop a rank that ended, and every series that has no other rank.

        If the rank comes back with another start time, its series begin a new life, because their group was formed
        again. Members that have not come back by then stay in the old life, which is no longer reported.
        """
        self.rank_ended(rank)
        start_ns = self._ranks.pop(rank).identity.start_time_ns
        for series in list(self._by_number.values()):
            series.cached_facts = None
            left = [group_rank for group_rank, member in series.members.items() if member.rank == rank]
            for group_rank in left:
                series.aligner.set_clock(group_rank, "")
            series.left |= dict.fromkeys(left, start_ns)
            series.members = {g: m for g, m in series.members.items() if m.rank != rank}
            if not series.members:
                del self._by_number[series.number]
                self._remove(series)
                # If another rank claimed the same place in the group, its claim is valid now.
                for other, known in self._ranks.items():
                    if series.number in known.routes.numbers:
                        self._route(other)

    # -- how ---------------------------------------------------------------------------------------

    def _remove(self, series: _Series) -> None:
        key, of_rank = series.constants.series, series.constants.of_rank
        parts = self._series.get(key, {})
        if parts.get(of_rank) is series:
            del parts[of_rank]
            if not parts:
                del self._series[key]

    def _route(self, rank: RankKey) -> None:
        """Join a rank to the series of its table."""
        known = self._ranks[rank]
        for index, info in enumerate(known.series):
            if not info.refused:
                series = self._join(rank, info)
                # Another rank of this group may have registered a shorter series under the same name.
                layers = min(info.num_layers, series.layers)
                known.routes.set(index, series.number, _place(info), layers)

    def _join(self, rank: RankKey, info: SeriesInfo) -> _Series:
        key = SeriesKey(rank.run_id, info.name, info.start_layer, info.group_ranks)
        place, of_rank = _place(info), None if info.lockstep else info.rank_in_group
        series = self._series.get(key, {}).get(of_rank)
        if series is None or self._restarts(series, place, rank):
            series = self._by_number[self._numbers] = self._make(key, info, of_rank)
            self._series.setdefault(key, {})[of_rank] = series
            self._numbers += 1
            for other in series.ranks:
                if other in self._ranks and not self._ranks[other].ended:
                    self._expect(other, expected=True)
        series.cached_facts = None
        if place not in series.members:
            series.members[place] = _Member(rank, info)
            series.totals.forget(place)
            series.pending.forget(place)
            series.numbering.forget(place)
            series.latest.forget(place)
            series.aligner.set_clock(place, self._ranks[rank].identity.clock)
        return series

    def _make(self, key: SeriesKey, info: SeriesInfo, of_rank: int | None) -> _Series:
        """Return a new series, or with ``of_rank`` that rank's part of a pull series, which is a group of one."""
        source = np.array([info.source(position) for position in range(info.num_layers)], np.int64)
        owners, ranks = source.astype(np.uint16), len(info.group_ranks)
        if of_rank is not None:
            source, ranks = np.where(source == of_rank, 0, 1), 1
        return _Series(
            constants=Constants(
                series=key,
                ranks=tuple(RankKey(key.run_id, rank) for rank in key.group_ranks),
                layers=info.layers,
                source=owners,
                rendezvous=Rendezvous(info.rendezvous, ranks, source),
                prefetch_step=info.prefetch_step,
                epsilon_ns=self._epsilon_ns,
                of_rank=of_rank,
            ),
            number=self._numbers,
            untraced=frozenset(RankKey(key.run_id, untraced.rank) for untraced in info.untraced),
            layers=info.num_layers,
            pending=PendingSteps(ranks, info.num_layers, self._max_cells),
            totals=TotalsCounter(
                ranks=ranks,
                epsilon_ns=self._epsilon_ns,
                source=source,
                prefetch_step=info.prefetch_step,
                sends=info.lockstep and info.shared,
                receives=info.shared,
            ),
            latest=Latest(ranks, info.prefetch_step),
            recent=RecentSteps(self._recent_steps, len(key.group_ranks), info.layer_bytes),
            compute=ComputeHistory(tuple(RankKey(key.run_id, rank) for rank in key.group_ranks)),
            channel=Channel(info.queue, ranks, info.num_layers),
            numbering=Numbering(ranks, info.num_layers),
            aligner=Aligner(source, ranks, simulated=info.clock == Clock.VIRTUAL.name.lower()),
            requests=RequestLinks(ranks),
        )

    def _expect(self, rank: RankKey, *, expected: bool) -> list[_Series]:
        """Set whether the steps of a rank's series wait for it. Its series table may still be unknown.

        Returns:
            The series whose group the rank belongs to.
        """
        theirs = [series for series in self._by_number.values() if rank in series.ranks]
        for series in theirs:
            group_rank = series.ranks.index(rank)
            if not (expected and self._restarts(series, group_rank, rank)):
                series.pending.expect(group_rank, expected=expected and rank not in series.untraced)
        return theirs

    def _restarts(self, series: _Series, group_rank: int, rank: RankKey) -> bool:
        """Return whether a rank comes back, as another process, to a series that it left and so begins a new life."""
        start_ns = self._ranks[rank].identity.start_time_ns
        return series.left.get(group_rank, start_ns) != start_ns

    def _process_rounds(self, several: list[Round], reasons: dict[tuple[str, int], Exception]) -> None:
        """Process rounds together. If their records are not in order, process them in halves, down to single rounds."""
        if not self._add(several, reasons, only_in_order=len(several) > 1):
            middle = len(several) // 2
            self._process_rounds(several[:middle], reasons)
            self._process_rounds(several[middle:], reasons)

    def _add(self, several: Sequence[Round], reasons: dict[tuple[str, int], Exception], *, only_in_order: bool) -> bool:
        """Process rounds together, and put errors into ``reasons``.

        Args:
            several: The rounds.
            reasons: Errors by run id and rank.
            only_in_order: Process nothing and return False, unless the facts are the same as from one round after the
                other.
        """
        theirs = by_rank(several)
        ranks = [self._ranks[rank] for rank in theirs]
        layers = {number: series.layers for number, series in self._by_number.items()}
        batch = Sorted.of([rank.routes for rank in ranks], list(theirs.values()), layers)
        numbered: list[tuple[_Series, Ranked]] = []
        following = [self._following(self._by_number[number], ranked) for number, ranked in batch.of_series]
        if only_in_order and None in following:
            return False
        for rank, unknown in zip(ranks, batch.unknown.tolist(), strict=True):
            rank.unknown += unknown
        self._keep_requests(batch)
        for (number, ranked), in_order in zip(batch.of_series, following, strict=True):
            series = self._by_number[number]
            if not len(ranked):
                continue
            if in_order is not None:
                series.numbering.note(in_order)
                numbered.append((series, in_order))
            else:
                numbered.append((series, self._numbered(ranks, series, ranked)))
        _leave_out_history(ranks, numbered)
        for series, ranked in numbered:
            try:
                self._ingest(ranks, series, ranked)
            except Exception:  # noqa: BLE001 (retry rank by rank, so that only the faulty rank loses records)
                for origin, rank in enumerate(ranks):
                    try:
                        self._ingest(ranks, series, ranked.take(ranked.origin == origin))
                    except Exception as error:  # noqa: BLE001 (raised to the caller after all others are processed)
                        reasons[rank.identity.key] = error
        return True

    def _keep_requests(self, batch: Sorted) -> None:
        for number, records, group_rank in batch.requests:
            self._by_number[number].requests.add(records, group_rank)

    def _following(self, series: _Series, ranked: Ranked) -> Ranked | None:
        """Return records with their full step numbers; None if the facts depend on how the records are batched."""
        if not len(ranked):
            return ranked
        following = series.numbering.follow(ranked)
        if following is None or not series.pending.takes_all(following):
            return None
        return following

    def _numbered(self, ranks: list[_Rank], series: _Series, ranked: Ranked) -> Ranked:
        """Return the records with step numbers that do not wrap, without those that have impossible numbers."""
        ranked, wild = series.numbering.number(ranked)
        if not wild.any():
            return ranked
        for origin in ranked.origin[wild].tolist():
            ranks[origin].wild += 1
        return ranked.take(~wild)

    def _ingest(self, ranks: list[_Rank], series: _Series, ranked: Ranked) -> None:
        """Store records of one series and finish the steps that they complete.

        If there is no room for all, the oldest steps of all ranks go first, because finished steps make room.
        """
        series.cached_facts = None
        launched = ranked.of_kind(Kind.LAUNCH)
        launches, rest = ranked.take(launched), ranked.take(~launched)
        while len(rest):
            room = series.pending.room(rest.step)
            if not room.any():
                self._evict(series, int(rest.step.min()))
                continue
            self._store(ranks, series, rest.take(room))
            series.pending.put_launches(launches)
            rest = rest.take(~room)
            self._finish(series, series.pending.pop_finished())
        series.pending.put_launches(launches)

    def _store(self, ranks: list[_Rank], series: _Series, ranked: Ranked) -> None:
        accepted = series.pending.put(ranked)
        counted = ranked.take(~accepted.duplicate)
        if len(counted):
            series.totals.add(counted)
        if accepted.late.any():
            series.totals.add_late(ranked.take(accepted.late))
        _note(ranks, ranked, accepted, series.layers)

    def _evict(self, series: _Series, step: int) -> None:
        """Finish the oldest steps early to make room. The ranks that are behind lose them."""
        block = series.pending.evict_for(step)
        for group_rank, member in series.members.items():
            self._ranks[member.rank].evicted += int((~block.ended[:, group_rank]).sum())
        self._finish(series, block)

    def _finish(self, series: _Series, block: Block) -> None:
        series.cached_facts = None
        block = _without_open_tail(block)
        missing = (~(block.present | _without_transfers(block)[:, :, np.newaxis])).sum(axis=(0, 2)).tolist()
        for group_rank, member in series.members.items():
            self._ranks[member.rank].missing += missing[group_rank]
        block = _timed(block)
        if not len(block):
            return
        links = series.requests.take(block.step)
        alignment = series.aligner.align(block, self._probes)
        hosts = tuple(self._ranks[rank].identity.host if rank in self._ranks else "" for rank in series.ranks)
        steps = Steps(series.constants, series.infos, hosts, alignment, series.channel, links)
        series.aligner.note_contradictions(steps.contradictory)
        if steps.impossible.any():
            series.impossible_steps += int(steps.impossible.any(axis=1).sum())
            for group_rank, member in series.members.items():
                self._ranks[member.rank].impossible += int(steps.impossible[:, group_rank].sum())
        facts = steps.facts()
        series.recent.add(facts, steps.aborted.tolist())
        if series.constants.of_rank is None:
            series.compute.add(OwnCompute.of(steps))
        if self._untaken is not None:
            self._steps_untaken += max(0, len(self._untaken) + len(facts) - (self._untaken.maxlen or 0))
            self._untaken.extend(facts)
        series.totals.add_causes(block.step, steps.cause_sums_ns)
        series.latest.add(steps)

    def _series_facts(self, series: _Series) -> SeriesFacts:
        if series.cached_facts is None:
            series.cached_facts = self._compute_facts(series)
        return series.cached_facts

    def _merged(self, parts: Sequence[SeriesFacts]) -> SeriesFacts:
        """Return the facts of a series from those of its parts: itself, or the ranks of a pull series."""
        if len(parts) == 1:
            return parts[0]
        ranks = sorted((rank for part in parts for rank in part.ranks), key=lambda rank: rank.info.rank_in_group)
        return replace(
            parts[0],
            ranks=tuple(ranks),
            steps=max(part.steps for part in parts),
            pending_steps=sum(part.pending_steps for part in parts),
            clocks=len({self._ranks[rank.rank].identity.clock for rank in ranks}),
        )

    def _compute_facts(self, series: _Series) -> SeriesFacts:
        recent = series.recent.facts()
        planned = plan_of(member.info for member in series.members.values())
        as_planned = None if planned is None else series.recent.facts(partial(covers, planned))
        totals = series.totals.facts({rank: member.info.layer_bytes for rank, member in series.members.items()})
        return SeriesFacts(
            key=series.constants.series,
            ranks=tuple(
                SeriesRankFacts(
                    rank=member.rank,
                    host=self._ranks[member.rank].identity.host,
                    info=member.info,
                    totals=totals[place],
                    recent=recent[member.info.rank_in_group],
                    last_step=series.latest.step(place),
                    last_stall_ns=series.latest.stall_ns(place) if member.info.shared else None,
                    effective_prefetch_step=series.latest.effective_prefetch_step(place)
                    if member.info.shared
                    else None,
                    operations_ahead=series.latest.operations_ahead(place),
                    last_record=series.totals.last_step(place),
                    recent_as_planned=None if as_planned is None else as_planned[member.info.rank_in_group],
                )
                for place, member in sorted(series.members.items())
            ),
            steps=len(series.recent),
            stragglers=series.compute.stragglers(),
            pending_steps=len(series.pending),
            clocks=series.aligner.clocks,
            alignment=series.aligner.facts(),
            impossible_steps=series.impossible_steps,
        )


def _place(info: SeriesInfo) -> int:
    """Return a rank's number among the ranks that run its steps."""
    return info.rank_in_group if info.lockstep else 0


def _last_ns(step: StepFacts) -> int:
    """Return when a step of one rank ended; the last issue if its end was not recorded."""
    return int(step.end_ns.max() if step.ended.any() else step.issued_ns.max(initial=0))


def _leave_out_history(ranks: list[_Rank], numbered: Sequence[tuple[_Series, Ranked]]) -> None:
    """Leave steps of which a record is history out of the totals."""
    if not any(rank.history for rank in ranks):
        return
    history, newest = np.array([rank.history for rank in ranks]), np.zeros(len(ranks), np.int64)
    for series, ranked in numbered:
        sequence = ranked.records["sequence"].astype(np.int64)
        old = sequence <= history[ranked.origin]
        series.totals.begin_after(ranked.step[old], ranked.group_rank[old])
        np.maximum.at(newest, ranked.origin[ranked.ends], sequence[ranked.ends])
    for rank, last in zip(ranks, newest.tolist(), strict=True):
        if last > rank.history:
            rank.history = 0


def _without_open_tail(block: Block) -> Block:
    """Drop the step that never began: a run ends with its first k broadcasts in flight."""
    unended = ~block.ended.any(axis=1)
    if not unended.any():
        return block
    is_open = ~block.present | ((block.flags & TransferFlag.OPEN) != 0)
    return block.take(np.flatnonzero(~(unended & is_open.all(axis=(1, 2)))))


def _without_transfers(block: Block) -> npt.NDArray[np.bool_]:
    """Return which ranks' steps never had TRANSFER records, ``[step, rank]``.

    A step that one rank left out by sampling was left out by all ranks, including those whose STEP record is lost.
    """
    untimed = block.ended & (block.untimed != Untimed.TIMED)
    sampled = (untimed & (block.untimed == Untimed.SAMPLED)).any(axis=1, keepdims=True)
    return np.asarray(untimed | (sampled & ~block.ended), np.bool_)


def _timed(block: Block) -> Block:
    """Return the timed steps. A rank that left a step untimed counts as not ended; a step without others is dropped."""
    untimed = block.ended & (block.untimed != Untimed.TIMED)
    if not untimed.any():
        return block
    ended = block.ended & ~untimed
    rows = np.flatnonzero(ended.any(axis=1) | block.present.any(axis=(1, 2)))
    return block.take(rows).with_ended(ended[rows])


def _note(ranks: list[_Rank], ranked: Ranked, accepted: Accepted, layers: int) -> None:
    """Update each rank's last instant and its counts of late and duplicate records."""
    records = ranked.records
    ends_ns = np.maximum(records["wait_end_ns"], records["ready_ns"])
    is_step = ranked.place == layers
    ends_ns[is_step] = records.view(STEP)["end_ns"][is_step]
    last = np.maximum.reduceat(ends_ns, ranked.starts).tolist()
    for origin, ns in zip(ranked.origin[ranked.starts].tolist(), last, strict=True):
        ranks[origin].last_record_ns = max(ranks[origin].last_record_ns, ns)
    for origin in ranked.origin[accepted.duplicate].tolist():
        ranks[origin].duplicate += 1
    for origin in ranked.origin[accepted.late].tolist():
        ranks[origin].late += 1
