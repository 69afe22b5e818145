"""Several origins joined into one, for the ranks of a run on several hosts, each with its own daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swtrace.observing.events import (
    ClockProbed,
    Event,
    RankEnded,
    RankForgotten,
    RankJoined,
    RecordsRead,
    RingsSeen,
    SeriesListed,
)
from swtrace.observing.origin import Link, Origin, OriginStatus, Polled
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey

_NEVER = 1 << 63


@dataclass(slots=True)
class _Claim:
    """A rank as one origin reports it."""

    joined: RankJoined
    listed: SeriesListed | None = None
    ended: bool = False

    def events(self) -> tuple[Event, ...]:
        """Return the events that make the rank known."""
        ended = (RankEnded(self.joined.rank),) if self.ended else ()
        return (self.joined, *((self.listed,) if self.listed is not None else ()), *ended)


class Merged:
    """Several origins as one.

    A rank belongs to the first origin that reports it, because two daemons may watch the same folder. If it ends there
    and another process lives as that rank elsewhere, it was restarted on another host and belongs to that one's origin.
    Two processes that live as the same rank are a problem.

    Events are held until every origin is lost or has reported its ranks. Then the ranks of all origins come first, so
    that no step is finished without the ranks of a host that only answers more slowly.
    """

    def __init__(self, origins: Sequence[Origin]) -> None:
        """Take ownership of the origins. None of them may block when polled."""
        self._origins = list(origins)
        self._owner: dict[RankKey, Origin] = {}
        self._claims: dict[RankKey, dict[Origin, _Claim]] = {}
        """By rank, what each origin reports, in the order in which they did."""
        self._held: list[Event] | None = []
        """Events held until all origins have answered; None after that."""
        self._released = False
        self._from_removed: list[Event] = []
        """Events about the ranks of removed origins, until the next poll."""

    def add(self, origin: Origin) -> None:
        """Join another origin, and take ownership of it."""
        self._origins.append(origin)

    def remove(self, origin: Origin) -> None:
        """Close an origin, and forget its ranks with the next poll."""
        self._origins.remove(origin)
        for rank in [rank for rank, claims in self._claims.items() if origin in claims]:
            self._from_removed += self._of(origin, RankForgotten(rank))
        origin.close()

    def poll(self, limit: int | None = None) -> Polled:
        """Return the new events of all origins."""
        share = None if limit is None else max(1, limit // max(1, len(self._origins)))
        polls = [(origin, origin.poll(share)) for origin in self._origins]
        events, self._from_removed = self._from_removed, []
        events += [event for origin, poll in polls for each in poll.events for event in self._of(origin, each)]
        # In the order of their instants, also if several origins probe one host, and not between records, which are
        # cheaper to process together.
        events.sort(key=lambda event: event.probe.at_ns if isinstance(event, ClockProbed) else _NEVER)
        more, ended = any(poll.more for _, poll in polls), bool(polls) and all(poll.ended for _, poll in polls)
        if self._held is not None:
            self._held += events
            if not self._released and any(status.link is Link.CONNECTING for status in self.status()):
                return Polled((), more)
            events, self._held = _ranks_first(self._held), None
        return Polled(tuple(events), more, ended)

    def release(self) -> None:
        """Return all held events with the next poll, and wait for no origin that has not answered."""
        self._released = True

    @property
    def problems(self) -> Mapping[str, str]:
        """The problems of all origins, and ranks that two processes claim to be."""
        problems = {path: text for origin in self._origins for path, text in origin.problems.items()}
        for rank, claims in self._claims.items():
            if len(claims) > 1:
                problems.update(self._rivals(rank))
        return problems

    def look(self) -> RingsSeen:
        """Return the state of all rings."""
        seen = [(origin, origin.look()) for origin in self._origins]
        return RingsSeen(
            tuple(ring for origin, each in seen for ring in each.rings if self._owner.get(ring.rank) is origin),
            self.problems,
            caught_up=self._held is None and all(each.caught_up for _, each in seen),
        )

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the newest clock anchor of each rank."""
        return {
            rank: anchor
            for origin in self._origins
            for rank, anchor in origin.anchors().items()
            if self._owner.get(rank) is origin
        }

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Refuse a rank at the origin that reported it."""
        owner = self._owner.get(rank)
        if owner is None:
            return ()
        return tuple(event for each in owner.refuse(rank, why) for event in self._of(owner, each))

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the status of each origin."""
        return tuple(status for origin in self._origins for status in origin.status())

    def close(self) -> None:
        """Close all origins."""
        for origin in self._origins:
            origin.close()

    def _of(self, origin: Origin, event: Event) -> tuple[Event, ...]:
        """Return what an event of an origin means for the ranks that belong to it, and for their owners."""
        if isinstance(event, RingsSeen):
            return ()  # that of all origins is what look() returns
        if isinstance(event, ClockProbed):
            return (event,)
        if isinstance(event, RecordsRead):
            mine = tuple(batch for batch in event.batches if self._owner.get(batch[0]) is origin)
            return (RecordsRead(mine),) if mine else ()
        rank, claims = event.rank, self._claims.setdefault(event.rank, {})
        if isinstance(event, RankJoined):
            claims[origin] = _Claim(event)
            if self._owner.setdefault(rank, origin) is origin:
                return (event,)
        elif origin not in claims:
            return ()
        elif isinstance(event, SeriesListed):
            claims[origin].listed = event
        elif isinstance(event, RankEnded):
            claims[origin].ended = True
        else:
            del claims[origin]
        passed_on = (event,) if self._owner.get(rank) is origin else ()
        return (*passed_on, *self._change_owner(rank))

    def _change_owner(self, rank: RankKey) -> tuple[Event, ...]:
        """Give a rank that has ended or is forgotten to another origin that reports it."""
        claims = self._claims[rank]
        before = claims.get(self._owner[rank])
        if before is not None and not before.ended:
            return ()
        for origin, claim in claims.items():
            if before is None or (not claim.ended and claim.joined.identity != before.joined.identity):
                self._owner[rank] = origin
                return (*((RankForgotten(rank),) if before is not None else ()), *claim.events())
        if before is None:
            del self._owner[rank], self._claims[rank]
        return ()

    def _rivals(self, rank: RankKey) -> Mapping[str, str]:
        """Return as problems which origins report another process that lives as this rank."""
        claims, owner = self._claims[rank], self._owner[rank]
        shown = claims[owner].joined.identity
        number, run_id = rank.rank, rank.run_id
        return {
            f"{_name(origin)}: rank {number} of run {run_id}": (
                f"rank {number} of run {run_id!r} is pid {shown.pid} on host {shown.host}, says {_name(owner)}; "
                f"not shown: it is also pid {other.pid} on host {other.host}, says {_name(origin)}; "
                "give each job its own SWTRACE_RUN_ID"
            )
            for origin, claim in claims.items()
            if (other := claim.joined.identity) != shown and not claim.ended and not claims[owner].ended
        }


def _name(origin: Origin) -> str:
    return ", ".join(status.name for status in origin.status())


def _ranks_first(events: Sequence[Event]) -> list[Event]:
    """Return the events, with the first :class:`RankJoined` of each rank moved to the front."""
    first: dict[RankKey, Event] = {}
    for event in events:
        if isinstance(event, RankJoined):
            first.setdefault(event.rank, event)
    in_front = {id(event) for event in first.values()}
    return [*first.values(), *(event for event in events if id(event) not in in_front)]
