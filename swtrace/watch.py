"""Watch a folder of rings: what every view stands on, be it a daemon, a terminal, a demo or a test.

A :class:`Watch` joins a :class:`~swtrace.trace.directory.Tail` (which files, which records) with a
:class:`~swtrace.ledger.Ledger` (what they mean). It belongs to one thread. It never disturbs the
ranks it watches, and any number may watch at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from swtrace.ledger import Ledger
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.reader import RingReader, RingStatistics, WindowState
from swtrace.trace.tail import LIMIT_PER_RING, Tail


@dataclass(frozen=True, slots=True)
class RankStatus:
    """A rank as its ring shows it, right now."""

    identity: RankIdentity
    path: Path
    alive: bool
    """The writer holds its lock."""
    closed: bool
    """The writer ended in an orderly way."""
    statistics: RingStatistics
    series: tuple[SeriesInfo, ...]
    windows: dict[str, tuple[WindowState, ...]]
    """By series name."""


class Watch:
    """Follow the rings of a folder, and keep the ledger of their records.

    Args:
        directory: The folder of rings; it may not exist yet.
        run_id: Only this run; None for all.
        ledger: Where records go; one of its own unless given.
        rescan_s: How often to look for new files, in seconds.
        newest_steps: For views of what is going on now: begin about so many steps before a ring's end, and return to
            there when ranks write faster than this reads. What is left out is counted as skipped.
            None: read everything.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run_id: str | None = None,
        ledger: Ledger | None = None,
        rescan_s: float = 0.25,
        newest_steps: int | None = None,
    ) -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self.tail = Tail(directory, run_id=run_id, rescan_s=rescan_s, newest_steps=newest_steps)
        self._rings: dict[RankKey, RingReader] = {}
        self._tables: dict[RankKey, tuple[SeriesInfo, ...]] = {}
        self._named: set[RankKey] = set()
        """Ranks that some series names as part of its group."""

    def poll(self, limit: int | None = None) -> bool:
        """Take in what is new and return whether there is more to read at once.

        Args:
            limit: About how many records to take in, of all ranks together; None: some 16 000 of each.
        """
        per_ring = LIMIT_PER_RING if limit is None else max(1, limit // max(1, len(self._rings)))
        poll = self.tail.poll(per_ring, rescan=self._awaits_ranks())
        for reader in poll.joined:
            self._join(reader)
        batches = [(reader, records) for reader, records in poll.batches if self._reads(reader)]
        for reader in {id(reader): reader for reader, _ in batches}.values():
            self._read_table(reader)
        self.ledger.add_batches([(reader.identity.key, records) for reader, records in batches])
        for reader in poll.ended:
            if self._reads(reader):
                self.ledger.rank_ended(reader.identity.key)
        for reader in poll.gone:
            key = reader.identity.key
            if self._reads(reader):
                self.ledger.forget(key)
                del self._rings[key], self._tables[key]
                self._named = {rank for told, table in self._tables.items() for rank in _named(told, table)}
        return poll.more

    def drain(self) -> None:
        """Take in everything that is committed now."""
        while self.poll():
            pass

    def ranks(self) -> tuple[RankStatus, ...]:
        """Return every watched rank as its ring shows it now, by run and rank."""
        return tuple(self._status(self._rings[key]) for key in sorted(self._rings))

    def close(self) -> None:
        """Close all files."""
        self.tail.close()

    def __enter__(self) -> Self:
        """Return the watch itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files."""
        self.close()

    def _reads(self, reader: RingReader) -> bool:
        """Whether this is its rank's ring: not one of a predecessor that died."""
        return self._rings.get(reader.identity.key) is reader

    def _awaits_ranks(self) -> bool:
        """Whether a series names ranks whose rings were not found (yet): a step must not be finished without them."""
        return not self._named <= self._rings.keys()

    def _join(self, reader: RingReader) -> None:
        """Take up a ring. Of two rings of one rank (it was restarted under its old run id) the younger one counts."""
        key = reader.identity.key
        other = self._rings.get(key)
        if other is not None:
            if reader.identity.start_time_ns < other.identity.start_time_ns:
                return
            self.ledger.forget(key)
        self._rings[key] = reader
        self._tables[key] = ()
        self.ledger.add_rank(reader.identity)
        self._read_table(reader)

    def _read_table(self, reader: RingReader) -> None:
        key, series = reader.identity.key, reader.series()
        if len(series) != len(self._tables[key]):
            self._tables[key] = series
            self._named |= _named(key, series)
            self.ledger.set_series(key, series)

    def _status(self, reader: RingReader) -> RankStatus:
        series = reader.series()
        return RankStatus(
            identity=reader.identity,
            path=reader.path,
            alive=reader.alive(),
            closed=reader.closed(),
            statistics=reader.statistics(),
            series=series,
            windows={info.name: reader.windows(index) for index, info in enumerate(series) if not info.refused},
        )


def _named(key: RankKey, table: tuple[SeriesInfo, ...]) -> set[RankKey]:
    """Return the ranks that a rank's series name as part of their groups, and that record them."""
    return {
        RankKey(key.run_id, rank)
        for info in table
        for rank in set(info.group_ranks).difference(untraced.rank for untraced in info.untraced)
    }
