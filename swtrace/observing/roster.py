"""Fold an origin's events into observations of the ranks, their records and their facts.

A :class:`Roster` keeps the ledger of an origin's records beside the ranks' identities and tables. It belongs to one
thread, and any number of rosters may watch the same ranks. If a rank's events cannot be used, the roster makes the
origin drop that rank. Other ranks are not affected.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from swtrace.closing import Closing
from swtrace.errors import IntakeError
from swtrace.ledger import Ledger
from swtrace.ledger.facts import LedgerFacts, StepFacts
from swtrace.observing.events import (
    ClockProbed,
    Event,
    RankEnded,
    RankForgotten,
    RankJoined,
    RecordsRead,
    RingsSeen,
    RingState,
    SeriesListed,
)
from swtrace.observing.observation import NO_FACTS, Observation, ObservedRank, run_begins
from swtrace.observing.origin import Link, Origin
from swtrace.observing.rings import HostRings
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import Records
from swtrace.trace.schema import Stage

TOGETHER_NS = 2_000_000_000
"""Ranks that end within this time of each other without closing their rings were stopped together."""

UNTAKEN_STEPS = 1 << 16
"""Finished steps kept until they are taken. One poll of any sensible series finishes fewer."""


class Roster(Closing):
    """The folded events of an origin.

    Args:
        origin: Source of the events; the roster closes it.
        keep_steps: Whether finished steps are kept for :meth:`take_steps`.
        ledger: Ledger for the records; by default, a new one.
    """

    def __init__(self, origin: Origin, *, keep_steps: bool = False, ledger: Ledger | None = None) -> None:
        self.origin = origin
        self.ledger = ledger if ledger is not None else Ledger(keep_untaken=UNTAKEN_STEPS if keep_steps else 0)
        self._identities: dict[RankKey, RankIdentity] = {}
        self._tables: dict[RankKey, tuple[SeriesInfo, ...]] = {}
        self._before: dict[RankIdentity, int] = {}
        self._facts, self._facts_taken_s = NO_FACTS, 0.0
        self._flushed = False

    @property
    def identities(self) -> Mapping[RankKey, RankIdentity]:
        """Identities of the ranks."""
        return self._identities

    # -- what goes in ------------------------------------------------------------------------------

    def poll(self, limit: int | None = None) -> bool:
        """Process new events and return whether more can be read immediately.

        Args:
            limit: Approximate maximum of records, over all ranks.

        Raises:
            RecordingFormatError: The origin is a damaged recording.
        """
        polled = self.origin.poll(limit)
        self._take(polled.events)
        if polled.ended and not self._flushed:
            self.ledger.flush()
        self._flushed = polled.ended
        return polled.more

    def drain(self) -> None:
        """Process all events available now."""
        while self.poll():
            pass

    # -- what comes out ----------------------------------------------------------------------------

    def steps(self) -> Iterator[StepFacts]:
        """Process all events available now, and yield finished steps one by one, in bounded memory."""
        more = True
        while more:
            more = self.poll()
            yield from self.take_steps()

    def take_steps(self) -> tuple[StepFacts, ...]:
        """Return the steps finished since the last call, oldest first."""
        return self.ledger.take_steps()

    def observe(self, *, facts_every_s: float = 0.0) -> Observation:
        """Return everything that is known now.

        Args:
            facts_every_s: Reuse facts that are younger than this, because sums over the last steps change slowly.
                Rings, windows and steps are always current.
        """
        seen = self.origin.look()
        now_s = time.monotonic()
        if now_s >= self._facts_taken_s + facts_every_s or len(self._facts.ranks) != len(self._identities):
            self._facts, self._facts_taken_s = self.ledger.facts(), now_s
        origins = self.origin.status()
        ranks = self._ranks(seen, self._facts, live=all(origin.link is not Link.RECORDED for origin in origins))
        several_clocks = len({rank.identity.clock for rank in ranks}) > 1
        return Observation(
            taken_ns=time.monotonic_ns(),
            origins=origins,
            ranks=ranks,
            facts=self._facts,
            history={series.key: self.ledger.history(series.key) for series in self._facts.series},
            problems=seen.problems,
            caught_up=seen.caught_up,
            clock_offsets={rank.key: rank.unix_offset_ns for rank in ranks} if several_clocks else {},
        )

    def close(self) -> None:
        """Close the origin."""
        self.origin.close()

    # -- how ---------------------------------------------------------------------------------------

    def _take(self, events: Sequence[Event]) -> None:
        for event in _gathered(events):
            try:
                self._apply(event)
            except IntakeError as error:
                for rank, reason in error.reasons.items():
                    self._refuse(RankKey(*rank), reason)
            except Exception as error:
                if isinstance(event, RecordsRead | RingsSeen | ClockProbed | RankForgotten):
                    raise
                self._refuse(event.rank, error)

    def _refuse(self, rank: RankKey, error: Exception) -> None:
        self._take(self.origin.refuse(rank, f"{type(error).__name__}: {error}"))

    def _apply(self, event: Event) -> None:
        match event:
            case RankJoined(identity, history):
                self._identities[identity.key], self._tables[identity.key] = identity, ()
                self.ledger.add_rank(identity, history=history)
            case RecordsRead(batches):
                self.ledger.add_batches([batch for batch in batches if batch[0] in self._identities])
                # At once, so that errors are raised here, where the faulty rank is among these batches.
                self.ledger.process_added()
            case RingsSeen():
                pass  # the state of the rings is read by look()
            case ClockProbed(probe):
                self.ledger.add_probe(probe)
            case _ if event.rank not in self._identities:
                pass  # the rank was refused meanwhile
            case SeriesListed(rank, series):
                self._tables[rank] = series
                self.ledger.set_series(rank, series)
            case RankEnded(rank):
                self.ledger.rank_ended(rank)
            case RankForgotten(rank):
                self._before.pop(self._identities[rank], None)
                del self._identities[rank], self._tables[rank]
                self.ledger.forget(rank)

    def _ranks(self, seen: RingsSeen, facts: LedgerFacts, *, live: bool) -> tuple[ObservedRank, ...]:
        rings = {ring.rank: ring for ring in seen.rings}
        ledger_ranks = {rank.identity.key: rank for rank in facts.ranks}
        known = []
        for key in sorted(self._identities):
            facts_of = ledger_ranks.get(key)
            records, last_ns = (facts_of.records, facts_of.last_record_ns) if facts_of is not None else (0, 0)
            ring = rings.get(key) or RingState.unseen(key, records, live=live)
            # For a ring state of long ago, count ages from the newest record.
            known.append((self._identities[key], ring if ring.taken_ns else replace(ring, taken_ns=last_ns)))
        died = _died(known)
        began = run_begins(identity for identity, _ in known)
        return tuple(
            ObservedRank(
                identity=identity,
                series=self._tables[identity.key],
                ring=ring,
                died=identity.key in died,
                before=self._before.setdefault(identity, ring.statistics.lost + ring.statistics.skipped) if live else 0,
                run_began_ns=began[identity.run_id],
            )
            for identity, ring in known
        )


def watch_rings(
    directory: Path,
    *,
    run_id: str | None = None,
    rescan_s: float = 0.25,
    newest_steps: int | None = None,
    keep_steps: bool = False,
) -> Roster:
    """Return a roster of the rings of a folder; see :class:`~swtrace.observing.rings.HostRings`."""
    origin = HostRings(directory, run_id=run_id, rescan_s=rescan_s, newest_steps=newest_steps)
    return Roster(origin, keep_steps=keep_steps)


def _gathered(events: Iterable[Event]) -> Iterator[Event]:
    """Yield events with adjacent records merged, because one large batch costs less than many small ones."""
    batches: list[tuple[RankKey, Records]] = []
    for event in events:
        if isinstance(event, RecordsRead):
            batches += event.batches
            continue
        if batches:
            yield RecordsRead(tuple(batches))
            batches = []
        yield event
    if batches:
        yield RecordsRead(tuple(batches))


def _died(known: Sequence[tuple[RankIdentity, RingState]]) -> set[RankKey]:
    """Return the ranks that ended without closing their ring, unless their run was stopped with them.

    If a rank dies, others of its run continue, hang or end later. If all ranks are killed at once, they were stopped
    from outside. The same is true for a rank that is killed after the others have closed their rings, unless it was
    within a step: ranks end a run between steps, and a reader may first see all of them gone at once.
    """
    died = set()
    for identity, ring in known:
        if ring.alive or ring.closed:
            continue
        others = [each for each in known if each[0].run_id == identity.run_id and each[0].rank != identity.rank]
        if not others or any(_outlived(identity, ring, *other) for other in others):
            died.add(ring.rank)
    return died


def _outlived(identity: RankIdentity, ring: RingState, other_identity: RankIdentity, other: RingState) -> bool:
    """Return whether another rank lives, or ended so much later that the two were not stopped together."""
    if other.alive:
        return True
    later_ns = other.down_since_ns - ring.down_since_ns
    if other_identity.clock != identity.clock:  # on two hosts, whose calendar clocks are close enough for this
        later_ns += other.anchor.realtime_ns - other.anchor.monotonic_ns
        later_ns -= ring.anchor.realtime_ns - ring.anchor.monotonic_ns
    if other.closed:
        return later_ns >= (-TOGETHER_NS if _within_step(ring) else 0)
    return later_ns >= TOGETHER_NS


def _within_step(ring: RingState) -> bool:
    """Return whether a rank was in a step whose end it would have marked."""
    return any(progress.stage in {Stage.BEGUN, Stage.MARKED} for progress in ring.marks.progress)
