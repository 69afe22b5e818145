"""What happens to ranks and their rings, as events: the one vocabulary of everything that reads.

An :class:`~swtrace.observing.origin.Origin` yields events, a :class:`~swtrace.observing.roster.Roster` folds them into
an observation, a recording keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import Records
from swtrace.trace.ring_reader import RingStatistics, WindowState

NO_ANCHOR = ClockAnchor(0, 0)


@dataclass(frozen=True, slots=True)
class RankJoined:
    """A ring was found."""

    identity: RankIdentity

    @property
    def rank(self) -> RankKey:
        """The name of the rank."""
        return self.identity.key


@dataclass(frozen=True, slots=True)
class SeriesListed:
    """A rank's series table, as it now stands. It only grows."""

    rank: RankKey
    series: tuple[SeriesInfo, ...]


@dataclass(frozen=True, slots=True)
class RecordsRead:
    """Batches of records, each in the order in which its rank wrote them."""

    batches: tuple[tuple[RankKey, Records], ...]

    def __len__(self) -> int:
        """Return the number of records."""
        return sum(len(records) for _, records in self.batches)


@dataclass(frozen=True, slots=True)
class RankEnded:
    """A rank's writer is gone, and everything it wrote was read."""

    rank: RankKey


@dataclass(frozen=True, slots=True)
class RankForgotten:
    """A rank's ring was removed, cannot be used any longer, or was replaced by another one."""

    rank: RankKey


@dataclass(frozen=True, slots=True)
class RingState:
    """One rank's ring at one moment."""

    rank: RankKey
    alive: bool
    """The writer holds its lock."""
    closed: bool
    """The writer ended in an orderly way."""
    statistics: RingStatistics
    anchor: ClockAnchor = NO_ANCHOR
    windows: tuple[tuple[WindowState, ...], ...] = ()
    """By series, in the order of the rank's table."""
    path: str = ""
    """The ring's file; empty where it is on another host or in a recording."""
    taken_ns: int = 0
    """CLOCK_MONOTONIC of the rank's host at this moment; 0 where it is long past."""
    down_since_ns: int = 0
    """CLOCK_MONOTONIC at which the reader first saw the writer gone; 0 while it lives."""
    lag_ns: int = 0
    """How far what was read is behind what is written; 0: everything is read."""

    @classmethod
    def unseen(cls, rank: RankKey, records: int, *, live: bool) -> RingState:
        """Return the state of a ring that was never reported: only its records are known."""
        return cls(rank, alive=live, closed=not live, statistics=RingStatistics(records, records, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class RingsSeen:
    """The state of all rings."""

    rings: tuple[RingState, ...]
    problems: Mapping[str, str] = field(default_factory=dict)
    """Files that cannot be read or are not shown, by path, and why."""
    caught_up: bool = True
    """Everything that was committed has been read."""


Event = RankJoined | SeriesListed | RecordsRead | RankEnded | RankForgotten | RingsSeen
