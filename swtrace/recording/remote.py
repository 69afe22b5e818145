"""A daemon as an origin: its stream of events, read in a separate thread.

Every frame is checked like a frame in a file. When a daemon is lost, its ranks end or are forgotten, so that the steps
of ranks on other hosts do not wait for them. A viewer reconnects until the daemon is back and then starts again from
scratch; a recorder does not.
"""

from __future__ import annotations

import http.client
import os
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from swtrace import http_client
from swtrace.credentials import ANONYMOUS, Credentials
from swtrace.errors import AccessError, AnswerError, RecordingError
from swtrace.ledger.alignment import Probe
from swtrace.observing.events import (
    ClockProbed,
    Event,
    RankEnded,
    RankForgotten,
    RankJoined,
    RecordsRead,
    RingsSeen,
)
from swtrace.observing.origin import Link, OriginStatus, Polled
from swtrace.recording import format as layout
from swtrace.recording.clock_probe import ClockProbes
from swtrace.recording.format import FRAME_BYTES, PREAMBLE
from swtrace.recording.reader import decode_event
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey

PATH = "/api/v1/recording"
_TIMEOUT_S = 5.0
"""A stream reports the state of the rings every second. One that is silent for this long is lost."""
_RETRY_S = 1.0
_QUEUE = 256
"""Most events waiting for the reader. If the reader is slower than the network, the daemon's stream to it waits."""
_AT_ONCE = 1 << 16
"""Records returned by one poll."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """The stream ended."""

    why: str
    damaged: bool


class DaemonStream:
    """The events of one daemon. Belongs to one thread; a separate thread reads the stream.

    Args:
        address: ``host:port`` or URL.
        run_id: Read only this run; None for all.
        newest_steps: Start about this many steps before the end of each ring, and skip steps rather than fall
            behind. None: read everything that the rings hold.
        every: Read only one step in so many, in runs of :data:`~swtrace.trace.schema.RUN_STEPS`.
        again: Reconnect when the daemon is lost.
        watching: Read for a daemon that watches this one. When it is lost, its ranks do not end but are forgotten. It
            must read the rings of its host, so that no daemon watches itself, directly or through others.
        credentials: What to show to the daemon, and to trust.

    Raises:
        SettingsError: the address is not valid.
    """

    def __init__(
        self,
        address: str,
        *,
        run_id: str | None = None,
        newest_steps: int | None = None,
        every: int = 1,
        again: bool = True,
        watching: bool = False,
        credentials: Credentials = ANONYMOUS,
    ) -> None:
        self.address = http_client.address(address)
        self.lost: str | None = None
        """Why the daemon is lost; None while it is not."""
        self.damaged = False
        """Whether the daemon is lost because what it sent is not a valid recording."""
        query = {
            "run": run_id,
            "newest": newest_steps,
            "every": every if every > 1 else None,
            "watching": 1 if watching else None,
        }
        chosen = urllib.parse.urlencode({name: value for name, value in query.items() if value is not None})
        self._path = f"{PATH}?{chosen}" if chosen else PATH
        self._again = again
        self._watching = watching
        self._credentials = credentials
        self._lost_since_s = 0.0
        self.reported = False
        """Whether the daemon has reported its rings, before which come its ranks, since it was connected."""
        self._ranks: set[RankKey] = set()
        self._seen = RingsSeen(())
        self._arrived: queue.Queue[Event | _Lost] = queue.Queue(_QUEUE)
        self._closing = threading.Event()
        self._stream: BinaryIO | None = None
        self._thread = threading.Thread(target=self._follow, name=f"swtrace-stream-{self.address}", daemon=True)

    def connect(self) -> None:
        """Connect now instead of at the first poll.

        Raises:
            RecordingError: the daemon does not answer, or has no such stream.
        """
        try:
            self._stream = self._open()
        except AccessError as error:
            raise RecordingError(str(error)) from error
        except AnswerError as error:
            raise RecordingError(f"{error}. Is a daemon of the same version running there?") from error

    def poll(self, limit: int | None = None) -> Polled:
        """Return what has arrived."""
        if self._thread.ident is None:
            self._thread.start()
        room = limit or _AT_ONCE
        events: list[Event] = []
        while room > 0:
            try:
                arrived = self._arrived.get_nowait()
            except queue.Empty:
                return Polled(tuple(events), more=False, ended=self.lost is not None and not self._again)
            if isinstance(arrived, _Lost):
                events += self._lose(arrived)
                continue
            if self.lost is not None and not isinstance(arrived, ClockProbed):  # that may be from before the loss
                events += self._start_again()
            self._note(arrived)
            events.append(arrived)
            room -= len(arrived) if isinstance(arrived, RecordsRead) else 1
        return Polled(tuple(events), more=True)

    @property
    def problems(self) -> Mapping[str, str]:
        """The problems that the daemon last reported. Two hosts may name the same path."""
        return {f"{self.address}: {path}": f"{self.address}: {text}" for path, text in self._seen.problems.items()}

    def look(self) -> RingsSeen:
        """Return the state of the rings as the daemon last reported it."""
        return replace(self._seen, problems=self.problems)

    def anchors(self) -> Mapping[RankKey, ClockAnchor]:
        """Return the last reported clock anchor of each rank."""
        return {ring.rank: ring.anchor for ring in self._seen.rings}

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Give up the daemon, because its data cannot be used."""
        self._ranks.discard(rank)
        why = f"its data for rank {rank.rank} cannot be used: {why}"
        return (RankForgotten(rank), *self._lose(_Lost(why, damaged=True)))

    def status(self) -> tuple[OriginStatus, ...]:
        """Return the state of the link to the daemon and the problems that it reports."""
        if self.lost is not None:
            gone_s = time.monotonic() - self._lost_since_s
            since = f", lost for {gone_s:.0f} s" if gone_s >= 1 and self._again else ""
            return (OriginStatus(self.address, Link.LOST, f"{self.lost}{since}"),)
        # A daemon that watches others has no ranks, and is not caught up, until all of these have answered.
        if not self.reported or not (self._ranks or self._seen.caught_up):
            return (OriginStatus(self.address, Link.CONNECTING),)
        problems = list(self._seen.problems.values())[:3]
        if not self._seen.caught_up:
            pending = sum(ring.statistics.pending for ring in self._seen.rings)
            lag_ns = max((ring.lag_ns for ring in self._seen.rings), default=0)
            records = "1 record" if pending == 1 else f"{pending} records"
            problems.insert(0, f"the daemon is catching up: {records}, {lag_ns / 1e9:.1f} s behind")
        return (OriginStatus(self.address, Link.LIVE if self._ranks else Link.WAITING, "; ".join(problems)),)

    def close(self) -> None:
        """Disconnect from the daemon, and wait for the thread that reads it."""
        self._closing.set()
        stream = self._stream
        with suppress(queue.Empty):
            self._arrived.get_nowait()  # makes room, because the thread may be waiting for it
        if self._thread.ident is None:
            self._disconnect()
        elif stream is not None:
            # Closing it here would wait for the thread's read, and the end of the process would find its lock held.
            _hang_up(stream)
            self._thread.join(_TIMEOUT_S)

    def _note(self, event: Event) -> None:
        if isinstance(event, RankJoined):
            self._ranks.add(event.rank)
        elif isinstance(event, RankForgotten):
            self._ranks.discard(event.rank)
        elif isinstance(event, RingsSeen):
            rings = tuple(replace(ring, path=self.address) for ring in event.rings)
            self._seen, self.reported = replace(event, rings=rings), True

    def _lose(self, lost: _Lost) -> list[Event]:
        if self.lost is None:
            self._lost_since_s = time.monotonic()
        first, self.lost, self.damaged = self.lost is None, lost.why, lost.damaged
        if self._watching:
            return self._forget_all()
        return [RankEnded(rank) for rank in sorted(self._ranks)] if first else []

    def _start_again(self) -> list[Event]:
        """Forget all ranks, because a new stream starts with the full state."""
        self.lost, self.damaged, self.reported = None, False, False
        return self._forget_all()

    def _forget_all(self) -> list[Event]:
        ranks, self._ranks = sorted(self._ranks), set()
        return [RankForgotten(rank) for rank in ranks]

    def _follow(self) -> None:
        while not self._closing.is_set():
            lost = self._read()
            if self._closing.is_set():
                return
            self._arrived.put(lost)
            if not self._again:
                return
            self._closing.wait(_RETRY_S)

    def _read(self) -> _Lost:
        """Read a stream to its end and return why it ended."""
        ranks: dict[int, RankKey] = {}
        probes: ClockProbes | None = None
        try:
            stream = self._stream = self._stream or self._open()
            layout.check_preamble(_exactly(stream, PREAMBLE.size))
            probes = ClockProbes(self.address, self._credentials, self._probed)
            while not self._closing.is_set():
                found = layout.read_header(_exactly(stream, FRAME_BYTES))
                event = decode_event(found, layout.inflate(found, _exactly(stream, found.stored_bytes)), ranks)
                if event is not None:
                    self._arrived.put(event)
        except AnswerError as error:
            return _Lost(str(error).removeprefix(f"{self.address}: "), damaged=False)
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or "the connection was lost"
            begun = probes is not None
            return _Lost(why if begun else "the server does not send a recording", damaged=not begun)
        except Exception as error:  # noqa: BLE001 (decoding a damaged stream may raise anything)
            return _Lost(str(error) or type(error).__name__, damaged=True)
        finally:
            self._disconnect()
            if probes is not None:
                probes.close()
        return _Lost("", damaged=False)

    def _probed(self, probe: Probe) -> None:
        """Pass a probe on to the reader, unless that would make the stream wait."""
        with suppress(queue.Full):
            self._arrived.put_nowait(ClockProbed(probe))

    def _open(self) -> BinaryIO:
        answer = http_client.stream(self.address, self._path, timeout_s=_TIMEOUT_S, credentials=self._credentials)
        return cast("BinaryIO", answer)

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(OSError, AttributeError):
                stream.close()


def _hang_up(stream: BinaryIO) -> None:
    """End a stream that another thread reads, which closes it then."""
    with suppress(OSError, ValueError, AttributeError), socket.socket(fileno=os.dup(stream.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise ConnectionError("the daemon closed the connection")
        data += more
    return data
