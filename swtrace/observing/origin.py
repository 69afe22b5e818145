"""Where events come from: the rings of this host, a recording, a daemon, or several of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from swtrace.observing.events import Event, RingsSeen
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey


class Link(StrEnum):
    """How an origin stands."""

    LIVE = "live"
    RECORDED = "recording"
    """Not live: a file."""
    WAITING = "waiting"
    """Reachable, but there is nothing to watch yet."""
    ASKED = "asked"
    """It has not answered yet."""
    LOST = "lost"
    """It no longer answers: what is shown is the last it reported."""


@dataclass(frozen=True, slots=True)
class Playhead:
    """Where the playing of a recording stands."""

    at_ns: int
    """From the recording's beginning."""
    length_ns: int
    playing: bool
    speed: float
    ended: bool


@dataclass(frozen=True, slots=True)
class OriginStatus:
    """How one origin stands, for people."""

    name: str
    link: Link
    detail: str = ""
    """Why it is lost; what cannot be read."""
    playhead: Playhead | None = None
    """Of a recording that is played."""


class Polled(NamedTuple):
    """What an origin has to say since it was last polled."""

    events: tuple[Event, ...]
    """In the order in which they happened."""
    more: bool
    """There is more to take at once."""
    ended: bool = False
    """There will never be more."""


class Origin(Protocol):
    """A place that events come from. It belongs to one thread."""

    def poll(self, limit: int | None = None) -> Polled:
        """Return what is new.

        Args:
            limit: About how many records to return at most, of all ranks together; None: as many as is sensible.

        Raises:
            RecordingFormatError: the origin is a recording, and damaged.
        """

    def look(self) -> RingsSeen:
        """Return the state of all rings now; of a recording or a daemon, as it was last reported."""

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the newest pair of clocks of each rank; cheaper than :meth:`look`."""

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Let go of a rank whose events cannot be used, and name it among the problems.

        Returns:
            What follows from that, and must be taken in at once.
        """

    def status(self) -> tuple[OriginStatus, ...]:
        """Return how this origin stands; several, where it joins several."""

    def close(self) -> None:
        """Let go of all files and connections; idempotent."""
