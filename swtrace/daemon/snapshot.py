"""Frozen snapshots of what the daemon serves. Metrics and API are made from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from swtrace.observing import Link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swtrace.daemon.daemon_settings import Watched
    from swtrace.daemon.exemplars import BucketExemplars
    from swtrace.ledger.facts import SeriesKey, StepFacts
    from swtrace.observing import Observation, ObservedRank
    from swtrace.spans.delivery import ExportStatistics
    from swtrace.trace.identity import RankKey


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the daemon can read its rings."""

    trouble: str
    """The current problem; empty if there is none."""
    polled_realtime_ns: int
    """UNIX time of the last successful poll."""
    poll_errors: int
    """Polls that failed as a whole. A single unreadable ring is a problem of the observation and not counted here."""


class ExportOutcome(StrEnum):
    """What became of an export of all metrics."""

    ACCEPTED = "accepted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class NumberedStep:
    """A finished step, with its number in the order in which this daemon saw steps finish."""

    number: int
    step: StepFacts


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An observation, with the additions of the daemon."""

    observation: Observation
    """Without ranks that have been down for long."""
    taken_realtime_ns: int
    started_realtime_ns: int
    """When this daemon started. Step numbers start again with each daemon."""
    steps: Mapping[tuple[SeriesKey, int | None], tuple[NumberedStep, ...]]
    """The last finished steps of each series, oldest first; in a pull series, those of each group rank. The rank is
    None otherwise."""
    cursor: int
    """Number of the newest finished step of any series; 0 before the first."""
    spans: ExportStatistics
    exemplars: Mapping[tuple[RankKey, SeriesKey], BucketExemplars]
    """The slowest recent waits whose spans are exported."""
    watched: Watched | None = None
    """The daemons that this daemon watches; None if it reads the rings of its host."""


@dataclass(frozen=True, slots=True)
class WatchedSource:
    """A daemon that this daemon watches, with sums over its ranks."""

    name: str
    """Its address."""
    state: Link
    detail: str
    """Why it is lost, or what it cannot read."""
    ranks: int
    lag_ns: int
    """How far the rank that is furthest behind is behind."""
    lost: int
    """Records overwritten, damaged or skipped since the connection was made."""

    @property
    def up(self) -> bool:
        """Whether it answers."""
        return self.state in {Link.LIVE, Link.WAITING}


def watched_sources(snapshot: Snapshot) -> tuple[WatchedSource, ...]:
    """Return the watched daemons; none if the daemon reads the rings of its host."""
    if snapshot.watched is None:
        return ()
    ranks: dict[str, list[ObservedRank]] = {}
    for rank in snapshot.observation.ranks:
        ranks.setdefault(rank.ring.path, []).append(rank)
    return tuple(
        WatchedSource(
            name=origin.name,
            state=origin.link,
            detail=origin.detail,
            ranks=len(mine := ranks.get(origin.name, [])),
            lag_ns=max((rank.ring.lag_ns for rank in mine), default=0),
            lost=sum(rank.lost for rank in mine),
        )
        for origin in snapshot.observation.origins
    )
