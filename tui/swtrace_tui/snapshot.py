"""What a source knows at one moment, as frozen data: the only thing that crosses from its thread to the screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from swtrace.ledger.facts import LedgerFacts, SeriesKey, StepFacts
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.reader import RingStatistics, WindowState


class Link(StrEnum):
    """How a source stands."""

    LIVE = "live"
    RECORDED = "recording"
    """It is not live: a file."""
    WAITING = "waiting"
    """There, and nothing to watch yet."""
    ASKED = "asked"
    """It has not answered yet."""
    LOST = "lost"
    """It does not answer; what is shown is the last that it said."""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One place that facts come from."""

    name: str
    link: Link
    detail: str = ""
    """Why it is lost; which files cannot be read."""


@dataclass(frozen=True, slots=True)
class RankView:
    """A rank's ring, as its source saw it."""

    identity: RankIdentity
    alive: bool
    closed: bool
    statistics: RingStatistics
    series: tuple[SeriesInfo, ...]
    windows: Mapping[str, tuple[WindowState, ...]]
    """By series name."""
    before: int
    """Records left out or overwritten before this view began to read: nobody's loss."""
    taken_ns: int
    """CLOCK_MONOTONIC of the rank's host when this was read: what ages are counted from."""
    died: bool = False
    """It neither lives nor ended in an orderly way nor was stopped together with its run."""
    wall_offset_ns: int = 0
    """UNIX time minus CLOCK_MONOTONIC of the rank's host; 0 where nobody needs it."""

    @property
    def key(self) -> RankKey:
        """The name of the rank."""
        return self.identity.key


@dataclass(frozen=True, slots=True, repr=False)
class Snapshot:
    """Everything, at one moment."""

    sources: tuple[SourceStatus, ...]
    ranks: tuple[RankView, ...]
    facts: LedgerFacts
    history: Mapping[SeriesKey, tuple[StepFacts, ...]]
    """The last finished steps of each series, oldest first."""
    steps_left_out: int = 0
    """Finished steps that a source did not transmit since the view began."""
    clock_offsets: Mapping[RankKey, int] = field(default_factory=dict)
    """What to add to a rank's instants to compare them with the others': empty where all share one host."""

    def __repr__(self) -> str:
        """Return a short text: frameworks describe what they are handed, and these are thousands of numbers."""
        return f"Snapshot({len(self.ranks)} ranks, {len(self.history)} series)"


EMPTY_FACTS = LedgerFacts(ranks=(), series=(), steps_untaken=0)


def empty(*sources: SourceStatus) -> Snapshot:
    """Return a snapshot of nothing."""
    return Snapshot(sources=sources, ranks=(), facts=EMPTY_FACTS, history={})
