"""Write a recording: append frames to a file in bounded memory, each completely or not at all.

A frame is written with one call and then belongs to the kernel. Killing the process loses only what has not been
written yet: records of at most :data:`FLUSH_S`. If the disk is full, an incomplete frame is cut off again. Frames
are small, and those that describe ranks and series are written twice, so a damaged byte costs at most
:data:`FRAME_RECORDS` records.
"""

from __future__ import annotations

import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from swtrace.errors import RecordingError
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
from swtrace.recording import format as layout
from swtrace.recording.format import PREAMBLE, About, FrameKind
from swtrace.recording.status import pack_status
from swtrace.trace import header
from swtrace.trace.clocks import now_ns
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import Records
from swtrace.version import __version__

FRAME_RECORDS = 512
"""Records buffered to fill a frame: 32 KiB, the size of zlib's window. Larger frames do not compress better."""
FLUSH_S = 0.5
"""How long they are buffered at most."""
LEAST_BYTES = 1 << 16
"""Smallest limit of a size: enough for a frame of poorly compressible records and the descriptions of some ranks."""
_TWICE = frozenset({FrameKind.ABOUT, FrameKind.RANK, FrameKind.SERIES})
"""Kinds of frames that are written twice, because many others are meaningless without them."""
_END_BYTES = 128
"""Bytes reserved for the last frame of a file."""


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """Counters of a recording so far."""

    records: int
    """Records in all parts, including buffered ones."""
    unwritten: int
    """Records still buffered, which a kill would lose."""
    left_out: int
    """Records read after the size limit was reached, and not recorded."""
    lost: int
    """Records overwritten in their rings before they were read, according to the last recorded state of the rings."""
    bytes: int
    """Bytes of all parts, including those that rotation removed."""
    parts: int
    path: Path
    """The part that is being written."""


class FrameWriter(ABC):
    """Converts events to frames. Subclasses decide where the frames go.

    Args:
        flush_s: How long, in seconds, records are buffered at most, provided that the writer is called.
        clock: Returns the time for frames, in CLOCK_MONOTONIC.
    """

    def __init__(self, *, flush_s: float = FLUSH_S, clock: Callable[[], int] = now_ns) -> None:
        self._flush_ns = round(flush_s * 1e9)
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._numbers: dict[RankKey, int] = {}
        self._identities: dict[RankKey, RankIdentity] = {}
        self._tables: dict[RankKey, tuple[SeriesInfo, ...]] = {}
        self._ended: set[RankKey] = set()
        self._buffered: list[tuple[int, Records]] = []
        self._buffered_records = 0
        self._flush_at_ns = 0
        self._written = 0
        self._left_out = 0
        self._lost = 0
        self.full = False
        """A limit was reached, so nothing more is written."""

    @abstractmethod
    def _put(self, data: bytes) -> None:
        """Write whole frames to their destination.

        Raises:
            RecordingError: they cannot be written.
        """

    def take(self, event: Event) -> None:
        """Write an event. Records are buffered until a frame is full or a flush is due."""
        if isinstance(event, RecordsRead):
            for rank, records in event.batches:
                self._buffer(rank, records)
            return
        self._flush()
        match event:
            case RankJoined(identity):
                self._numbers.setdefault(identity.key, len(self._numbers))
                self._identities[identity.key] = identity
                self._ended.discard(identity.key)
                self._write_rank(identity)
            case SeriesListed(rank, series):
                self._tables[rank] = series
                self._write_table(rank, series)
            case RankEnded(rank):
                self._ended.add(rank)
                self._write(FrameKind.ENDED, layout.pack_numbered(self._numbers[rank]))
            case RankForgotten(rank):
                self._write(FrameKind.FORGOTTEN, layout.pack_numbered(self._numbers[rank]))
                self._identities.pop(rank, None)
                self._tables.pop(rank, None)
            case RingsSeen(rings):
                self._lost = sum(ring.statistics.lost for ring in rings)
                self._write(FrameKind.STATUS, pack_status(event, self._numbers))
            case ClockProbed(probe):
                self._write(FrameKind.PROBE, layout.pack_probe(probe))

    @property
    def ranks(self) -> int:
        """Number of ranks written so far."""
        return len(self._numbers)

    def tick(self) -> None:
        """Write the buffered records if a flush is due."""
        if self._buffered and self._clock() >= self._flush_at_ns:
            self._flush()

    # Frames

    def _buffer(self, rank: RankKey, records: Records) -> None:
        now = self._clock()
        if not self._buffered:
            self._flush_at_ns = now + self._flush_ns
        start = 0
        while start < len(records):
            part = records[start : start + FRAME_RECORDS - self._buffered_records]
            self._buffered.append((self._numbers[rank], part))
            self._buffered_records += len(part)
            start += len(part)
            if self._buffered_records >= FRAME_RECORDS:
                self._flush()
        if now >= self._flush_at_ns:
            self._flush()

    def _begin(self, part: int) -> None:
        """Write the start of a file: its description, and everything that a reader of only this file needs."""
        self._put(layout.preamble())
        about = About(self._name, part, time.time_ns(), __version__, self._written)
        self._write(FrameKind.ABOUT, layout.pack_about(about))
        for identity in self._identities.values():
            self._write_rank(identity)
        for rank, series in self._tables.items():
            self._write_table(rank, series)
        for rank in self._identities.keys() & self._ended:
            self._write(FrameKind.ENDED, layout.pack_numbered(self._numbers[rank]))

    def _flush(self) -> None:
        if not self._buffered:
            return
        batches, count = self._buffered, self._buffered_records
        self._buffered, self._buffered_records = [], 0
        if self._write(FrameKind.RECORDS, layout.pack_records(batches), records=count):
            self._written += count
        else:
            self._left_out += count

    def _write_rank(self, identity: RankIdentity) -> None:
        number = self._numbers[identity.key]
        self._write(FrameKind.RANK, layout.pack_numbered(number, header.encode_identity(identity)))

    def _write_table(self, rank: RankKey, series: tuple[SeriesInfo, ...]) -> None:
        entries = b"".join(header.encode_series(info, 0) for info in series)
        self._write(FrameKind.SERIES, layout.pack_numbered(self._numbers[rank], entries))

    def _write_end(self) -> None:
        self._write(FrameKind.END, layout.pack_end(self._written))

    def _write(self, kind: FrameKind, raw: bytes, *, records: int = 0) -> bool:
        """Write a frame. Return False if there is no room for it."""
        self._put(layout.frame(kind, raw, self._clock(), record_count=records))
        return True


class StreamWriter(FrameWriter):
    """An endless recording whose frames are fetched as they are made: what a daemon sends to its readers."""

    def __init__(self, *, flush_s: float = FLUSH_S) -> None:
        super().__init__(flush_s=flush_s)
        self._ready: list[bytes] = []
        self._begin(0)

    def frames(self) -> bytes:
        """Return all frames since the last call."""
        ready, self._ready = self._ready, []
        return b"".join(ready)

    def _put(self, data: bytes) -> None:
        self._ready.append(data)


class RecordingWriter(FrameWriter):
    """Writes a recording to files.

    Args:
        path: The file. With rotation, it is the first part; later parts get a number before the suffix.
        overwrite: Replace an existing file.
        part_bytes: Start a new part before one exceeds this size. None: write one file.
        keep_parts: Remove all but this many of the newest parts. None: keep all.
        max_bytes: Stop writing before all parts together exceed this size, and set ``full``. None: no limit.
        flush_s: How long, in seconds, records are buffered at most, provided that the writer is called.
        clock: Returns the time for frames, in CLOCK_MONOTONIC.

    Raises:
        RecordingError: the file cannot be created, or exists and must not be replaced.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool = False,
        part_bytes: int | None = None,
        keep_parts: int | None = None,
        max_bytes: int | None = None,
        flush_s: float = FLUSH_S,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        super().__init__(flush_s=flush_s, clock=clock)
        self.path = path
        """The file, or the first part."""
        self._overwrite = overwrite
        self._part_bytes, self._keep_parts, self._max_bytes = part_bytes, keep_parts, max_bytes
        self._bytes = 0
        self._part = 0
        self._descriptor = -1
        self._size = 0
        self._beginning = True
        """The start of a part is being written."""
        self._start_bytes = 0
        """Bytes of the frames that a new part would begin with."""
        self._paths: list[Path] = []
        self._begin_part()

    def statistics(self) -> WriterStatistics:
        """Return the counters so far."""
        return WriterStatistics(
            records=self._written + self._buffered_records,
            unwritten=self._buffered_records,
            left_out=self._left_out,
            lost=self._lost,
            bytes=self._bytes,
            parts=self._part + 1,
            path=self._paths[-1],
        )

    def close(self) -> None:
        """Write the buffered records and the last frame, and close the file; idempotent.

        Raises:
            RecordingError: they cannot be written. The file is closed anyway.
        """
        if self._descriptor < 0:
            return
        try:
            self._flush()
            self._write_end()
        finally:
            self._close_file()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the recording. After a :class:`~swtrace.errors.RecordingError`, do not write a last frame."""
        if isinstance(error, RecordingError):
            self._close_file()
        else:
            self.close()

    # Files

    def _write(self, kind: FrameKind, raw: bytes, *, records: int = 0) -> bool:
        """Write a frame to this part if there is room, else to a new part. Return False if there is no room at all."""
        data = layout.frame(kind, raw, self._clock(), record_count=records) * (2 if kind in _TWICE else 1)
        if not self._beginning and kind is not FrameKind.END:
            size = len(data) + _END_BYTES
            rotate = self._part_bytes is not None and self._size + size > self._part_bytes
            most = self._bytes + size + (self._start_bytes + _END_BYTES if rotate else 0)
            self.full = self.full or (self._max_bytes is not None and most > self._max_bytes)
            if self.full:
                return False
            if rotate:
                self._rotate(size)
        if kind in _TWICE or kind is FrameKind.ENDED:
            self._start_bytes += len(data)
        self._put(data)
        return True

    def _put(self, data: bytes) -> None:
        if self._descriptor < 0:
            raise RecordingError(f"{self._paths[-1]}: the recording is closed")
        if not os.fstat(self._descriptor).st_nlink:
            raise RecordingError(f"{self._paths[-1]} was removed while it was being written; its contents are lost")
        try:
            _write_all(self._descriptor, data)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise RecordingError(
                f"{self._paths[-1]}: {error.strerror or error}. The {self._size} bytes before it are a sound recording."
            ) from error
        self._size += len(data)
        self._bytes += len(data)

    def _begin_part(self) -> None:
        path = part_path(self.path, self._part)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if self._overwrite else os.O_EXCL)
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            raise RecordingError(f"{path} already exists; use --force to replace it") from None
        except OSError as error:
            raise RecordingError(f"{path}: {error.strerror}") from error
        self._paths.append(path)
        self._size = self._start_bytes = 0
        self._beginning = True
        self._begin(self._part)
        self._beginning = False

    def _rotate(self, size: int) -> None:
        """Begin a new part for a frame of ``size`` bytes."""
        if self._part_bytes is not None and PREAMBLE.size + self._start_bytes + size > self._part_bytes:
            raise RecordingError(
                f"{self._paths[-1]}: {self._part_bytes} bytes are too few for the descriptions of all ranks"
                f" ({len(self._identities)}) and the next frame: --rotate must be larger"
            )
        self._write_end()
        self._close_file()
        self._part += 1
        self._begin_part()
        while self._keep_parts is not None and len(self._paths) > max(1, self._keep_parts):
            self._paths.pop(0).unlink(missing_ok=True)

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def part_path(first: Path, part: int) -> Path:
    """Return the name of a part: ``run.swrec``, ``run.1.swrec``, ``run.2.swrec``."""
    return first if part == 0 else first.with_name(f"{first.stem}.{part}{first.suffix}")


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
