"""The byte layout of a recording. No other module knows it.

A recording is a preamble followed by frames. The header of each frame has its kind, number of records, sizes,
checksums of header and payload, and time of capture. A frame is written with one call and never changed. A writer
that is killed therefore leaves complete frames and at most one that is cut short, whose header still says how many
records are missing. Frames that others depend on are written twice in a row: the description of the file, the
ranks and their series.

The first frame describes the file (:class:`About`). A rank gets a number when it joins, and later frames refer to
it by this number. Everything is little-endian. Payloads are compressed with zlib, which every Python has. It is
fast enough for millions of records a second once they are laid out by column (:func:`pack_records`).
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from swtrace.errors import RecordingFormatError
from swtrace.ledger.alignment import Probe
from swtrace.trace import records, schema
from swtrace.trace.records import Records

MAGIC = b"SWTREC\r\n"
"""The line break reveals a file that was transferred as text."""
VERSION = 3
SUFFIX = ".swrec"
PREAMBLE = struct.Struct("<8sII")
"""magic, version, reserved."""

FRAME = struct.Struct("<4sBBHIIIIQ")
"""marker, kind, reserved, reserved, records, raw length, stored length, checksum of the payload, CLOCK_MONOTONIC
of the capture."""
CHECKSUM = struct.Struct("<I")
"""Checksum of the header before it."""
FRAME_BYTES = FRAME.size + CHECKSUM.size
MARKER = b"\xf5FRM"

MAX_RAW_BYTES = 1 << 24
"""Largest size of an uncompressed frame. A reader never allocates more for one, whatever the file says."""
MAX_FRAME_RECORDS = 1 << 16
_LEVEL = 6
_SEGMENT = np.dtype([("rank", "<u4"), ("records", "<u4")])


class FrameKind(IntEnum):
    """What a frame is about."""

    ABOUT = 1
    RANK = 2
    """A rank joined: its number (u32), then its identity."""
    SERIES = 3
    """The current series table of a rank: its number (u32), then the entries of its ring."""
    RECORDS = 4
    ENDED = 5
    """A rank's writer is dead and all its records have been written: its number (u32)."""
    FORGOTTEN = 6
    """A rank's ring was removed or replaced: its number (u32)."""
    STATUS = 7
    """Counters, windows and clocks of the rings at this moment."""
    END = 8
    """The recording was closed in an orderly way: how many records it holds."""
    PROBE = 9
    """What the recording or a watched process measured about another host's clock."""


@dataclass(frozen=True, slots=True)
class About:
    """The description of a file of a recording."""

    recording: str
    """A random name, shared by the parts of one recording."""
    part: int
    """Number of the part, from 0. Each part can be read alone."""
    created_ns: int
    """CLOCK_REALTIME of the creation."""
    version: str
    """Version of swtrace that wrote it."""
    records_before: int
    """Records in the earlier parts."""


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """A frame without its payload."""

    kind: int
    records: int
    raw_bytes: int
    stored_bytes: int
    payload_crc: int
    captured_ns: int


def preamble() -> bytes:
    """Return the first bytes of a recording."""
    return PREAMBLE.pack(MAGIC, VERSION, 0)


def check_preamble(data: bytes) -> None:
    """Check the first bytes of a file.

    Raises:
        RecordingFormatError: the file is not a recording, or has another version.
    """
    if data.startswith(b"SWTRACE\0"):
        raise RecordingFormatError("this is a rank's ring, not a recording: record it with `swtrace record`")
    if not data:
        raise RecordingFormatError("the file is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        hint = " (sent as text?)" if data.startswith(b"SWTREC\n") else ""
        raise RecordingFormatError(f"not a swtrace recording{hint}")
    if len(data) < PREAMBLE.size:
        raise RecordingFormatError(f"truncated after {len(data)} bytes: nothing was recorded")
    _, version, reserved = PREAMBLE.unpack_from(data)
    if version != VERSION:
        raise RecordingFormatError(f"recording format {version}; this swtrace reads format {VERSION}")
    if reserved:
        raise RecordingFormatError("damaged preamble (reserved bytes are not 0)")


def frame(kind: FrameKind, raw: bytes, captured_ns: int, *, record_count: int = 0) -> bytes:
    """Return a whole frame."""
    stored = zlib.compress(raw, _LEVEL)
    header = FRAME.pack(
        MARKER, kind, 0, 0, record_count, len(raw), len(stored), zlib.crc32(stored), max(0, captured_ns)
    )
    return header + CHECKSUM.pack(zlib.crc32(header)) + stored


def read_header(data: bytes) -> FrameHeader:
    """Read the header of a frame.

    Raises:
        RecordingFormatError: it is damaged.
    """
    (checksum,) = CHECKSUM.unpack_from(data, FRAME.size)
    if zlib.crc32(data[: FRAME.size]) != checksum:
        raise RecordingFormatError("damaged frame header (checksum)")
    marker, kind, _, _, count, raw_bytes, stored_bytes, payload_crc, captured_ns = FRAME.unpack_from(data)
    if marker != MARKER or raw_bytes > MAX_RAW_BYTES or stored_bytes > MAX_RAW_BYTES or count > MAX_FRAME_RECORDS:
        raise RecordingFormatError("damaged frame header (values out of range)")
    return FrameHeader(kind, count, raw_bytes, stored_bytes, payload_crc, captured_ns)


def inflate(header: FrameHeader, stored: bytes) -> bytes:
    """Return a frame's payload.

    Raises:
        RecordingFormatError: it is damaged.
    """
    if len(stored) != header.stored_bytes or zlib.crc32(stored) != header.payload_crc:
        raise RecordingFormatError("damaged frame (checksum)")
    try:
        raw = zlib.decompressobj().decompress(stored, header.raw_bytes + 1)
    except zlib.error as error:
        raise RecordingFormatError(f"damaged frame ({error})") from error
    if len(raw) != header.raw_bytes:
        raise RecordingFormatError("damaged frame (size)")
    return raw


def pack_records(segments: list[tuple[int, Records]]) -> bytes:
    """Return the payload for batches of records in order, each with the number of its rank.

    Words are stored as the difference to the record before, and the bytes of all records at the same offset are stored
    together. Slowly changing values then compress to a sixth of the 64 bytes of a record.
    """
    table = np.array([(rank, len(batch)) for rank, batch in segments], _SEGMENT)
    words = np.concatenate([np.ascontiguousarray(batch).view(records.WORDS) for _, batch in segments])
    words = words.reshape(-1, schema.RECORD_WORDS)
    steps = words.copy()
    steps[1:] -= words[:-1]
    planes = steps.view(np.uint8).reshape(-1, schema.RECORD_BYTES).T
    return struct.pack("<I", len(table)) + table.tobytes() + np.ascontiguousarray(planes).tobytes()


def unpack_records(raw: bytes) -> list[tuple[int, Records]]:
    """Return what :func:`pack_records` was given.

    Raises:
        RecordingFormatError: it is damaged.
    """
    count, _ = unpack_numbered(raw)
    start = 4 + count * _SEGMENT.itemsize
    if start > len(raw):
        raise RecordingFormatError("damaged frame (segments)")
    table = np.frombuffer(raw, _SEGMENT, count, 4)
    sizes = table["records"].astype(np.int64)
    total = int(sizes.sum())
    if len(raw) - start != total * schema.RECORD_BYTES:
        raise RecordingFormatError("damaged frame (segments)")
    planes = np.frombuffer(raw, np.uint8, offset=start).reshape(schema.RECORD_BYTES, total)
    words = np.array(planes.T, order="C").view(records.WORDS)
    np.cumsum(words, axis=0, out=words)
    batch = words.view(records.TRANSFER).reshape(-1)
    ends = np.cumsum(sizes).tolist()
    return [
        (int(rank), batch[end - size : end])
        for rank, size, end in zip(table["rank"].tolist(), sizes.tolist(), ends, strict=True)
    ]


def pack_numbered(rank: int, payload: bytes = b"") -> bytes:
    """Return the payload of a frame that is about one rank."""
    return CHECKSUM.pack(rank) + payload


def unpack_numbered(raw: bytes) -> tuple[int, bytes]:
    """Return a rank's number and the rest of the payload.

    Raises:
        RecordingFormatError: the payload is too short.
    """
    if len(raw) < CHECKSUM.size:
        raise RecordingFormatError("damaged frame (too short)")
    (rank,) = CHECKSUM.unpack_from(raw)
    return int(rank), raw[CHECKSUM.size :]


def pack_about(about: About) -> bytes:
    """Return the payload of the first frame."""
    return json.dumps(asdict(about)).encode("ascii")


def unpack_about(raw: bytes) -> About:
    """Return what :func:`pack_about` was given.

    Raises:
        RecordingFormatError: it is damaged.
    """
    values = unpack_json(raw)
    try:
        return About(
            recording=str(values["recording"]),
            part=int(values["part"]),
            created_ns=int(values["created_ns"]),
            version=str(values["version"]),
            records_before=int(values["records_before"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # OverflowError: Infinity is JSON to Python
        raise RecordingFormatError(f"damaged first frame ({error})") from error


def pack_end(records: int) -> bytes:
    """Return the payload of the last frame."""
    return json.dumps({"records": records}).encode("ascii")


def pack_probe(probe: Probe) -> bytes:
    """Return the payload of a probe of a clock."""
    return json.dumps(probe._asdict()).encode("ascii")


def unpack_probe(raw: bytes) -> Probe:
    """Return what :func:`pack_probe` was given.

    Raises:
        RecordingFormatError: it is damaged.
    """
    try:
        return Probe.checked(**unpack_json(raw))
    except (TypeError, ValueError) as error:
        raise RecordingFormatError(f"damaged probe of a clock ({error})") from error


def unpack_json(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a payload.

    Raises:
        RecordingFormatError: the payload is not a JSON object.
    """
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RecordingFormatError("damaged frame (not JSON)") from error
    if not isinstance(values, dict):
        raise RecordingFormatError("damaged frame (not a JSON object)")
    return values
