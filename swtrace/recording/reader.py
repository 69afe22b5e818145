"""Read a recording, whole or damaged.

Opening a recording reads the header of every frame and no payload except the first, so a gigabyte opens in a
fraction of a second. If the writer was killed or ran out of disk space, the file ends within a frame. Such a file
can be opened, and what is missing is counted (:class:`Missing`). Damage within a file raises an error when it is
read, unless ``salvage`` asks to skip and count it. No content of a file raises anything but
:class:`~swtrace.errors.RecordingFormatError`, or makes a reader allocate more than one frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from swtrace.closing import Closing
from swtrace.errors import RecordingError, RecordingFormatError, RingFormatError
from swtrace.observing.events import (
    ClockProbed,
    Event,
    RankEnded,
    RankForgotten,
    RankJoined,
    RecordsRead,
    SeriesListed,
)
from swtrace.recording import format as layout
from swtrace.recording.format import FRAME_BYTES, PREAMBLE, About, FrameHeader, FrameKind
from swtrace.recording.status import unpack_status
from swtrace.trace import header
from swtrace.trace.identity import RankKey, SeriesInfo
from swtrace.trace.records import Records
from swtrace.trace.schema import SERIES_ENTRY
from swtrace.units import counted


@dataclass(frozen=True, slots=True)
class Missing:
    """What is missing from a recording. If it is complete, all counts are zero and ``finished`` is true."""

    finished: bool
    """Whether the recording was closed in an orderly way."""
    tail_bytes: int
    """Bytes of an incomplete frame at the end of a file."""
    tail_records: int
    """Records of that frame; 0 if even its header is incomplete."""
    damaged_frames: int
    """Damaged frames skipped so far with ``salvage``."""
    damaged_records: int
    """Records in these frames, as far as their headers are intact."""
    damaged_bytes: int

    @property
    def sentences(self) -> tuple[str, ...]:
        """Sentences for people about what is missing; none for a complete recording."""
        sentences = []
        if self.tail_bytes:
            records = f" ({counted(self.tail_records, 'record')})" if self.tail_records else ""
            sentences.append(f"The recording ends within a frame: its last {self.tail_bytes} bytes{records} are lost.")
        elif not self.finished:
            sentences.append("The recording was not closed, so its last records may be missing.")
        if self.damaged_frames:
            frames = "1 frame" if self.damaged_frames == 1 else f"{self.damaged_frames} frames"
            sentences.append(
                f"Damaged: {frames} ({self.damaged_bytes} bytes, {counted(self.damaged_records, 'record')}) skipped."
                " Figures for that time are incomplete."
            )
        return tuple(sentences)


@dataclass(frozen=True, slots=True)
class FrameAt:
    """The header of a frame and its place."""

    file: int
    offset: int
    header: FrameHeader


@dataclass(slots=True)
class _File:
    path: Path
    descriptor: int
    about: About
    finished: bool = False
    tail_bytes: int = 0
    tail_records: int = 0
    damaged_headers: int = 0
    damaged_bytes: int = 0


class Recording(Closing):
    """A recording: one file, or its parts in order. Use :meth:`open` to get one."""

    def __init__(self, files: list[_File], frames: list[FrameAt], *, salvage: bool) -> None:
        """Wrap files that were scanned. Use :meth:`open` instead."""
        self._files = files
        self._frames = frames
        self._salvage = salvage
        self._damaged: dict[tuple[int, int], FrameHeader] = {}

    @classmethod
    def open(cls, path: Path | Sequence[Path], *, salvage: bool = False) -> Recording:
        """Open a recording.

        Args:
            path: The file, or the parts of one recording in any order.
            salvage: Skip and count damaged frames instead of raising.

        Raises:
            RecordingFormatError: a file is not a recording, or is damaged; the message says where.
        """
        paths = [path] if isinstance(path, Path) else list(path)
        if not paths:
            raise RecordingFormatError("no recording to read")
        files: list[_File] = []
        scanned: list[list[tuple[int, FrameHeader]]] = []
        try:
            for each in paths:
                file, frames = _open_file(each, salvage=salvage)
                files.append(file)
                scanned.append(frames)
            order = _in_order(files)
        except BaseException:
            for file in files:
                os.close(file.descriptor)
            raise
        return cls(
            [files[index] for index in order],
            [FrameAt(at, offset, found) for at, index in enumerate(order) for offset, found in scanned[index]],
            salvage=salvage,
        )

    @property
    def about(self) -> About:
        """The description in the first part."""
        return self._files[0].about

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in order."""
        return tuple(file.path for file in self._files)

    @property
    def records(self) -> int:
        """Number of records."""
        return sum(frame.header.records for frame in self._frames)

    @property
    def size(self) -> int:
        """Size of all files together, in bytes."""
        return sum(os.fstat(_opened(file)).st_size for file in self._files)

    def missing(self) -> Missing:
        """Return what is missing, as far as the recording has been read."""
        skipped = self._damaged.values()
        return Missing(
            finished=self._files[-1].finished,
            tail_bytes=sum(file.tail_bytes for file in self._files),
            tail_records=sum(file.tail_records for file in self._files),
            damaged_frames=len(skipped) + sum(file.damaged_headers for file in self._files),
            damaged_records=sum(found.records for found in skipped),
            damaged_bytes=sum(FRAME_BYTES + found.stored_bytes for found in skipped)
            + sum(file.damaged_bytes for file in self._files),
        )

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._frames)

    def events(self) -> Iterator[Event]:
        """Yield the events in order.

        Raises:
            RecordingFormatError: a frame is damaged.
        """
        file, ranks, known = -1, dict[int, RankKey](), _Known()
        for frame in self._frames:
            if frame.file != file:
                file, ranks = frame.file, {}
            try:
                event = decode_event(frame.header, self._payload(frame), ranks)
            except (RecordingFormatError, RingFormatError) as error:
                if not self._salvage:
                    raise self._damage(frame, error) from error
                self._damaged[frame.file, frame.offset] = frame.header
                continue
            if event is not None and known.is_new(event):
                yield event

    def outermost_records(self) -> Iterator[list[tuple[int, Records]]]:
        """Yield the records of the first and the last frame of records, with rank numbers, to find a run's extent.

        Raises:
            RecordingFormatError: one of them is damaged.
        """
        frames = [frame for frame in self._frames if frame.header.kind == FrameKind.RECORDS]
        for side in (frames, reversed(frames)):
            for frame in side:
                try:
                    yield layout.unpack_records(self._payload(frame))
                except RecordingFormatError as error:
                    if not self._salvage:
                        raise self._damage(frame, error) from error
                else:
                    break

    def close(self) -> None:
        """Close the files; idempotent."""
        for file in self._files:
            if file.descriptor >= 0:
                os.close(file.descriptor)
                file.descriptor = -1

    def _payload(self, frame: FrameAt) -> bytes:
        stored = os.pread(_opened(self._files[frame.file]), frame.header.stored_bytes, frame.offset + FRAME_BYTES)
        return layout.inflate(frame.header, stored)

    def _damage(self, frame: FrameAt, error: Exception) -> RecordingFormatError:
        before = sum(
            other.header.records for other in self._frames if (other.file, other.offset) < (frame.file, frame.offset)
        )
        return RecordingFormatError(
            f"{self._files[frame.file].path}: {error} at byte {frame.offset}, after {counted(before, 'record')}."
            " --salvage reads around the damage and counts it."
        )


class _Known:
    """The known ranks and series tables. Frames repeat them: each is written twice, and again in each later part."""

    def __init__(self) -> None:
        self._ranks: dict[RankKey, RankJoined] = {}
        self._tables: dict[RankKey, SeriesListed] = {}

    def is_new(self, event: Event) -> bool:
        """Return whether an event says something new, and remember it."""
        if isinstance(event, RankForgotten):
            self._ranks.pop(event.rank, None)
            self._tables.pop(event.rank, None)
        elif isinstance(event, RankJoined):
            rank = event.identity.key
            if self._ranks.get(rank) == event:
                return False
            self._ranks[rank] = event
            self._tables.pop(rank, None)
        elif isinstance(event, SeriesListed):
            if self._tables.get(event.rank) == event:
                return False
            self._tables[event.rank] = event
        return True


def _opened(file: _File) -> int:
    if file.descriptor < 0:
        raise RecordingError(f"{file.path}: this recording is closed; open it again to read it")
    return file.descriptor


def _open_file(path: Path, *, salvage: bool) -> tuple[_File, list[tuple[int, FrameHeader]]]:
    """Open a file and return it with its frames."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RecordingFormatError(f"{path}: {error.strerror}") from error
    try:
        layout.check_preamble(os.pread(descriptor, PREAMBLE.size, 0))
        file = _File(path, descriptor, About("", 0, 0, "", 0))
        frames = _scan(file, salvage=salvage)
        if not frames or frames[0][1].kind != FrameKind.ABOUT:
            raise RecordingFormatError("the first frame is missing: nothing was recorded")  # noqa: TRY301 - path added below
        file.about = _about(descriptor, frames, salvage=salvage)
    except OSError as error:
        os.close(descriptor)
        raise RecordingFormatError(f"{path}: {error.strerror}") from error
    except RecordingFormatError as error:
        os.close(descriptor)
        raise RecordingFormatError(f"{path}: {error}") from error
    return file, frames


def _about(descriptor: int, frames: list[tuple[int, FrameHeader]], *, salvage: bool) -> About:
    """Return the description in a file's first frame or, with ``salvage``, in its copy if the first is damaged."""
    offset, first = frames[0]
    try:
        return layout.unpack_about(
            layout.inflate(first, os.pread(descriptor, first.stored_bytes, offset + FRAME_BYTES))
        )
    except RecordingFormatError:
        if salvage and len(frames) > 1 and frames[1][1].kind == FrameKind.ABOUT:
            return _about(descriptor, frames[1:], salvage=False)
        raise


def _scan(file: _File, *, salvage: bool) -> list[tuple[int, FrameHeader]]:
    size = os.fstat(file.descriptor).st_size
    offset = PREAMBLE.size
    frames: list[tuple[int, FrameHeader]] = []
    while offset < size:
        data = os.pread(file.descriptor, FRAME_BYTES, offset)
        if len(data) < FRAME_BYTES:
            file.tail_bytes = size - offset
            break
        try:
            found = layout.read_header(data)
        except RecordingFormatError as error:
            if not salvage:
                raise RecordingFormatError(
                    f"{error} at byte {offset}, after {counted(sum(each.records for _, each in frames), 'record')}."
                    " --salvage reads around the damage and counts it."
                ) from error
            following = _next_marker(file.descriptor, offset + 1, size)
            file.damaged_headers += 1
            file.damaged_bytes += following - offset
            offset = following
            continue
        if offset + FRAME_BYTES + found.stored_bytes > size:
            file.tail_bytes, file.tail_records = size - offset, found.records
            break
        frames.append((offset, found))
        offset += FRAME_BYTES + found.stored_bytes
        file.finished = found.kind == FrameKind.END
    return frames


def _next_marker(descriptor: int, offset: int, size: int) -> int:
    """Return the offset of the next intact header; the file's size if there is none."""
    chunk = 1 << 20
    while offset < size:
        data = os.pread(descriptor, chunk + FRAME_BYTES, offset)
        at = data.find(layout.MARKER)
        while at >= 0:
            if at + FRAME_BYTES <= len(data):
                try:
                    layout.read_header(data[at : at + FRAME_BYTES])
                except RecordingFormatError:
                    pass
                else:
                    return offset + at
            at = data.find(layout.MARKER, at + 1)
        offset += chunk
    return size


def _in_order(files: list[_File]) -> list[int]:
    """Return the indices of the parts in their order.

    Raises:
        RecordingFormatError: the files are not consecutive parts of one recording, each given once.
    """
    order = sorted(range(len(files)), key=lambda index: files[index].about.part)
    for before, after in pairwise(order):
        first, second = files[before], files[after]
        if first.about.recording != second.about.recording:
            raise RecordingFormatError(f"{first.path} and {second.path} are not parts of one recording")
        if second.about.part != first.about.part + 1:
            raise RecordingFormatError(
                f"{second.path} is part {second.about.part}, {first.path} part {first.about.part}:"
                " name consecutive parts, each exactly once"
            )
    return order


def decode_event(found: FrameHeader, raw: bytes, ranks: dict[int, RankKey]) -> Event | None:
    """Return the event in a frame; None for the first and last frame, and for kinds of later versions."""
    if found.kind == FrameKind.RECORDS:
        batches = layout.unpack_records(raw)
        return RecordsRead(tuple((_known(ranks, number), batch) for number, batch in batches))
    if found.kind == FrameKind.STATUS:
        return unpack_status(raw, ranks)
    if found.kind == FrameKind.PROBE:
        return ClockProbed(layout.unpack_probe(raw))
    if found.kind not in {FrameKind.RANK, FrameKind.SERIES, FrameKind.ENDED, FrameKind.FORGOTTEN}:
        return None
    number, rest = layout.unpack_numbered(raw)
    event: Event
    if found.kind == FrameKind.RANK:
        event = RankJoined(header.decode_identity(rest))
        ranks[number] = event.identity.key
    elif found.kind == FrameKind.SERIES:
        event = SeriesListed(_known(ranks, number), _series(rest))
    else:
        event = (RankEnded if found.kind == FrameKind.ENDED else RankForgotten)(_known(ranks, number))
    return event


def _known(ranks: dict[int, RankKey], number: int) -> RankKey:
    rank = ranks.get(number)
    if rank is None:
        raise RecordingFormatError(f"damaged frame (refers to rank number {number}, which never joined)")
    return rank


def _series(entries: bytes) -> tuple[SeriesInfo, ...]:
    series: list[SeriesInfo] = []
    while entries:
        info, _ = header.decode_series(entries)
        series.append(info)
        length, _ = SERIES_ENTRY.unpack_from(entries)
        entries = entries[SERIES_ENTRY.size + length :]
    return tuple(series)
