"""What a recording consists of: one event for each thing that a ledger was told, and the rings' state now and then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.reader import RingStatistics, WindowState
from swtrace.trace.records import Records


class RecordSink(Protocol):
    """Whatever takes in records: a ledger, a recording, both."""

    def add_rank(self, identity: RankIdentity) -> None:
        """Introduce a rank."""

    def set_series(self, rank: RankKey, series: tuple[SeriesInfo, ...]) -> None:
        """Set a rank's series table."""

    def add(self, rank: RankKey, records: Records) -> None:
        """Take in records of one rank, in the order in which it wrote them."""

    def rank_ended(self, rank: RankKey) -> None:
        """Hear that a rank will write no more."""

    def forget(self, rank: RankKey) -> None:
        """Hear that a rank's ring is gone."""


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank's ring at one moment."""

    rank: RankKey
    alive: bool
    closed: bool
    statistics: RingStatistics
    anchor: ClockAnchor
    windows: Mapping[str, tuple[WindowState, ...]]
    """By series name."""


@dataclass(frozen=True, slots=True)
class RankJoined:
    """A ring was found."""

    identity: RankIdentity

    def feed(self, sink: RecordSink) -> None:
        """Tell a ledger."""
        sink.add_rank(self.identity)


@dataclass(frozen=True, slots=True)
class SeriesTold:
    """A rank's series table, as it now stands."""

    rank: RankKey
    series: tuple[SeriesInfo, ...]

    def feed(self, sink: RecordSink) -> None:
        """Tell a ledger."""
        sink.set_series(self.rank, self.series)


@dataclass(frozen=True, slots=True)
class RecordsRead:
    """Batches of records, in the order in which a ledger took them in."""

    batches: tuple[tuple[RankKey, Records], ...]

    def feed(self, sink: RecordSink) -> None:
        """Tell a ledger."""
        for rank, records in self.batches:
            sink.add(rank, records)


@dataclass(frozen=True, slots=True)
class RankEnded:
    """A rank's writer is gone, and all it wrote was read."""

    rank: RankKey

    def feed(self, sink: RecordSink) -> None:
        """Tell a ledger."""
        sink.rank_ended(self.rank)


@dataclass(frozen=True, slots=True)
class RankForgotten:
    """A rank's ring was removed, or another one took its place."""

    rank: RankKey

    def feed(self, sink: RecordSink) -> None:
        """Tell a ledger."""
        sink.forget(self.rank)


@dataclass(frozen=True, slots=True)
class StatusTaken:
    """The rings' state: nothing that a ledger wants to know."""

    ranks: tuple[RankState, ...]

    def feed(self, sink: RecordSink) -> None:
        """Do nothing."""


Event = RankJoined | SeriesTold | RecordsRead | RankEnded | RankForgotten | StatusTaken
