"""Record the events of an origin while passing them on to its reader."""

from __future__ import annotations

import time
from collections.abc import Mapping

from swtrace.observing.events import Event, RingsSeen
from swtrace.observing.origin import Origin, OriginStatus, Polled
from swtrace.recording.writer import FrameWriter
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey

STATUS_S = 1.0
"""How often the rings' state is recorded."""


class Tee:
    """An origin whose events are recorded.

    Args:
        origin: Where the events come from.
        writer: Where they are recorded.
        status_s: How often, in seconds, the state of the rings is recorded; also when the reader has caught up.
    """

    def __init__(self, origin: Origin, writer: FrameWriter, *, status_s: float = STATUS_S) -> None:
        self._origin = origin
        self._writer = writer
        self._status_s = status_s
        self._status_at_s = 0.0
        self._caught_up = False

    def poll(self, limit: int | None = None) -> Polled:
        """Record new events and return them.

        Raises:
            RecordingError: they cannot be written.
        """
        polled = self._origin.poll(limit)
        for event in polled.events:
            self._writer.take(event)
        self._writer.tick()
        now_s = time.monotonic()
        if now_s >= self._status_at_s or (not self._caught_up and not polled.more):
            self._status_at_s = now_s + self._status_s
            self._caught_up = not polled.more
            self.record_rings()
        return polled

    def finish(self) -> None:
        """Record everything committed so far, unless the recording is full, and the state of all rings.

        Raises:
            RecordingError: they cannot be written.
        """
        while not self._writer.full and self.poll().more:
            pass
        self.record_rings()

    def record_rings(self) -> None:
        """Record the current state of all rings."""
        self._writer.take(self._origin.look())

    @property
    def problems(self) -> Mapping[str, str]:
        """The problems of the origin."""
        return self._origin.problems

    def look(self) -> RingsSeen:
        """Return the current state of all rings."""
        return self._origin.look()

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the newest clock anchor of each rank."""
        return self._origin.anchors()

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Drop a rank, and record that."""
        events = self._origin.refuse(rank, why)
        for event in events:
            self._writer.take(event)
        return events

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the status of the origin."""
        return self._origin.status()

    def close(self) -> None:
        """Close the origin. Close the writer separately."""
        self._origin.close()
