"""Events about ranks and their rings, shared by all readers.

An :class:`~swtrace.observing.origin.Origin` yields events, a :class:`~swtrace.observing.roster.Roster` folds them into
an observation, and a recording stores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swtrace.ledger.alignment import Probe
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.marks import Marks, WindowState
from swtrace.trace.records import Records
from swtrace.trace.ring_reader import RingStatistics

NO_ANCHOR = ClockAnchor(0, 0)
NO_MARKS = Marks()


@dataclass(frozen=True, slots=True)
class RankJoined:
    """A ring was found."""

    identity: RankIdentity
    history: int = 0
    """How many records the rank had written by then that totals must not count."""

    @property
    def rank(self) -> RankKey:
        """The name of the rank."""
        return self.identity.key


@dataclass(frozen=True, slots=True)
class SeriesListed:
    """A rank's current series table. It only grows."""

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
    """A rank's writer is gone, and all its records were read."""

    rank: RankKey


@dataclass(frozen=True, slots=True)
class RankForgotten:
    """A rank's ring was removed, became unusable or was replaced by another one."""

    rank: RankKey


@dataclass(frozen=True, slots=True)
class RingState:
    """One rank's ring at one moment."""

    rank: RankKey
    alive: bool
    """Whether the writer holds its lock."""
    closed: bool
    """Whether the writer closed the ring."""
    statistics: RingStatistics
    anchor: ClockAnchor = NO_ANCHOR
    windows: tuple[tuple[WindowState, ...], ...] = ()
    """By series, in the order of the rank's table."""
    marks: Marks = NO_MARKS
    closed_series: frozenset[int] = frozenset()
    """Indexes of the series that a living writer has closed."""
    path: str = ""
    """The ring's file, or the daemon that reports it; empty in a recording."""
    taken_ns: int = 0
    """CLOCK_MONOTONIC of the rank's host at this moment; 0 for a state of long ago."""
    down_since_ns: int = 0
    """CLOCK_MONOTONIC at which the reader first saw the writer gone; 0 while it lives."""
    lag_ns: int = 0
    """How far reading is behind writing; 0 if everything was read."""

    @classmethod
    def unseen(cls, rank: RankKey, records: int, *, live: bool) -> RingState:
        """Return the state of a ring that was never reported. Only its records are known."""
        return cls(rank, alive=live, closed=not live, statistics=RingStatistics(records, records, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class RingsSeen:
    """The state of all rings."""

    rings: tuple[RingState, ...]
    problems: Mapping[str, str] = field(default_factory=dict)
    """Reasons why files cannot be read or are not shown, by path."""
    caught_up: bool = True
    """Whether all committed records were read."""


@dataclass(frozen=True, slots=True)
class ClockProbed:
    """A process measured another host's clock."""

    probe: Probe


RankEvent = RankJoined | SeriesListed | RankEnded | RankForgotten
"""An event about one rank."""
Event = RankEvent | RecordsRead | RingsSeen | ClockProbed
