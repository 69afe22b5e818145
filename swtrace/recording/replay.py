"""A recording as an origin, replayed as fast as it can be read. It yields the facts that the ranks' rings yielded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from swtrace.observing.events import Event, RankForgotten, RankJoined, RecordsRead, RingsSeen, RingState
from swtrace.observing.origin import Link, OriginStatus, Polled
from swtrace.recording.reader import Recording
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, RankKey

_AT_ONCE = 1 << 15
"""Records returned by one poll."""


class Replay:
    """Replays a recording once.

    Args:
        recording: The recording to replay. It must stay open meanwhile; :meth:`close` closes it.
    """

    def __init__(self, recording: Recording) -> None:
        self.identities: list[RankIdentity] = []
        """The identity of every ring so far, including replaced ones, in the order in which they were found."""
        self._recording = recording
        self._events: Iterator[Event] = recording.events()
        self._rings: dict[RankKey, RingState] = {}
        self._problems: Mapping[str, str] = {}
        self._refused: dict[str, str] = {}

    def poll(self, limit: int | None = None) -> Polled:
        """Return the next events."""
        room = limit or _AT_ONCE
        events = []
        for event in self._events:
            self._note(event)
            events.append(event)
            if isinstance(event, RecordsRead):
                room -= len(event)
                if room <= 0:
                    return Polled(tuple(events), more=True)
        return Polled(tuple(events), more=False, ended=True)

    @property
    def problems(self) -> Mapping[str, str]:
        """The recorded problems, and what is ignored."""
        return {**self._problems, **self._refused}

    def look(self) -> RingsSeen:
        """Return the last recorded state of the rings."""
        rings = (replace(ring, taken_ns=0) for ring in self._rings.values())
        return RingsSeen(tuple(rings), self.problems)

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the last recorded clock anchor of each rank."""
        return {rank: ring.anchor for rank, ring in self._rings.items()}

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Ignore a rank from now on."""
        self._refused[str(self._recording.paths[0])] = f"rank {rank.rank} of run {rank.run_id} is ignored: {why}"
        return (RankForgotten(rank),)

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the file and what is missing from it."""
        detail = " ".join((*self._recording.missing().sentences, *self._refused.values()))
        return (OriginStatus(str(self._recording.paths[0]), Link.RECORDED, detail),)

    def close(self) -> None:
        """Close the files."""
        self._recording.close()

    def _note(self, event: Event) -> None:
        if isinstance(event, RankJoined):
            self.identities.append(event.identity)
        elif isinstance(event, RingsSeen):
            self._rings.update((ring.rank, ring) for ring in event.rings)
            self._problems = event.problems
