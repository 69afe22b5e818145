"""The rings of this host as an origin: which ring counts for a rank, and what happens to it.

A :class:`~swtrace.trace.tail.Tail` finds the files and reads new records; this module turns them into events about
ranks. It never disturbs the ranks, and any number of readers may watch at once.

A fault in one ring affects only that ring: it is dropped, its rank is forgotten, and the problems say why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from swtrace.observing.events import (
    Event,
    RankEnded,
    RankForgotten,
    RankJoined,
    RecordsRead,
    RingsSeen,
    RingState,
    SeriesListed,
)
from swtrace.observing.origin import Link, OriginStatus, Polled
from swtrace.trace.clocks import ClockAnchor, now_ns
from swtrace.trace.identity import RankKey, SeriesInfo
from swtrace.trace.records import Records, step_numbers
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import RUN_STEPS
from swtrace.trace.tail import LIMIT_PER_RING, Tail

_Answer = TypeVar("_Answer")


class HostRings:
    """Follow the rings of a folder.

    Args:
        directory: The folder of rings; it may not exist yet.
        run_id: Only this run; None for all.
        rescan_s: How often to look for new files, in seconds.
        newest_steps: For live views: begin about this many steps before a ring's end, and jump back there when ranks
            write faster than this reads. Records left out count as skipped. None: read everything.
        every: Only one step in so many: the first :data:`~swtrace.trace.schema.RUN_STEPS` of ``RUN_STEPS * every``.
        counted_since_ns: UNIX time. What a ring that is older than this holds when it is found is history: it is read,
            but totals do not count it, and what the rank has overwritten of it is not lost.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run_id: str | None = None,
        rescan_s: float = 0.25,
        newest_steps: int | None = None,
        every: int = 1,
        counted_since_ns: int = 0,
    ) -> None:
        self.directory = directory
        self._every = every
        self._counted_since_ns = counted_since_ns
        self._tail = Tail(directory, run_id=run_id, rescan_s=rescan_s, newest_steps=newest_steps)
        self._rings: dict[RankKey, RingReader] = {}
        self._tables: dict[RankKey, tuple[SeriesInfo, ...]] = {}
        self._named: set[RankKey] = set()
        """Ranks that are in the group of a known series."""
        self._events: list[Event] = []
        self._more = False

    def poll(self, limit: int | None = None) -> Polled:
        """Return new events.

        Args:
            limit: Approximate number of records, over all ranks; None for about 16,000 per rank.
        """
        per_ring = LIMIT_PER_RING if limit is None else max(1, limit // max(1, len(self._rings)))
        poll = self._tail.poll(per_ring)
        for reader in {id(reader): reader for reader, _ in poll.batches if self._reads(reader)}.values():
            self._try(reader, self._read_table)
        # A rank that took part in these records created its ring earlier, so it joins before them.
        found = poll.joined + (self._tail.rescan() if self._awaits_ranks() else ())
        # If several rings of one rank are found together, choose one before any of them creates a series.
        joined = _youngest(found)
        # For restarted ranks, first pass on all records of the previous life.
        before = [
            other
            for reader in joined
            if (other := self._rings.get(reader.key)) is not None and _is_younger(reader, other)
        ]
        self._pass_on([(reader, records) for reader, records in poll.batches if reader in before])
        for other in before:
            self._try(other, self._take_rest)
        for reader in joined:
            self._try(reader, self._join)
        self._pass_on([(reader, records) for reader, records in poll.batches if reader not in before])
        for reader in filter(self._reads, poll.ended):
            self._end(reader)
        for reader in filter(self._reads, poll.gone):
            self._forget(reader)
        for reader in self._tail.readers:
            if not self._reads(reader):
                self._try(reader, self._review_displaced)
        self._more = poll.more or bool(found)
        return Polled(self._take_events(), self._more)

    @property
    def problems(self) -> dict[str, str]:
        """Reasons why ring files, or the folder itself, cannot be read or are not shown, by path."""
        return {str(path): text for path, text in sorted(self._tail.problems.items())}

    def look(self) -> RingsSeen:
        """Return the current state of all rings, by run and rank."""
        states = (self._try(self._rings[key], self._state) for key in sorted(self._rings))
        found = tuple(state for state in states if state is not None)
        return RingsSeen(found, self.problems, caught_up=not self._more)

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the newest clock anchor of each rank."""
        pairs = ((key, self._try(reader, RingReader.anchor)) for key, reader in tuple(self._rings.items()))
        return {key: anchor for key, anchor in pairs if anchor is not None}

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Drop a rank's ring and report it among the problems. It is tried again later."""
        if rank in self._rings:
            self._drop(self._rings[rank], why)
        return self._take_events()

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the folder, with its first problems."""
        here = str(self.directory)
        first = tuple(self.problems.values())[:3]
        detail = "; ".join(text.removeprefix(f"{here}/").removeprefix(f"{here}: ") for text in first)
        return (OriginStatus(here, Link.LIVE if self._rings else Link.WAITING, detail),)

    def close(self) -> None:
        """Close all files."""
        self._tail.close()

    def _reads(self, reader: RingReader) -> bool:
        """Return whether this is the ring that counts for its rank, not that of a dead predecessor."""
        return self._rings.get(reader.key) is reader

    def _awaits_ranks(self) -> bool:
        """Return whether a series has ranks that may still join. No step must be finished without them.

        Either their rings were not found yet, or they are down and may restart while others of their run live.
        """
        living = {key.run_id for key, reader in self._rings.items() if not reader.down_since_ns}
        return any(
            key not in self._rings or (key.run_id in living and self._rings[key].down_since_ns) for key in self._named
        )

    def _take_events(self) -> tuple[Event, ...]:
        events, self._events = tuple(self._events), []
        return events

    def _pass_on(self, batches: Sequence[tuple[RingReader, Records]]) -> None:
        counted = tuple((reader.key, self._wanted(records)) for reader, records in batches if self._reads(reader))
        if counted:
            self._events.append(RecordsRead(counted))

    def _wanted(self, records: Records) -> Records:
        if self._every == 1:
            return records
        return records[step_numbers(records) % (RUN_STEPS * self._every) < RUN_STEPS]

    def _try(self, reader: RingReader, action: Callable[[RingReader], _Answer]) -> _Answer | None:
        """Run an action on a rank's ring. On any exception, drop the ring and return None."""
        try:
            return action(reader)
        except Exception as error:  # noqa: BLE001 (a fault in one ring must not stop reading the others)
            self._drop(reader, f"{type(error).__name__}: {error}")
            return None

    def _drop(self, reader: RingReader, why: str) -> None:
        self._tail.drop(reader, f"cannot be used: {why}")
        if self._reads(reader):
            self._forget(reader)

    def _forget(self, reader: RingReader) -> None:
        key = reader.key
        del self._rings[key]
        self._tables.pop(key, None)
        self._named = {rank for owner, table in self._tables.items() for rank in _named(owner, table)}
        self._events.append(RankForgotten(key))

    def _join(self, reader: RingReader) -> None:
        """Start using a ring. If a rank has two (it was restarted under its old run id), the younger one counts."""
        key = reader.key
        other = self._rings.get(key)
        if other is not None:
            if not _is_younger(reader, other):
                return
            self._forget(other)
        self._rings[key] = reader
        self._tables[key] = ()
        old = reader.identity.start_time_ns < self._counted_since_ns
        self._events.append(RankJoined(reader.identity, reader.mark_history() if old else 0))
        self._read_table(reader)

    def _review_displaced(self, reader: RingReader) -> None:
        """Report a ring that another one displaced although its writer lives. Use it again once the other has ended.

        A writer that closed its ring is about to end and is not reported. A removed name of a ring that is read under
        another name is closed.
        """
        self._tail.problems.pop(reader.path, None)
        if not reader.alive() or reader.closed():
            return
        run_id, rank = reader.key
        other = self._rings.get(reader.key)
        if other is None or other.released:
            self._join(reader)
        elif other.identity == reader.identity and reader.gone():
            self._tail.discard(reader)
        elif other.alive() and other.identity != reader.identity:
            self._tail.problems[reader.path] = (
                f"{reader.path}: not shown: rank {rank} of another running job (pid {other.identity.pid}) uses "
                f"the same run id {run_id!r}; give each job its own SWTRACE_RUN_ID"
            )

    def _end(self, reader: RingReader) -> None:
        self._events.append(RankEnded(reader.key))

    def _take_rest(self, reader: RingReader) -> None:
        """Read the rest of a dead writer's ring, if reading had begun."""
        if reader.alive() or not reader.statistics().delivered or reader.released:
            return
        while len(records := reader.read()):
            self._pass_on([(reader, records)])
        self._end(reader)

    def _read_table(self, reader: RingReader) -> None:
        key, series = reader.key, reader.series()
        if len(series) != len(self._tables[key]):
            self._tables[key] = series
            self._named |= _named(key, series)
            self._events.append(SeriesListed(key, series))

    def _state(self, reader: RingReader) -> RingState:
        return RingState(
            rank=reader.key,
            alive=reader.alive(),
            closed=reader.closed(),
            statistics=reader.statistics(now=False),
            anchor=reader.anchor(),
            windows=tuple(reader.windows(index) for index in range(len(self._tables[reader.key]))),
            marks=reader.marks(),
            closed_series=reader.closed_series(),
            path=str(reader.path),
            taken_ns=now_ns(),
            down_since_ns=reader.down_since_ns,
            lag_ns=reader.lag_ns(),
        )


def _youngest(readers: Sequence[RingReader]) -> list[RingReader]:
    """Return the ring that counts for each rank, in the order of the ranks' first rings."""
    chosen: dict[RankKey, RingReader] = {}
    for reader in readers:
        other = chosen.setdefault(reader.key, reader)
        if _is_younger(reader, other):
            chosen[reader.key] = reader
    return list(chosen.values())


def _is_younger(reader: RingReader, other: RingReader) -> bool:
    """Return whether a ring replaces another one of its rank. A copy of a living ring does not.

    A ring with a living writer wins, because the wall clock may have been set back since a dead one began.
    """
    return (reader.alive(), reader.identity.start_time_ns) > (other.alive(), other.identity.start_time_ns)


def _named(key: RankKey, table: tuple[SeriesInfo, ...]) -> set[RankKey]:
    """Return the ranks that are in the groups of a rank's series and record them, and whose steps are the same."""
    return {
        RankKey(key.run_id, rank)
        for info in table
        if info.lockstep
        for rank in set(info.group_ranks).difference(untraced.rank for untraced in info.untraced)
    }
