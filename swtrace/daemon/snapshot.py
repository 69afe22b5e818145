"""Frozen snapshots of what the daemon serves. Metrics and API are made from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swtrace.daemon.exemplars import BucketExemplars
    from swtrace.ledger.facts import SeriesKey, StepFacts
    from swtrace.observing import Observation
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
    steps: Mapping[SeriesKey, tuple[NumberedStep, ...]]
    """The last finished steps of each series, oldest first."""
    cursor: int
    """Number of the newest finished step of any series; 0 before the first."""
    spans: ExportStatistics
    exemplars: Mapping[tuple[RankKey, SeriesKey], BucketExemplars]
    """The slowest recent waits whose spans are exported."""
