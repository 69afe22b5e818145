"""What the daemon serves at one moment, as frozen data: the only thing that metrics and API are made from."""

from __future__ import annotations

from dataclasses import dataclass
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
    """Whether the daemon reads its rings."""

    trouble: str
    """What is wrong; empty if nothing is."""
    polled_realtime_ns: int
    """When it last read all that it could, UNIX time."""
    poll_errors: int
    """How often reading failed as a whole. A ring that cannot be read is a problem of its own, and no error."""


@dataclass(frozen=True, slots=True)
class NumberedStep:
    """A finished step, with its number in the order in which this daemon saw steps finish."""

    number: int
    step: StepFacts


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An observation, with what the daemon adds to it."""

    observation: Observation
    """Without ranks that have been down for long."""
    taken_realtime_ns: int
    started_realtime_ns: int
    """When this daemon began: numbers of steps begin anew with it."""
    steps: Mapping[SeriesKey, tuple[NumberedStep, ...]]
    """The last finished steps of each series, oldest first."""
    cursor: int
    """Number of the newest finished step of any series; 0 before the first."""
    spans: ExportStatistics
    exemplars: Mapping[tuple[RankKey, SeriesKey], BucketExemplars]
    """The slowest waits of late whose spans are exported."""
