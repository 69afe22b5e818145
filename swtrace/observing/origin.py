"""Origins of events: the rings of this host, a recording, a daemon, or several of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from swtrace.observing.events import Event, RingsSeen
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey


class Link(StrEnum):
    """Connection state of an origin."""

    LIVE = "live"
    RECORDED = "recording"
    """Not live: a file."""
    WAITING = "waiting"
    """Reachable, but there is nothing to watch yet."""
    CONNECTING = "connecting"
    """It has not answered yet."""
    LOST = "lost"
    """It no longer answers. Views show its last report."""


@dataclass(frozen=True, slots=True)
class Playhead:
    """Playback position of a recording."""

    at_ns: int
    """From the recording's beginning."""
    length_ns: int
    playing: bool
    speed: float
    ended: bool


@dataclass(frozen=True, slots=True)
class OriginStatus:
    """Status of one origin, for people."""

    name: str
    link: Link
    detail: str = ""
    """Why it is lost, or what cannot be read."""
    playhead: Playhead | None = None
    """Set for a recording that is played."""


class Polled(NamedTuple):
    """Events of an origin since the last poll."""

    events: tuple[Event, ...]
    """In the order in which they happened."""
    more: bool
    """Whether more can be read immediately."""
    ended: bool = False
    """Whether no more events will ever follow."""


class Origin(Protocol):
    """A source of events. It belongs to one thread."""

    def poll(self, limit: int | None = None) -> Polled:
        """Return new events.

        Args:
            limit: Approximate maximum of records, over all ranks; None for a sensible default.

        Raises:
            RecordingFormatError: The origin is a damaged recording.
        """

    @property
    def problems(self) -> Mapping[str, str]:
        """Reasons why files cannot be read or are not shown, by path; under an origin's name, why it shows nothing."""

    def look(self) -> RingsSeen:
        """Return the current state of all rings; for a recording or a daemon, the last reported state."""

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the newest clock anchor of each rank. This is cheaper than :meth:`look`."""

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Drop a rank whose events cannot be used, and report it among the problems.

        Returns:
            The resulting events, which must be processed at once.
        """

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the status of this origin, or of each origin that it joins."""

    def close(self) -> None:
        """Close all files and connections. Idempotent."""
