"""Watch a folder of rings: what every view stands on, be it a daemon, a terminal, a demo or a test.

A :class:`Watch` joins a :class:`~swtrace.trace.directory.Tail` (which files, which records) with a
:class:`~swtrace.ledger.Ledger` (what they mean). It belongs to one thread. It never disturbs the
ranks it watches, and any number may watch at once.

Whatever is wrong with one ring, or raised because of it, costs that ring its place and nothing else: it is dropped,
its rank is forgotten, and the tail's problems say why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from swtrace.errors import IntakeError, RecordingError
from swtrace.ledger import Ledger
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.reader import RingReader, RingStatistics, WindowState
from swtrace.trace.records import Records
from swtrace.trace.tail import LIMIT_PER_RING, Tail

TOGETHER_NS = 2_000_000_000
"""Ranks that end within this time of one another without a word were stopped together."""

_Answer = TypeVar("_Answer")
_NO_ANCHOR = ClockAnchor(0, 0)


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
    windows_by_index: tuple[tuple[WindowState, ...], ...] = ()
    """By index of the series: one rank may use a name for two ranges of layers."""
    anchor: ClockAnchor = _NO_ANCHOR
    down_since_ns: int = 0
    """CLOCK_MONOTONIC at which this reader first saw the writer gone; 0 while it lives."""
    lag_ns: int = 0
    """How far what was read is behind what is written; 0: everything is read."""
    died: bool = False
    """The writer neither lives nor ended in an orderly way nor was stopped together with all other ranks of its run."""


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
        poll = self.tail.poll(per_ring)
        for reader in {id(reader): reader for reader, _ in poll.batches if self._reads(reader)}.values():
            self._try(reader, self._read_table)
        # A rank that had a part in what was just read made its ring before: it joins before that is taken in.
        found = poll.joined + (self.tail.rescan() if self._awaits_ranks() else ())
        # Of rings of one rank that are found together one counts, before any of them makes a series.
        joined = _youngest(found)
        # Of ranks that were started again, first everything that they wrote in the life before.
        before = [
            other
            for reader in joined
            if (other := self._rings.get(reader.identity.key)) is not None and _is_younger(reader, other)
        ]
        self._take_in([(reader, records) for reader, records in poll.batches if reader in before])
        for other in before:
            self._try(other, self._take_rest)
        for reader in joined:
            self._try(reader, self._join)
        self._take_in([(reader, records) for reader, records in poll.batches if reader not in before])
        for reader in filter(self._reads, poll.ended):
            self._try(reader, self._end)
        for reader in filter(self._reads, poll.gone):
            self._forget(reader)
        for reader in self.tail.readers:
            if not self._reads(reader):
                self._try(reader, self._review_displaced)
        return poll.more or bool(found)

    def drain(self) -> None:
        """Take in everything that is committed now."""
        while self.poll():
            pass

    def ranks(self) -> tuple[RankStatus, ...]:
        """Return every watched rank as its ring shows it now, by run and rank."""
        statuses = []
        for key in sorted(self._rings):
            status = self._try(self._rings[key], self._status)
            if status is not None:
                statuses.append(status)
        died = died_ranks(statuses)
        return tuple(replace(status, died=status.identity.key in died) for status in statuses)

    def anchors(self) -> dict[RankIdentity, ClockAnchor]:
        """Return every watched rank's newest pair of clocks."""
        pairs = {}
        for reader in tuple(self._rings.values()):
            anchor = self._try(reader, RingReader.anchor)
            if anchor is not None:
                pairs[reader.identity] = anchor
        return pairs

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
        """Whether a series names ranks that may come: a step must not be finished without them.

        Their rings were not found yet; or they are down, and may be started again, while others of their run live.
        """
        living = {key.run_id for key, reader in self._rings.items() if not reader.down_since_ns}
        return any(
            key not in self._rings or (key.run_id in living and self._rings[key].down_since_ns) for key in self._named
        )

    def _take_in(self, batches: list[tuple[RingReader, Records]]) -> None:
        try:
            self.ledger.add_batches(
                [(reader.identity.key, records) for reader, records in batches if self._reads(reader)]
            )
            # At once: whatever it raises is the fault of one of these rings, and of none that is asked about later.
            self.ledger.settle()
        except IntakeError as error:
            for key, reason in error.reasons.items():
                self._drop(self._rings[RankKey(*key)], reason)

    def _try(self, reader: RingReader, action: Callable[[RingReader], _Answer]) -> _Answer | None:
        """Do something with a rank's ring; whatever it raises, the ring is dropped and the answer is None."""
        try:
            return action(reader)
        except RecordingError:  # Of whoever keeps the records: no ring's fault.
            raise
        except Exception as error:  # noqa: BLE001 (one ring must not end the reading of all others)
            self._drop(reader, error)
            return None

    def _drop(self, reader: RingReader, error: Exception) -> None:
        self.tail.drop(reader, f"cannot be made use of: {type(error).__name__}: {error}")
        if self._reads(reader):
            self._forget(reader)

    def _forget(self, reader: RingReader) -> None:
        key = reader.identity.key
        del self._rings[key]
        self._tables.pop(key, None)
        self._named = {rank for told, table in self._tables.items() for rank in _named(told, table)}
        self.ledger.forget(key)

    def _join(self, reader: RingReader) -> None:
        """Take up a ring. Of two rings of one rank (it was restarted under its old run id) the younger one counts."""
        key = reader.identity.key
        other = self._rings.get(key)
        if other is not None:
            if not _is_younger(reader, other):
                return
            self._forget(other)
        self._rings[key] = reader
        self._tables[key] = ()
        self.ledger.add_rank(reader.identity)
        self._read_table(reader)

    def _review_displaced(self, reader: RingReader) -> None:
        """Name a ring that another one displaced although its writer lives; take it up again once that one has ended.

        A writer that closed its ring is only about to end.
        """
        self.tail.problems.pop(reader.path, None)
        if not reader.alive() or reader.closed():
            return
        run_id, rank = reader.identity.key
        other = self._rings.get(reader.identity.key)
        if other is None or other.released:
            self._join(reader)
        elif other.alive() and other.identity != reader.identity:
            self.tail.problems[reader.path] = (
                f"{reader.path}: not shown: rank {rank} of another living job (pid {other.identity.pid}) uses the same "
                f"run id {run_id!r}; give each job its own SWTRACE_RUN_ID"
            )

    def _end(self, reader: RingReader) -> None:
        self.ledger.rank_ended(reader.identity.key)

    def _take_rest(self, reader: RingReader) -> None:
        """Take in what is left in the ring of a dead writer, if its reading had begun."""
        if reader.alive() or not reader.statistics().delivered or reader.released:
            return
        while len(records := reader.read()):
            self.ledger.add(reader.identity.key, records)
            self.ledger.settle()
        self._end(reader)

    def _read_table(self, reader: RingReader) -> None:
        key, series = reader.identity.key, reader.series()
        if len(series) != len(self._tables[key]):
            self._tables[key] = series
            self._named |= _named(key, series)
            self.ledger.set_series(key, series)

    def _status(self, reader: RingReader) -> RankStatus:
        series = reader.series()
        windows = tuple(reader.windows(index) for index in range(len(series)))
        return RankStatus(
            identity=reader.identity,
            path=reader.path,
            alive=reader.alive(),
            closed=reader.closed(),
            statistics=reader.statistics(),
            series=series,
            windows={info.name: each for info, each in zip(series, windows, strict=True) if not info.refused},
            windows_by_index=windows,
            anchor=reader.anchor(),
            down_since_ns=reader.down_since_ns,
            lag_ns=reader.lag_ns(),
        )


def _youngest(readers: Sequence[RingReader]) -> list[RingReader]:
    """Return each rank's ring that counts, in the order of the ranks' first ones."""
    chosen: dict[RankKey, RingReader] = {}
    for reader in readers:
        other = chosen.setdefault(reader.identity.key, reader)
        if _is_younger(reader, other):
            chosen[reader.identity.key] = reader
    return list(chosen.values())


def _is_younger(reader: RingReader, other: RingReader) -> bool:
    """Whether a ring takes the place of another one of its rank; a mere copy of a living ring does not.

    One that is written to comes first: the wall clock may have been set back since a dead one began.
    """
    return (reader.alive(), reader.identity.start_time_ns) > (other.alive(), other.identity.start_time_ns)


def died_ranks(statuses: Sequence[RankStatus]) -> set[RankKey]:
    """Return the ranks that are down without having closed their ring, unless their run was stopped with them.

    A rank that dies leaves others of its run behind: they go on, hang, or end after it. Ranks that are all killed at
    once were stopped from outside; so was a rank that had to be killed after the others had closed their rings.
    """
    died = set()
    for status in statuses:
        if status.alive or status.closed:
            continue
        others = [
            other
            for other in statuses
            if other.identity.run_id == status.identity.run_id and other.identity.rank != status.identity.rank
        ]
        grace_ns = {True: 0, False: TOGETHER_NS}
        if not others or any(
            other.alive or other.down_since_ns >= status.down_since_ns + grace_ns[other.closed] for other in others
        ):
            died.add(status.identity.key)
    return died


def _named(key: RankKey, table: tuple[SeriesInfo, ...]) -> set[RankKey]:
    """Return the ranks that a rank's series name as part of their groups, and that record them."""
    return {
        RankKey(key.run_id, rank)
        for info in table
        for rank in set(info.group_ranks).difference(untraced.rank for untraced in info.untraced)
    }
