"""What the daemon knows at one moment, as frozen data: the only thing that metrics and API are made from.

Ring statistics, window states and ledger facts of one snapshot were taken together, between two polls, so
that sums across them hold exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtrace.ledger.facts import SeriesKey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from swtrace.daemon.exemplars import BucketExemplars
    from swtrace.ledger.facts import LedgerFacts, RankFacts, SeriesRankFacts, StepFacts
    from swtrace.spans.delivery import ExportStatistics
    from swtrace.trace.clocks import ClockAnchor
    from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
    from swtrace.trace.reader import RingStatistics, WindowState
    from swtrace.watch import RankStatus


@dataclass(frozen=True, slots=True)
class SeriesWindows:
    """One entry of a ring's series table, with the state of its windows."""

    index: int
    info: SeriesInfo
    windows: tuple[WindowState, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the daemon reads its rings."""

    trouble: str
    """What is wrong; empty if nothing is."""
    polled_realtime_ns: int
    """When it last read all that it could, UNIX time."""
    poll_errors: int
    """How often reading failed as a whole. A ring that cannot be read is a problem of its own, and no error."""


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank's ring."""

    identity: RankIdentity
    path: Path
    up: bool
    """The writer lives: it holds its lock."""
    closed: bool
    """The writer ended in an orderly way."""
    died: bool
    """It neither lives nor ended in an orderly way nor was stopped together with all other ranks of its run."""
    down_since_ns: int
    """CLOCK_MONOTONIC at which this daemon first saw the writer gone; 0 while up."""
    statistics: RingStatistics
    lag_ns: int
    """How far what this daemon has read is behind what is written; 0: everything is read."""
    anchor: ClockAnchor
    virtual_offset_ns: int
    """UNIX time at which simulated time is shown to begin: when the first ring of the run was made. Back ends
    refuse or hide what seems to come from the time of the machine's start."""
    series: tuple[SeriesWindows, ...]
    """In the order of the ring's table, refused ones included."""

    @classmethod
    def of(cls, status: RankStatus, virtual_offset_ns: int) -> RankState:
        """Return a rank as its ring shows it."""
        return cls(
            identity=status.identity,
            path=status.path,
            up=status.alive,
            closed=status.closed,
            died=status.died,
            down_since_ns=status.down_since_ns,
            statistics=status.statistics,
            lag_ns=status.lag_ns,
            anchor=status.anchor,
            virtual_offset_ns=virtual_offset_ns,
            series=tuple(
                SeriesWindows(index, info, windows)
                for index, (info, windows) in enumerate(zip(status.series, status.windows_by_index, strict=True))
            ),
        )

    @property
    def key(self) -> RankKey:
        """The name of the rank."""
        return self.identity.key

    @property
    def monotonic_offset_ns(self) -> int:
        """UNIX time minus CLOCK_MONOTONIC of the rank's host."""
        return self.anchor.realtime_ns - self.anchor.monotonic_ns

    @property
    def simulated(self) -> bool:
        """Every series of the rank runs on simulated time."""
        return bool(self.series) and all(entry.info.clock == "virtual" for entry in self.series)


@dataclass(frozen=True, slots=True)
class NumberedStep:
    """A finished step, with its number in the order in which this daemon saw steps finish."""

    number: int
    step: StepFacts


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, at one moment."""

    taken_ns: int
    """CLOCK_MONOTONIC."""
    taken_realtime_ns: int
    started_realtime_ns: int
    """When this daemon began: numbers of steps begin anew with it."""
    ranks: tuple[RankState, ...]
    facts: LedgerFacts
    steps: Mapping[SeriesKey, tuple[NumberedStep, ...]]
    """The last finished steps of each series, oldest first."""
    cursor: int
    """Number of the newest finished step of any series; 0 before the first."""
    problems: Mapping[Path, str]
    """Files in the directory that could not be read as rings."""
    spans: ExportStatistics
    exemplars: Mapping[tuple[RankKey, SeriesKey], BucketExemplars]
    """The slowest waits of late whose spans are exported."""
    caught_up: bool = True
    """Everything committed when the snapshot was asked for is in it; else the ranks say how far it is behind."""

    def rank_facts(self) -> dict[RankKey, RankFacts]:
        """Return the ledger's facts by rank."""
        return {facts.identity.key: facts for facts in self.facts.ranks}

    def stragglers(self) -> dict[tuple[RankKey, SeriesKey], float]:
        """Return the stragglers that the ledger names, with their excess as a share of the step time."""
        return {
            (series.straggler.rank, series.key): series.straggler.share
            for series in self.facts.series
            if series.straggler is not None
        }

    def series_rank_facts(self) -> dict[tuple[RankKey, SeriesKey], SeriesRankFacts]:
        """Return the ledger's facts by rank and series."""
        return {(rank.rank, series.key): rank for series in self.facts.series for rank in series.ranks}


def series_key(rank: RankKey, info: SeriesInfo) -> SeriesKey:
    """Return the name under which the ledger keeps a series of a rank."""
    return SeriesKey(rank.run_id, info.name, info.start_layer, info.group_ranks)
