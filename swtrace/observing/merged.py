"""Several origins joined into one, for the ranks of a run on several hosts, each with its own daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swtrace.observing.events import Event, RankForgotten, RankJoined, RecordsRead, RingsSeen
from swtrace.observing.origin import Link, Origin, OriginStatus, Polled
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey


class Merged:
    """Several origins as one.

    A rank belongs to the first origin that reports it, because two daemons may watch the same folder. Events are held
    until every origin has answered or is lost. Then the ranks of all origins come first, so that no step is finished
    without the ranks of a host that only answers more slowly.
    """

    def __init__(self, origins: Sequence[Origin]) -> None:
        """Take ownership of the origins. None of them may block when polled."""
        self._origins = tuple(origins)
        self._owner: dict[RankKey, int] = {}
        self._held: list[Event] | None = []
        """Events held until all origins have answered; None after that."""

    def poll(self, limit: int | None = None) -> Polled:
        """Return the new events of all origins."""
        share = None if limit is None else max(1, limit // len(self._origins))
        polls = [origin.poll(share) for origin in self._origins]
        events = tuple(
            event for index, poll in enumerate(polls) for each in poll.events if (event := self._of(index, each))
        )
        more, ended = any(poll.more for poll in polls), all(poll.ended for poll in polls)
        if self._held is not None:
            self._held += events
            if any(status.link is Link.CONNECTING for status in self.status()):
                return Polled((), more)
            events, self._held = _ranks_first(self._held), None
        return Polled(events, more, ended)

    def look(self) -> RingsSeen:
        """Return the state of all rings."""
        seen = [origin.look() for origin in self._origins]
        return RingsSeen(
            tuple(
                ring for index, each in enumerate(seen) for ring in each.rings if self._owner.get(ring.rank) == index
            ),
            {path: text for each in seen for path, text in each.problems.items()},
            caught_up=all(each.caught_up for each in seen),
        )

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the newest clock anchor of each rank."""
        return {
            rank: anchor
            for index, origin in enumerate(self._origins)
            for rank, anchor in origin.anchors().items()
            if self._owner.get(rank) == index
        }

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Refuse a rank at the origin that reported it."""
        owner = self._owner.get(rank)
        events = () if owner is None else self._origins[owner].refuse(rank, why)
        return tuple(event for each in events if owner is not None and (event := self._of(owner, each)))

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the status of each origin."""
        return tuple(status for origin in self._origins for status in origin.status())

    def close(self) -> None:
        """Close all origins."""
        for origin in self._origins:
            origin.close()

    def _of(self, index: int, event: Event) -> Event | None:
        """Return the part of an event about ranks of this origin; None if there is none."""
        if isinstance(event, RingsSeen):
            return event
        if isinstance(event, RecordsRead):
            mine = tuple(batch for batch in event.batches if self._owner.get(batch[0]) == index)
            return RecordsRead(mine) if mine else None
        if isinstance(event, RankJoined):
            self._owner.setdefault(event.rank, index)
        if self._owner.get(event.rank) != index:
            return None
        if isinstance(event, RankForgotten):
            del self._owner[event.rank]
        return event


def _ranks_first(events: Sequence[Event]) -> tuple[Event, ...]:
    """Return the events, with the first :class:`RankJoined` of each rank moved to the front."""
    first: dict[RankKey, Event] = {}
    for event in events:
        if isinstance(event, RankJoined):
            first.setdefault(event.rank, event)
    in_front = {id(event) for event in first.values()}
    return (*first.values(), *(event for event in events if id(event) not in in_front))
