"""Recordings for tests, of simulated schedules without rings, and of rings that this process writes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from swtrace.ledger import Ledger
from swtrace.observing import HostRings, Link, Observation, OriginStatus, Roster
from swtrace.observing.events import Event, RankEnded, RankJoined, RecordsRead, RingsSeen, RingState, SeriesListed
from swtrace.observing.origin import Polled
from swtrace.recording import Recording
from swtrace.recording.replay import Replay
from swtrace.recording.tee import Tee
from swtrace.recording.writer import FrameWriter, RecordingWriter
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey
from tests.support.schedules import Schedule, key, simulate


def schedule(
    *, ranks: int = 3, steps: int = 40, seed: int = 1, compute: int = 90, occupancy: int = 100_000
) -> Schedule:
    """Return a run in which about half of the waits stall; ``compute`` is in us."""
    chance = random.Random(seed)  # noqa: S311 - a reproducible schedule
    return simulate(
        ranks=ranks,
        layers=6,
        k=1,
        steps=steps,
        compute=lambda _rank, _step, _position: chance.randrange(compute * 500, compute * 1500),
        occupancy=occupancy,
        wake=1_000,
    )


class Told:
    """An origin that reports only a given list of events."""

    def __init__(self, events: Iterable[Event], rings: tuple[RingState, ...] = ()) -> None:
        self._events = tuple(events)
        self._rings = rings

    def poll(self, limit: int | None = None) -> Polled:  # noqa: ARG002 (all at once)
        """Return the events, once."""
        events, self._events = self._events, ()
        return Polled(events, more=False)

    @property
    def problems(self) -> Mapping[str, str]:
        """None."""
        return {}

    def look(self) -> RingsSeen:
        """Return the rings that were given."""
        return RingsSeen(self._rings)

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return nothing."""
        return {}

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Fail, because no test expects a refusal."""
        raise AssertionError(f"{rank}: {why}")

    def status(self) -> tuple[OriginStatus, ...]:
        """Return that it lives."""
        return (OriginStatus("told", Link.LIVE),)

    def close(self) -> None:
        """Do nothing."""


def events_of(made: Schedule, chance: random.Random, largest: int) -> Iterator[Event]:
    """Yield a whole schedule in batches of random sizes from random ranks."""
    for rank, info in enumerate(made.infos):
        yield RankJoined(made.identity(rank))
        yield SeriesListed(key(rank), (info,))
    at = [0] * len(made.records)
    while unread := [rank for rank, records in enumerate(made.records) if at[rank] < len(records)]:
        rank = chance.choice(unread)
        size = chance.randint(1, largest)
        yield RecordsRead(((key(rank), made.records[rank][at[rank] : at[rank] + size]),))
        at[rank] += size
        if at[rank] >= len(made.records[rank]):
            yield RankEnded(key(rank))


def write(writer: FrameWriter, made: Schedule, *, seed: int = 1, largest: int = 50) -> None:
    """Write a whole schedule into a recording."""
    for event in events_of(made, random.Random(seed), largest):  # noqa: S311 - reproducible
        writer.take(event)


def record(
    path: Path, made: Schedule, *, chance: random.Random | None = None, largest: int = 50, **options: object
) -> Ledger:
    """Record a schedule in batches of random sizes from random ranks. Return a ledger that got the same batches."""
    chance = chance or random.Random(2)  # noqa: S311 - as above
    with RecordingWriter(path, **options) as writer:  # type: ignore[arg-type]
        roster = Roster(Tee(Told(events_of(made, chance, largest)), writer))
        roster.drain()
    roster.ledger.flush()
    return roster.ledger


def record_rings(rings: Path, path: Path) -> None:
    """Record what the rings of a folder hold."""
    with RecordingWriter(path) as writer:
        tee = Tee(HostRings(rings), writer)
        tee.finish()
        tee.close()


def replayed(path: Path | list[Path], *, salvage: bool = False) -> Observation:
    """Replay a whole recording."""
    with Recording.open(path, salvage=salvage) as recording:
        return replay(recording)


def replay(recording: Recording) -> Observation:
    """Replay an open recording to its end."""
    roster = Roster(Replay(recording))
    roster.drain()
    return roster.observe()


def recorded_sequences(recording: Recording) -> dict[int, np.ndarray]:
    """Return the sequence numbers of the records of each rank."""
    found: dict[int, list[np.ndarray]] = {}
    for event in recording.events():
        if isinstance(event, RecordsRead):
            for rank, batch in event.batches:
                found.setdefault(rank.rank, []).append(batch["sequence"])
    return {rank: np.concatenate(parts) for rank, parts in found.items()}
