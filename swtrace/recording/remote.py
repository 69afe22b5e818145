"""Record through daemons: their streams of frames, joined into one recording.

A thread per daemon reads its stream; every frame is checked like a file's. Hosts are told apart by their
ranks' identities. A daemon that goes away ends its part of the recording: its ranks are told as ended, so that
the others' steps do not wait for them.
"""

from __future__ import annotations

import http.client
import queue
import threading
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from swtrace import asking
from swtrace.errors import AnswerError, RecordingError
from swtrace.ledger import Ledger
from swtrace.recording import format as layout
from swtrace.recording.capture import TellingLedger
from swtrace.recording.events import Event, RankJoined, RankState, RecordsRead, StatusTaken
from swtrace.recording.format import FRAME_BYTES, PREAMBLE
from swtrace.recording.reader import decode_event
from swtrace.recording.writer import RecordingWriter
from swtrace.trace.identity import RankKey

PATH = "/api/v1/recording"
_CONNECT_S = 10.0
_QUEUE = 256
"""Frames on their way: where the disk is slower than the network, the daemon's client waits, and nobody else."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A stream came to its end."""

    address: str
    why: str
    damaged: bool = False


class RemoteCapture:
    """Records what daemons send. Belongs to one thread; the streams have threads of their own.

    Args:
        addresses: ``host:port`` or URL of each daemon.
        writer: Where to.
        run_id: Only this run; None for all.

    Raises:
        RecordingError: a daemon does not answer, or has no such stream.
    """

    def __init__(self, addresses: Sequence[str], writer: RecordingWriter, *, run_id: str | None = None) -> None:
        self.writer = writer
        self.ledger: Ledger = TellingLedger(writer)
        self.ended: dict[str, str] = {}
        """Daemons that went away, and why."""
        self.damaged: set[str] = set()
        """Those of them whose stream was no sound recording."""
        self._states: dict[str, dict[RankKey, RankState]] = {address: {} for address in addresses}
        self._ranks: dict[str, set[RankKey]] = {address: set() for address in addresses}
        self._arrived: queue.Queue[tuple[str, Event] | _Ended] = queue.Queue(_QUEUE)
        self._closing = threading.Event()
        self._streams = [(address, _connect(address, run_id)) for address in addresses]
        for address, stream in self._streams:
            threading.Thread(
                target=self._read, args=(address, stream), name=f"swtrace-record-{address}", daemon=True
            ).start()

    def poll(self) -> bool:
        """Record what has arrived; True if there may be more at once.

        Raises:
            RecordingError: it cannot be written.
        """
        try:
            arrived = self._arrived.get_nowait()
        except queue.Empty:
            self.writer.tick()
            return False
        if isinstance(arrived, _Ended):
            self._end(arrived)
            return True
        address, told = arrived
        if address in self.ended:
            return True
        if isinstance(told, StatusTaken):
            self._states[address] = {state.rank: state for state in told.ranks if self._mine(address, state.rank)}
            self.writer.status(self.states())
            return True
        event = self._of(address, told)
        if event is not None:
            try:
                event.feed(self.ledger)
            except RecordingError:
                raise
            except Exception as error:  # noqa: BLE001 (one daemon's events must not end the recording of the others)
                self._end(_Ended(address, f"what it sent cannot be recorded: {error!r}", damaged=True))
        return True

    def _end(self, ended: _Ended) -> None:
        self.ended[ended.address] = ended.why
        if ended.damaged:
            self.damaged.add(ended.address)
        for rank in self._ranks[ended.address]:
            self.ledger.rank_ended(rank)

    @property
    def daemons(self) -> int:
        """How many daemons were asked."""
        return len(self._streams)

    def states(self) -> tuple[RankState, ...]:
        """Return the rings' state as it was last told."""
        return tuple(state for states in self._states.values() for state in states.values())

    def finish(self) -> None:
        """Close the recording, and let go of the daemons.

        Raises:
            RecordingError: it cannot be written.
        """
        self._closing.set()
        try:
            while self.poll():
                pass
            self.writer.status(self.states())
            self.writer.close()
        finally:
            for _, stream in self._streams:
                stream.close()

    def _mine(self, address: str, rank: RankKey) -> bool:
        """Tell whether this daemon was the first to send a ring: two daemons may watch one folder."""
        return rank in self._ranks[address]

    def _of(self, address: str, event: Event) -> Event | None:
        """Return what of an event comes from this daemon first; None if nothing does."""
        if isinstance(event, RankJoined):
            rank = event.identity.key
            if any(rank in ranks for other, ranks in self._ranks.items() if other != address):
                return None
            self._ranks[address].add(rank)
            return event
        if isinstance(event, RecordsRead):
            return RecordsRead(tuple(batch for batch in event.batches if self._mine(address, batch[0])))
        if isinstance(event, StatusTaken):
            return None
        return event if self._mine(address, event.rank) else None

    def _read(self, address: str, stream: BinaryIO) -> None:
        ranks: dict[int, RankKey] = {}
        why, damaged = "the daemon ended", True
        try:
            layout.check_preamble(_exactly(stream, PREAMBLE.size))
            damaged = False
            while not self._closing.is_set():
                found = layout.read_header(_exactly(stream, FRAME_BYTES))
                raw = layout.inflate(found, _exactly(stream, found.stored_bytes))
                event = decode_event(found, raw, ranks)
                if event is not None:
                    self._arrived.put((address, event))
        except (OSError, http.client.HTTPException) as error:
            why = "what answers sends no recording" if damaged else str(error) or why
        except Exception as error:  # noqa: BLE001 (whatever a damaged stream makes the decoding raise)
            why, damaged = str(error) or type(error).__name__, True
        if not self._closing.is_set():
            self._arrived.put(_Ended(address, why, damaged=damaged))


def _connect(address: str, run_id: str | None) -> BinaryIO:
    query = "" if run_id is None else f"?run={urllib.parse.quote(run_id)}"
    try:
        return cast("BinaryIO", asking.stream(address, f"{PATH}{query}", timeout_s=_CONNECT_S))
    except AnswerError as error:
        raise RecordingError(f"{error}. Is it a daemon of this version?") from error


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise ConnectionError("the daemon ended")
        data += more
    return data
