"""A recording as an origin that plays at the pace of the run: pause, step, seek, speed.

Time is taken from the records, so that a run recorded after its end plays at the pace at which it ran. Records
are delivered step by step, in time order across ranks; the facts of a ledger do not depend on this order. Going
back forgets every rank and starts again from the beginning, in slices, so that the screen stays responsive.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from swtrace.errors import RecordingFormatError
from swtrace.observing.events import (
    Event,
    RankForgotten,
    RankJoined,
    RecordsRead,
    RingsSeen,
    RingState,
    SeriesListed,
)
from swtrace.observing.origin import Link, OriginStatus, Playhead, Polled
from swtrace.recording.reader import Recording
from swtrace.recording.replay import Replay
from swtrace.trace.clocks import now_ns
from swtrace.trace.identity import RankKey, SeriesInfo
from swtrace.trace.records import Records, last_ns
from swtrace.trace.schema import Kind

SPEEDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0, 30.0, 100.0)
PIECES_AT_ONCE = 200
"""How many pieces, about one step of one rank each, are delivered before the screen is updated."""


class Controls:
    """The user's controls of a playback. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._playing = True
        self._speed = 1.0
        self._seek: float | None = None
        self._seek_by_ns = 0
        self._steps = 0

    def toggle(self) -> bool:
        """Play or pause. Return whether it is now playing."""
        with self._lock:
            self._playing = not self._playing
            return self._playing

    def faster(self, by: int) -> float:
        """Change the speed by ``by`` entries of :data:`SPEEDS`, and return it."""
        with self._lock:
            at = min(range(len(SPEEDS)), key=lambda index: abs(SPEEDS[index] - self._speed))
            self._speed = SPEEDS[min(len(SPEEDS) - 1, max(0, at + by))]
            return self._speed

    def seek(self, share: float) -> None:
        """Go to a share of the recording, from 0 to 1."""
        with self._lock:
            self._seek = min(1.0, max(0.0, share))

    def seek_by(self, seconds: float) -> None:
        """Go forward or, with a negative number, back."""
        with self._lock:
            self._seek_by_ns += round(seconds * 1e9)

    def step(self) -> None:
        """Pause, and advance by one step."""
        with self._lock:
            self._playing = False
            self._steps += 1

    def take(self) -> tuple[bool, float, float | None, int, int]:
        """Return ``(playing, speed, share to seek, ns to seek by, steps)``, and reset the last three."""
        with self._lock:
            wanted = (self._playing, self._speed, self._seek, self._seek_by_ns, self._steps)
            self._seek, self._seek_by_ns, self._steps = None, 0, 0
            return wanted


@dataclass(order=True, slots=True)
class _Piece:
    time_ns: int
    number: int
    event: Event


class Playback(Replay):
    """Plays a recording.

    Args:
        recording: The recording to play. It must stay open meanwhile; ``close`` closes it.
        controls: The user's controls.
        clock: Returns the real time, in CLOCK_MONOTONIC.
    """

    def __init__(self, recording: Recording, controls: Controls, *, clock: Callable[[], int] = now_ns) -> None:
        super().__init__(recording)
        self._controls = controls
        self._clock = clock
        self._begin_ns, self._end_ns = _extent(recording)
        self._at_ns = self._target_ns = self._begin_ns
        self._last_ns = clock()
        self._speed = 1.0
        self._playing = True
        self._damage = ""
        self._joined: set[RankKey] = set()
        self._tables: dict[RankKey, tuple[SeriesInfo, ...]] = {}
        self._delivered: Counter[RankKey] = Counter()
        self._pieces = _pieces(recording.events())
        self._next = next(self._pieces, None)

    @property
    def head(self) -> Playhead:
        """The position and state of the playback."""
        return Playhead(
            at_ns=self._at_ns - self._begin_ns,
            length_ns=self._end_ns - self._begin_ns,
            playing=self._playing,
            speed=self._speed,
            ended=self._next is None,
        )

    def poll(self, limit: int | None = None) -> Polled:  # noqa: ARG002 (pieces are small)
        """Apply the controls and return the events that are due."""
        if self._damage:
            return Polled((), more=False)
        try:
            return self._play()
        except RecordingFormatError as error:
            self._damage = str(error)
            return Polled(self._forgotten(), more=False)

    def look(self) -> RingsSeen:
        """Return the last recorded state of the rings, with counts up to the playhead. Ranks live until the end."""
        rings = {rank: self._rings.get(rank) or RingState.unseen(rank, 0, live=False) for rank in self._joined}
        return RingsSeen(tuple(self._played(ring) for ring in rings.values()), self.problems)

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the file and the playhead."""
        (status,) = super().status()
        if self._damage:
            return (replace(status, link=Link.LOST, detail=self._damage),)
        missing = self._recording.missing()
        damaged = f"{missing.damaged_records} records damaged" if missing.damaged_frames else ""
        return (replace(status, detail=damaged, playhead=self.head),)

    def _play(self) -> Polled:
        playing, speed, seek, seek_by_ns, steps = self._controls.take()
        now = self._clock()
        elapsed, self._last_ns = now - self._last_ns, now
        self._playing, self._speed = playing, speed
        if seek is not None or seek_by_ns:
            length = self._end_ns - self._begin_ns
            self._target_ns = self._target_ns if seek is None else self._begin_ns + round(seek * length)
            self._target_ns += seek_by_ns
        elif playing and self._at_ns >= self._target_ns:
            self._target_ns += round(elapsed * speed)
        self._target_ns = min(self._end_ns, max(self._begin_ns, self._target_ns))
        events: list[Event] = []
        if self._target_ns < self._at_ns:
            events += self._rewind()
        for _ in range(steps):
            events += self._one_step()
        delivered = 0
        while self._due() and delivered < PIECES_AT_ONCE:
            events.append(self._deliver())
            delivered += 1
        more = self._due()
        if not more:
            self._at_ns = max(self._at_ns, self._target_ns)
        return Polled(tuple(events), more, ended=self._next is None)

    def _rewind(self) -> tuple[Event, ...]:
        events = self._forgotten()
        self._rings, self._problems = {}, {}
        self._pieces = _pieces(self._recording.events())
        self._next = next(self._pieces, None)
        self._at_ns = self._begin_ns
        return events

    def _forgotten(self) -> tuple[Event, ...]:
        """Return events that forget every rank, because their records are delivered from the start again."""
        ranks = sorted(self._joined)
        self._joined.clear()
        self._tables.clear()
        self._delivered.clear()
        return tuple(RankForgotten(rank) for rank in ranks)

    def _due(self) -> bool:
        """Return whether the playhead has reached the next piece. At the end it has passed everything."""
        return self._next is not None and (self._next.time_ns <= self._target_ns or self._target_ns >= self._end_ns)

    def _one_step(self) -> Iterator[Event]:
        """Yield events until the last rank of some series, or any of a pull series, has ended one more step."""
        while self._next is not None:
            self._target_ns = max(self._target_ns, self._next.time_ns)
            event = self._deliver()
            yield event
            if isinstance(event, RecordsRead) and any(self._ends_a_step(*batch) for batch in event.batches):
                return

    def _ends_a_step(self, rank: RankKey, records: Records) -> bool:
        table = self._tables.get(rank, ())
        for index in set(records["series"][records["kind"] == Kind.STEP].tolist()):
            group = table[index].group_ranks if index < len(table) else ()
            if group and not table[index].lockstep:
                return True
            if rank.rank == next(
                (each for each in reversed(group) if RankKey(rank.run_id, each) in self._joined), None
            ):
                return True
        return False

    def _deliver(self) -> Event:
        piece = self._next
        if piece is None:
            raise RecordingFormatError("there is nothing left to play")
        self._note(piece.event)
        self._at_ns = max(self._at_ns, min(piece.time_ns, self._end_ns))
        self._next = next(self._pieces, None)
        return piece.event

    def _note(self, event: Event) -> None:
        super()._note(event)
        match event:
            case RankJoined():
                self._joined.add(event.rank)
            case SeriesListed(rank, series):
                self._tables[rank] = series
            case RankForgotten(rank):
                self._joined.discard(rank)
            case RecordsRead(batches):
                for rank, records in batches:
                    self._delivered[rank] += len(records)
            case _:
                pass

    def _played(self, ring: RingState) -> RingState:
        """Return the state of a ring at the playhead, with the records played and those that the recorder missed."""
        delivered, missed = self._delivered[ring.rank], ring.statistics
        ended = self._next is None
        return replace(
            ring,
            alive=ring.alive or not ended,
            closed=ring.closed and ended,
            down_since_ns=ring.down_since_ns if ended else 0,
            statistics=missed._replace(
                written=delivered + missed.lost + missed.skipped, delivered=delivered, pending=0
            ),
            taken_ns=0,
        )


def _pieces(events: Iterator[Event]) -> Iterator[_Piece]:
    """Yield a recording in small pieces, each with the instant at which it is due."""
    now, number = 0, 0
    for event in events:
        if not isinstance(event, RecordsRead):
            number += 1
            yield _Piece(now, number, event)
            continue
        queues: dict[RankKey, list[_Piece]] = {}
        for rank, records in event.batches:
            queue = queues.setdefault(rank, [])
            for part, ends_ns in _by_step(records):
                # Keep the order of each rank's records, whatever their instants are.
                time_ns = max(ends_ns, queue[-1].time_ns if queue else now)
                number += 1
                queue.append(_Piece(time_ns, number, RecordsRead(((rank, part),))))
        for piece in heapq.merge(*queues.values()):
            now = max(now, piece.time_ns)
            yield _Piece(now, piece.number, piece.event)


def _by_step(records: Records) -> Iterator[tuple[Records, int]]:
    """Yield the parts of a batch, cut after each STEP record, with the last instant of each part."""
    cuts = np.flatnonzero(records["kind"] == Kind.STEP) + 1
    for part in np.split(records, cuts):
        if len(part):
            yield part, last_ns(part)


def _extent(recording: Recording) -> tuple[int, int]:
    """Return the first and the last instant of a recording, from its first and last records."""
    begin = end = 0
    for batches in recording.outermost_records():
        times = [int(batch["issued_ns"].max(initial=0)) for _, batch in batches if len(batch)]
        known = [batch["issued_ns"][batch["issued_ns"] > 0] for _, batch in batches]
        starts = [int(instants.min()) for instants in known if len(instants)]
        ends = [last_ns(batch) for _, batch in batches]
        begin = begin or min(starts, default=0)
        end = max(end, *times, *ends) if times else end
    return begin, max(begin, end)
