"""Feed readers with damaged input: rings, folders of rings, recordings and requests, each changed at random.

``make fuzz CASES=1000000``. The damage of a case follows from its number, so ``--seed S --only N`` repeats it. Damage
knows the formats: it changes words of headers, sequence numbers, records, JSON with a right checksum, and frames that
are compressed again. A case ends *read*, or *refused* with the error that the format's reader documents. Any other
exception is a failure. So are too much memory, a case that takes seconds of CPU time, and a daemon that answers 500 or
loses a record of the healthy ranks beside the damaged rings.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import swtrace
from swtrace.errors import RecordingFormatError
from swtrace.observing import HostRings
from swtrace.recording import Recording
from swtrace.recording import format as layout
from swtrace.recording.format import FRAME, FRAME_BYTES, PREAMBLE, FrameKind
from swtrace.recording.tee import Tee
from swtrace.recording.writer import RecordingWriter
from swtrace.trace import schema
from swtrace.trace.records import STEP, TRANSFER
from tests.support.daemon_command import DaemonCommand, daemon
from tests.support.reading import read_in_every_way
from tests.support.recorded_run import RecordedRun

MEMORY = "/dev/shm"  # noqa: S108 (a folder with a random name is made inside)
ROOM_BYTES = 2 << 30
"""Address space that all cases together may add to what the program has at its start."""
GROWN_BYTES = 256 << 20
"""Resident memory that they may add."""
SLOW_S = 10
"""CPU time that a case may take. The slowest take a tenth of a second."""
PATIENCE_S = 60
IMPATIENCE_S = 0.05
"""How long to wait for the answer to a request that the daemon may not answer, because it is damaged."""
MOST_FAILURES = 10
SHARES = {"ring": 700, "recording": 270, "folder": 20, "request": 10}
"""How many of a thousand cases are of each kind: the dear ones are few."""
VIEWED = 0.05
"""Share of recordings, and of folders, of which every view is made."""
RING = "ring-fuzz-0-00000000.swt"
NUMBERS = (0, 1, 2, 63, 64, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 48, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TEXTS = ("", "x", "x" * 3000, "\x1b[2J", "\ud800", "{}", '"', "\n", "{job=1}", "../..", "é" * 50)


class Failure(Exception):  # noqa: N818 (of what is tested)
    """A reader broke its contract."""


class TooSlow(BaseException):  # readers catch every Exception
    """A case took too much CPU time."""


# -- damage ----------------------------------------------------------------------------------------------------------


def number(chance: random.Random) -> int:
    """Return a number of 64 bits, often one at which something ends."""
    return chance.choice(NUMBERS) if chance.random() < 0.7 else chance.getrandbits(chance.choice((8, 16, 32, 64)))


def value(chance: random.Random) -> Any:
    """Return any JSON value."""
    simple: tuple[Any, ...] = (None, True, -1, 1.5, 1e308, number(chance), 1 << 70, chance.choice(TEXTS), [], {})
    return chance.choice((*simple, [chance.choice(simple)] * chance.choice((1, 5, 5000)), {"a": chance.choice(simple)}))


def damaged_json(text: bytes, chance: random.Random) -> bytes:
    """Return a JSON document of which one value, at any depth, is another, or absent; sometimes no JSON at all."""
    if chance.random() < 0.1:
        return chance.choice((b"", b"[" * 5000, b"\xff", b"1" * 5000, b"null", text[: len(text) // 2], b'{"a":' * 900))
    try:
        document = place = json.loads(text)
    except (ValueError, RecursionError):  # damaged before
        document = place = None
    key = None
    while isinstance(place, dict | list) and place:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.3:
            break
        place = place[key]
    if key is None or chance.random() < 0.1:
        document = value(chance)
    elif chance.random() < 0.2:
        del place[key]
    else:
        place[key] = value(chance)
    return json.dumps(document).encode()


def damaged_record(record: bytearray, chance: random.Random) -> None:
    """Change one field of a record, its sequence number included."""
    kind = chance.choice((TRANSFER, STEP))
    name = chance.choice(kind.names or ())
    one = np.frombuffer(record, kind)
    size = one.dtype[name].itemsize
    raw = (number(chance) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    if chance.random() < 0.4:
        near = int(one[name][0]) + chance.choice((-1000, -1, 1, 1000))
        raw = (near & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    one[name] = np.frombuffer(raw, one.dtype[name])


def damaged_ring(data: bytearray, chance: random.Random) -> None:
    """Change a ring at one place or at several, knowing where things are."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        chance.choice(RING_DAMAGE)(data, chance)


def _any_bytes(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(max(1, len(data)))
    junk = chance.choice((chance.randbytes(chance.choice((1, 8, 64, 512))), b"\xff" * 8, bytes(64)))
    data[at : at + len(junk)] = junk[: max(0, len(data) - at)]


def _header_word(data: bytearray, chance: random.Random) -> None:
    if len(data) >= schema.HEADER.size:
        struct.pack_into("<Q", data, 8 * chance.randrange(schema.HEADER.size // 8), number(chance))


def _live_word(data: bytearray, chance: random.Random) -> None:
    at = chance.choice(
        (schema.SERIES_COUNT_OFFSET, schema.CLOSED_OFFSET, schema.ANCHOR_OFFSET, schema.ANCHOR_OFFSET + 8)
    )
    if len(data) >= at + 8:
        struct.pack_into("<Q", data, at, number(chance))


def _window_word(data: bytearray, chance: random.Random) -> None:
    at = schema.WINDOW_TABLE_OFFSET + 8 * chance.randrange(16)
    if len(data) >= at + 8:
        struct.pack_into("<Q", data, at, number(chance))


def _identity(data: bytearray, chance: random.Random) -> None:
    if len(data) < schema.HEADER_BYTES:
        return
    words = list(schema.HEADER.unpack_from(data))
    text = bytes(data[schema.IDENTITY_OFFSET : schema.IDENTITY_OFFSET + min(words[6], schema.IDENTITY_BYTES)])
    with suppress(ValueError):
        text = damaged_json(text, chance)[: schema.IDENTITY_BYTES]
    words[6:8] = len(text), zlib.crc32(text)
    schema.HEADER.pack_into(data, 0, *words)
    data[schema.IDENTITY_OFFSET : schema.IDENTITY_OFFSET + len(text)] = text


def _series(data: bytearray, chance: random.Random) -> None:
    if len(data) < schema.HEADER_BYTES:
        return
    at = schema.SERIES_TABLE_OFFSET + schema.SERIES_ENTRY.size
    (length,) = struct.unpack_from("<I", data, schema.SERIES_TABLE_OFFSET)
    text = bytes(data[at : at + min(length, schema.SERIES_SLOT_BYTES)])
    with suppress(ValueError):
        text = damaged_json(text, chance)[: schema.SERIES_SLOT_BYTES - schema.SERIES_ENTRY.size]
    entry = schema.SERIES_ENTRY.pack(len(text), zlib.crc32(text)) + text
    data[schema.SERIES_TABLE_OFFSET : schema.SERIES_TABLE_OFFSET + len(entry)] = entry


def _record(data: bytearray, chance: random.Random) -> None:
    slots = (len(data) - schema.HEADER_BYTES) // schema.RECORD_BYTES
    if slots <= 0:
        return
    for slot in {chance.randrange(slots) for _ in range(chance.choice((1, 1, 4, 64)))}:
        at = schema.HEADER_BYTES + slot * schema.RECORD_BYTES
        record = data[at : at + schema.RECORD_BYTES]
        damaged_record(record, chance)
        data[at : at + schema.RECORD_BYTES] = record


def _sequence(data: bytearray, chance: random.Random) -> None:
    """Move all sequence numbers, or wipe out a stretch of records."""
    first = schema.HEADER_BYTES + 8 * schema.SEQUENCE_WORD
    by, wipes = number(chance), chance.random() < 0.5
    for at in range(first, len(data) - 7, schema.RECORD_BYTES):
        if wipes and chance.random() < 0.5:
            data[at : at + 8] = bytes(8)
        elif not wipes:
            (before,) = struct.unpack_from("<Q", data, at)
            struct.pack_into("<Q", data, at, (before + by) & ((1 << 64) - 1))


def _size(data: bytearray, chance: random.Random) -> None:
    if chance.random() < 0.2:
        data += bytes(chance.choice((1, 64, 4096)))
    else:
        del data[
            chance.choice((0, 1, 119, 4096, schema.HEADER_BYTES, len(data) - 1, chance.randrange(len(data) + 1))) :
        ]


RING_DAMAGE: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _any_bytes, _any_bytes, _header_word, _live_word, _window_word, _identity, _series, _series, _record, _record,
    _record, _sequence, _size,
)  # fmt: skip

Frames = list[tuple[int, bytes, int, int]]
"""Kind, payload, number of records and time of capture of each frame."""


def frames_of(data: bytes) -> Frames:
    """Return the frames of an intact recording."""
    at, found = PREAMBLE.size, []
    while at < len(data):
        header = layout.read_header(data[at : at + FRAME_BYTES])
        stored = data[at + FRAME_BYTES : at + FRAME_BYTES + header.stored_bytes]
        found.append((header.kind, layout.inflate(header, stored), header.records, header.captured_ns))
        at += FRAME_BYTES + header.stored_bytes
    return found


def damaged_recording(frames: Frames, chance: random.Random) -> bytes:
    """Return a recording with one damage or several: of frames before they are packed, or of the packed bytes."""
    frames = list(frames)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        _damage_frames(frames, chance)
    packed = [_packed(*frame) for frame in frames]
    if packed and chance.random() < 0.2:
        index = chance.randrange(len(packed))
        packed[index] = _relabelled(packed[index], chance)
    data = bytearray(layout.preamble() + b"".join(packed))
    if chance.random() < 0.3:
        for _ in range(chance.choice((1, 1, 5, 50))):
            _any_bytes(data, chance)
    if chance.random() < 0.1:
        del data[chance.randrange(len(data) + 1) :]
    if chance.random() < 0.05:
        at = chance.randrange(len(data) + 1)
        data[at:at] = chance.randbytes(chance.choice((1, 40, 4096)))
    return bytes(data)


@lru_cache(256)
def _packed(kind: FrameKind, raw: bytes, count: int, captured_ns: int) -> bytes:
    return layout.frame(kind, raw, captured_ns, record_count=count)


def _damage_frames(frames: Frames, chance: random.Random) -> None:
    if not frames:
        return
    index = chance.randrange(len(frames))
    kind, raw, count, captured = frames[index]
    what = chance.randrange(10)
    if what == 0:
        del frames[index]
    elif what == 1:
        frames.insert(chance.randrange(len(frames) + 1), frames[index])
    elif what == 2:
        other = chance.randrange(len(frames))
        frames[index], frames[other] = frames[other], frames[index]
    elif what == 3:
        frames[index] = (chance.randrange(256), raw, number(chance) & 0xFFFFFFFF, number(chance))
    elif what == 4 and chance.random() < 0.02:
        frames[index] = (kind, bytes(layout.MAX_RAW_BYTES), count, captured)
    elif what <= 6:
        changed = bytearray(raw)
        _any_bytes(changed, chance)
        frames[index] = (kind, bytes(changed), count, captured)
    else:
        frames[index] = (kind, _damaged_payload(kind, raw, chance), count, captured)


def _damaged_payload(kind: int, raw: bytes, chance: random.Random) -> bytes:
    with suppress(RecordingFormatError, ValueError, struct.error):
        if kind == FrameKind.RECORDS:
            segments = layout.unpack_records(raw)
            rank, batch = chance.choice(segments)
            record = bytearray(batch[chance.randrange(len(batch)) :][:1].tobytes())
            damaged_record(record, chance)
            batch[chance.randrange(len(batch))] = np.frombuffer(bytes(record), batch.dtype)[0]
            if chance.random() < 0.2:
                segments.append((chance.choice((rank, rank + 1, 0xFFFFFFFF)), batch))
            return layout.pack_records(segments)
        if kind == FrameKind.RANK:
            return raw[:4] + damaged_json(raw[4:], chance)
        if kind == FrameKind.SERIES:
            text = damaged_json(raw[4 + schema.SERIES_ENTRY.size :], chance)
            return raw[:4] + schema.SERIES_ENTRY.pack(len(text), zlib.crc32(text)) + text
        if kind in {FrameKind.ABOUT, FrameKind.STATUS, FrameKind.END}:
            return damaged_json(raw, chance)
    return (number(chance) & 0xFFFFFFFF).to_bytes(4, "little") + raw[4:]


def _relabelled(packed: bytes, chance: random.Random) -> bytes:
    """Return a frame whose header says something else, with a right checksum."""
    words = list(FRAME.unpack_from(packed))
    index = chance.randrange(1, len(words))
    limit = (1 << 8, 1 << 8, 1 << 16, 1 << 32, 1 << 32, 1 << 32, 1 << 32, 1 << 64)[index - 1]
    words[index] = (words[index] + chance.choice((-1, 1)) if chance.random() < 0.3 else number(chance)) % limit
    header = FRAME.pack(*words)
    return header + layout.CHECKSUM.pack(zlib.crc32(header)) + packed[FRAME_BYTES:]


PATHS = ("/", "/metrics", "/healthz", "/api/v1", *(f"/api/v1/{name}" for name in (
    "snapshot", "ranks", "series", "windows", "steps", "health", "recording", "nothing",
)))  # fmt: skip
PARAMETERS = ("run", "series", "since", "limit", "fields", "newest", "every", "other")
ARGUMENTS = (
    "",
    "healthy",
    "0",
    "1",
    "-1",
    "9" * 30,
    "1e3",
    "stall_ns",
    "ready_ns,stall_ns",
    "%00",
    "%ff",
    "\u00e9",
    "a b",
    "'",
)
ACCEPTED = (
    ("Accept", ("*/*", "application/openmetrics-text;version=1.0.0", "text/plain;version=0.0.4;q=x", "\xff", ";q=,,")),
    ("Accept-Encoding", ("gzip", "gzip;q=0", "identity;q=0", "*;q=1.1", "br, gzip;q=")),
    ("Range", ("bytes=0-1",)),
    ("Authorization", ("Basic !", "Bearer x")),
)
HEADERS = (
    ("Connection", ("close", "keep-alive", "upgrade")),
    ("Content-Length", ("0", "5", "-1", "x", "9" * 20)),
    ("Transfer-Encoding", ("chunked", "gzip", "chunked, chunked")),
    ("Expect", ("100-continue",)),
    ("Upgrade", ("websocket", "h2c")),
    ("Cookie", ("x" * 70_000,)),
    ("Host", ("", "two")),
)


def request(chance: random.Random) -> tuple[bytes, bool]:
    """Return a request, and whether it is complete, so that any server answers it."""
    method = chance.choice(("GET",) * 12 + ("HEAD", "POST", "PUT", "DELETE", "OPTIONS"))
    pairs = [f"{chance.choice(PARAMETERS)}={chance.choice(ARGUMENTS)}" for _ in range(chance.choice((0, 0, 1, 2)))]
    path = chance.choice(PATHS)
    lines = [f"{method} {path}{'?' if pairs else ''}{'&'.join(pairs)} HTTP/1.1"]
    lines += ["Host: daemon", *(f"{name}: {chance.choice(values)}" for name, values in chance.sample(ACCEPTED, 1))]
    if chance.random() < 0.6:
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace").replace(b"a b", b"a+b"), True
    if chance.random() < 0.3:
        path = chance.choice(
            ("//", "/../etc/passwd", f"/api/v1/{'x' * 9000}", "http://other/metrics", "*", "/%2e%2e/", "")
        )
        other, version = chance.choice((method, "BREW", "get", "CONNECT")), chance.choice(("1.1", "1.0", "2.0", "9"))
        lines[0] = f"{other} {path} HTTP/{version}"
    lines += [f"{name}: {chance.choice(values)}" for name, values in chance.sample(HEADERS, chance.choice((0, 1, 3)))]
    text = bytearray("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))
    text += chance.choice((b"", b"hello", b"0\r\n\r\n"))
    if chance.random() < 0.5:
        for _ in range(chance.choice((1, 3, 10))):
            _any_bytes(text, chance)
    if chance.random() < 0.2:
        del text[chance.randrange(len(text) + 1) :]
    return bytes(text), False


# -- cases -----------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What the cases of a run share: a folder on tmpfs, intact bytes to damage, and a daemon once a case needs one."""

    folder: Path
    rings: list[bytes] = field(default_factory=list)
    frames: Frames = field(default_factory=list)
    healthy: RecordedRun = field(init=False)
    stack: ExitStack = field(default_factory=ExitStack)
    watching: DaemonCommand | None = None
    statuses: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Record a run, and keep its rings and its recording."""
        for checked_records in (64, 256):
            run = RecordedRun(self.folder / f"of-{checked_records}", run_id="fuzz", records=checked_records)
            run.write(20)
            run.write_untimed()
            self.rings += [recorder.path.read_bytes() for recorder in run.recorders]
            run.close()
            self.rings += [recorder.path.read_bytes() for recorder in run.recorders]
        with RecordingWriter(self.folder / "whole.swrec") as writer:
            tee = Tee(HostRings(self.folder / "of-256"), writer)
            tee.finish()
            tee.close()
        self.frames = frames_of((self.folder / "whole.swrec").read_bytes())
        # Its writer lives: a daemon forgets ranks that ended long ago.
        self.healthy = RecordedRun(self.folder / "watched", run_id="healthy")
        self.stack.callback(self.healthy.close)
        self.healthy.write(5)

    def ring(self, chance: random.Random) -> str:
        """Read one damaged ring in every way."""
        path = self.folder / RING
        path.write_bytes(self._damaged(chance))
        return "read" if read_in_every_way(path) else "refused"

    def _damaged(self, chance: random.Random) -> bytearray:
        data = bytearray(chance.choice(self.rings))
        damaged_ring(data, chance)
        return data

    def folder_of_rings(self, chance: random.Random) -> str:
        """Watch a folder of damaged rings and healthy ones: the healthy run has all its records."""
        folder = self.folder / "mixed"
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for recorder in self.healthy.recorders:
            os.link(recorder.path, folder / recorder.path.name)
        for index in range(chance.choice((1, 1, 2))):
            (folder / f"ring-fuzz-{index}-00000000.swt").write_bytes(self._damaged(chance))
        with swtrace.open(folder) as session:
            observed = session.observe()
            if chance.random() < VIEWED:
                views(session)
        ranks = [rank for rank in observed.ranks if rank.identity.run_id == "healthy"]
        delivered = [rank.ring.statistics.delivered for rank in ranks if rank.ring is not None]
        self._check_healthy(delivered)
        return "refused" if observed.problems else "read"

    def recording(self, chance: random.Random) -> str:
        """Read a damaged recording, and of some make every view, without and with salvage."""
        path = self.folder / "damaged.swrec"
        path.write_bytes(damaged_recording(self.frames, chance))
        outcome, viewed = "read", chance.random() < VIEWED
        for salvage in (False, True):
            try:
                with Recording.open(path, salvage=salvage) as recording:
                    for _event in recording.events():
                        pass
                    recording.missing()
                if viewed:
                    with swtrace.open(path, salvage=salvage) as session:
                        views(session)
            except RecordingFormatError as error:
                outcome = "refused"
                if str(path) not in str(error):
                    raise Failure(f"the error does not name the file: {error}") from error
        return outcome

    def request(self, chance: random.Random) -> str:
        """Send a request to a daemon, beside whose healthy run lie damaged rings that change."""
        if self.watching is None:
            self.watching = self.stack.enter_context(daemon(self.folder / "watched"))
        if chance.random() < 0.2:
            ring = self.folder / "watched" / f"ring-fuzz-{chance.randrange(4)}-00000000.swt"
            ring.write_bytes(self._damaged(chance))
        address = self.watching.client.base_url
        text, answered = request(chance)
        status = _answer((address.host, address.port or 80), text, PATIENCE_S if answered else IMPATIENCE_S)
        self.statuses[status] += 1
        if status == "500" or (answered and status == "none"):
            raise Failure(f"the daemon answered {status} to {text!r}")
        if chance.random() < 0.02:
            self.check_daemon()
        return "read" if status.startswith("2") else "refused"

    def check_daemon(self) -> None:
        """Fail unless the daemon lives and shows the healthy run whole."""
        if self.watching is None:
            return
        for path in ("/healthz", "/metrics", "/api/v1/snapshot"):
            answer = self.watching.client.get(path)
            if answer.status_code != http.client.OK:
                raise Failure(f"{path} answers {answer.status_code}: {answer.text[:200]}")
        ranks = answer.json()["ranks"]
        self._check_healthy([rank["records"] for rank in ranks if rank["run_id"] == "healthy"])

    def _check_healthy(self, records: list[int]) -> None:
        if records != [self.healthy.written] * self.healthy.ranks:
            raise Failure(f"the healthy ranks have {records} of {self.healthy.written} records each")

    def end(self) -> None:
        """End the daemon, and fail if it logged a traceback."""
        with self.stack:
            if self.watching is not None:
                self.check_daemon()
                said = self.watching.end()
                if "Traceback" in said:
                    raise Failure(f"the daemon logged:\n{said}")


def _answer(address: tuple[str, int], text: bytes, patience_s: float) -> str:
    """Send a request and return the status of its answer, or ``none``. A stream is left after its first bytes."""
    with socket.create_connection(address, PATIENCE_S) as client, suppress(ConnectionError, TimeoutError):
        client.sendall(text)
        client.settimeout(patience_s)
        words = client.recv(1 << 16).split(b" ", 2)
        return words[1].decode("latin-1") if len(words) > 1 and words[0].startswith(b"HTTP/") else "none"
    return "none"


def views(session: Any) -> None:
    """Make everything that people see of a session."""
    session.verdicts()
    session.waits()
    session.step_table()
    session.spans()


# -- the run ---------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of the cases."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def run(bench: Bench, seed: int, cases: range, tally: Tally, kinds: dict[str, int]) -> None:
    """Run cases until they end or too many have failed."""
    make = {"ring": bench.ring, "folder": bench.folder_of_rings, "recording": bench.recording, "request": bench.request}
    for case in cases:
        chance = random.Random(f"{seed}:{case}")  # noqa: S311 (repeatable)
        (kind,) = chance.choices(list(kinds), list(kinds.values()))
        signal.setitimer(signal.ITIMER_PROF, SLOW_S)
        try:
            outcome = make[kind](chance)
        except (Exception, TooSlow):  # noqa: BLE001 (what a case must not raise)
            outcome = "failed"
            only = "".join(f" --kind {each}" for each in kinds) if kinds != SHARES else ""
            repeat = f"python -m benchmarks.fuzz --seed {seed} --only {case}{only}"
            tally.failures.append(f"{traceback.format_exc()}A {kind}; repeat: {repeat}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        tally.outcomes[kind, outcome] += 1
        if len(tally.failures) >= MOST_FAILURES:
            break


def _too_slow(_number: int, _frame: object) -> None:
    raise TooSlow(f"more than {SLOW_S} s of CPU time")


@contextmanager
def limited() -> Iterator[None]:
    """Limit the address space and the time of a case, and turn warnings into errors."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.signal(signal.SIGPROF, _too_slow)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (_soft, hard))


def resident_bytes(pid: int | str = "self") -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def main() -> int:
    """Run the cases and print what became of them. Return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--only", type=int, help="repeat this case")
    parser.add_argument("--kind", choices=list(SHARES), action="append", help="only cases of this kind")
    arguments = parser.parse_args()
    kinds = {kind: share for kind, share in SHARES.items() if not arguments.kind or kind in arguments.kind}
    print(f"seed {arguments.seed}", flush=True)
    tally, began = Tally(), time.monotonic()
    parent = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="swtrace-fuzz-", dir=parent) as name:
        bench = Bench(Path(name))
        cases = range(arguments.cases) if arguments.only is None else range(arguments.only, arguments.only + 1)
        warm, before = len(cases) // 10, 0
        with limited(), suppress(KeyboardInterrupt):  # Ctrl-C: what became of the cases so far
            run(bench, arguments.seed, cases[:warm], tally, kinds)
            before = resident_bytes()
            run(bench, arguments.seed, cases[warm:], tally, kinds)
        grown = resident_bytes() - before if before else 0
        if grown > GROWN_BYTES:
            tally.failures.append(f"resident memory grew by {grown >> 20} MiB over the cases")
        try:
            bench.end()
        except Failure as failure:
            tally.failures.append(str(failure))
    for told in tally.failures:
        print(f"\n{told}", file=sys.stderr)
    took = time.monotonic() - began
    print(f"{sum(tally.outcomes.values())} cases in {took:.0f} s, memory grew by {max(0, grown) / (1 << 20):.1f} MiB")
    for kind in kinds:
        counts = {outcome: tally.outcomes[kind, outcome] for outcome in ("read", "refused", "failed")}
        print(f"{kind:>10}" + "".join(f"{count:>10} {outcome}" for outcome, count in counts.items()))
    if bench.statuses:
        print("  answers: " + ", ".join(f"{count} x {status}" for status, count in sorted(bench.statuses.items())))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
