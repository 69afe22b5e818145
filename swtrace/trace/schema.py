"""The byte layout of a trace ring. No other module knows it.

A ring file belongs to one rank. It has five parts, in this order: a fixed header with the marks that show what the
rank is doing now, the rank's identity (JSON),
a table of its series (JSON, append-only), a table of its windows (live state, four words each) and the ring of
records. Everything is little-endian and made of 8-byte words, because an aligned 8-byte store is the largest
one that readers are guaranteed to see whole.

A record is eight words. The last word is the sequence number, and the writer stores it last. Before the
writer changes a slot, it sets this word to 0. If a slot has another number than the reader expects, it
holds no record for that reader. If the reader finds the expected number before and after its copy, the copy
is that record.

This requires that stores are seen in program order, which x86 guarantees. On other machines each record
also carries a check word over all its words, and the header says so. The check word exposes a copy that mixes
an old and a new record. On x86 it would make a record cost half as much again and add nothing.

This module imports neither NumPy nor torch, because ranks load it.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

MAGIC = b"SWTRACE\0"
VERSION = 3

RECORD_BYTES = 64
RECORD_WORDS = 8
RECORD = struct.Struct("<8Q")


class Field(NamedTuple):
    """A field of a record."""

    name: str
    dtype: str
    """In NumPy's notation."""
    about: str


TRANSFER_FIELDS = (
    Field("issued_ns", "<i8", "the broadcast into the window was issued"),
    Field("ready_ns", "<i8", "its bytes had arrived; 0: unknown"),
    Field("wait_begin_ns", "<i8", "the forward began to wait for it"),
    Field("wait_end_ns", "<i8", "the wait ended"),
    Field("step", "<u4", "the step that waits, modulo 2**32"),
    Field("operation", "<u4", "number of the broadcast on its communicator, modulo 2**32"),
    Field("position", "<u2", "position of the layer"),
    Field("reach_position", "<u2", "position that the forward had reached when it was issued"),
    Field("source", "<u2", "group rank that stores the layer"),
    Field("window", "<u2", "destination window, or NO_WINDOW"),
)
"""Fields of a TRANSFER record, and of a LAUNCH record. The latter has the launches of issue and wait in *issued* and
*wait begin*, in host time, and no other instants."""
STEP_FIELDS = (
    Field("begin_ns", "<i8", "the forward began"),
    Field("arrival_ns", "<i8", "it arrived at position 0"),
    Field("end_ns", "<i8", "it ended"),
    Field("run_delay_us", "<u4", "time ready to run but without a core, since the step before"),
    Field("steal_us", "<u4", "time that the hypervisor took from cores, since the step before"),
    Field("step", "<u4", "step number, modulo 2**32"),
    Field("tokens", "<u4", "tokens in its batch"),
    Field("requests", "<u2", "requests in its batch"),
    Field("kept_layers", "<u2", "layers kept in memory beyond their turn, because something holds them, at its end"),
    Field("phase", "u1", "Phase"),
    Field("untimed", "u1", "Untimed"),
    Field("waits", "<u2", "waits of the forward: one per layer, unless it was aborted or skipped some"),
)
"""Fields of a STEP record."""
REQUEST_FIELDS = (
    Field("at_ns", "<i8", "the forward began"),
    Field("trace_high", "<u8", "trace id of a request in the step's batch, upper half"),
    Field("trace_low", "<u8", "lower half"),
    Field("span_id", "<u8", "id of the span in whose context the request came"),
    Field("step", "<u4", "step number, modulo 2**32"),
    Field("index", "<u4", "number of the request among those recorded for the step"),
    Field("unused", "<u8", "0"),
)
"""Fields of a REQUEST record."""
TAIL_FIELDS = (
    Field("kind", "u1", "Kind"),
    Field("series", "u1", "index in the series table"),
    Field("observed_clock", "u1", "Observed, and Clock times 16"),
    Field("flags", "u1", "TransferFlag or StepFlag"),
    Field("check", "<u4", "check word, 0 in a ring without check words"),
    Field("sequence", "<u8", "sequence number, from 1; stored last"),
)
"""Fields at the end of every record."""

_CODES = {"<i8": "Q", "<u8": "Q", "<u4": "I", "<u2": "H", "u1": "B"}


def _struct(fields: tuple[Field, ...], tail: str = "") -> struct.Struct:
    return struct.Struct("<" + "".join(_CODES[field.dtype] for field in fields) + tail)


TRANSFER_RECORD = _struct(TRANSFER_FIELDS, "I4xQ")
"""Packs kind, series, observed, clock and flags as one number, because each argument costs 15 ns."""
CHECKED_TRANSFER_RECORD = _struct(TRANSFER_FIELDS, "2IQ")
"""The same, with the check word before the sequence number."""
STEP_BODY = _struct(STEP_FIELDS)
STEP_RECORD = _struct(STEP_FIELDS + TAIL_FIELDS)
REQUEST_BODY = _struct(REQUEST_FIELDS)
REQUEST_RECORD = _struct(REQUEST_FIELDS + TAIL_FIELDS)
BODY = struct.Struct("<6Q")
"""The words before the tail."""
SEQUENCE_WORD = 7
"""Sequence numbers start at 1; number ``n`` is stored in slot ``n & (capacity - 1)``."""
CHECK_WORD = 6

HEADER = struct.Struct("<8s15Q")
"""magic, version, header bytes, record bytes, capacity (records, a power of two), identity offset,
identity length, identity crc32, series table offset, series slots, bytes per series slot, window
table offset, window slots, epoch_ns (CLOCK_MONOTONIC at creation), creation time (CLOCK_REALTIME),
1 if records carry check words, else 0."""

SERIES_COUNT_OFFSET = 256
"""Number of committed entries of the series table, stored after the entry itself."""
CLOSED_OFFSET = 264
"""CLOCK_MONOTONIC ns at which an orderly close happened or was announced; 0 while the ring is open or if its writer
died."""
ANCHOR = struct.Struct("<2Q")
ANCHOR_OFFSET = 272
"""Two words read together: CLOCK_MONOTONIC ns and CLOCK_REALTIME ns. The first is 0 while the pair is being renewed."""
SERIES_CLOSED_OFFSET = 288
"""Bit *i* is set once series *i* was closed. Its rank may live on."""
COLLECTIVE_OFFSET = 296
"""Two words: the Collective that no series issued and that the rank is in now, else 0; CLOCK_MONOTONIC ns at which it
entered this one or left the last one. The instant is stored first."""
PROGRESS_OFFSET = 512
PROGRESS_WORDS = 8
"""Of each series. They show what the rank's host does now, which records show only once it is done."""

IDENTITY_OFFSET = 4096
IDENTITY_BYTES = 4096
SERIES_TABLE_OFFSET = 8192
SERIES_SLOTS = 16
SERIES_SLOT_BYTES = 8192
SERIES_ENTRY = struct.Struct("<II")
"""Length and crc32 of the JSON that follows."""
WINDOW_TABLE_OFFSET = SERIES_TABLE_OFFSET + SERIES_SLOTS * SERIES_SLOT_BYTES
WINDOW_SLOTS = 1024
WINDOW_BYTES = 32
WINDOW_WORDS = 4
HEADER_BYTES = WINDOW_TABLE_OFFSET + WINDOW_SLOTS * WINDOW_BYTES

DEFAULT_RECORDS = 1 << 16
"""21 s of one 61-layer series at 50 steps/s if every step is timed (62 records a step); 4 MiB."""
MIN_RECORDS = 1 << 6
MAX_RECORDS = 1 << 24

MOST_REQUESTS = 32
"""Requests recorded for one step; further ones are left out."""

NO_WINDOW = 0xFFFF
"""Window of a record whose layer this rank stores."""
MAX_POSITIONS = 0xFFFF
MAX_GROUP = 0xFFFF

# The words of a series' progress.
PROGRESS_ISSUED = 0
"""Number of broadcasts issued | Stage << 62. Stored after PROGRESS_SINCE."""
PROGRESS_SINCE = 1
"""CLOCK_MONOTONIC ns of the last event that changed the progress."""
PROGRESS_WAITING = 2
"""(low 48 bits of the ns since when the host is blocked) | position u16 << 48, while it waits for a layer; else 0."""
PROGRESS_COMPLETED = 3
"""On a device: number of steps that it is known to have completed."""
PROGRESS_COMPLETED_AT = 4
"""CLOCK_MONOTONIC ns at which that number was last seen to rise, or to be the number of steps launched."""
STAGE_SHIFT = 62
ISSUED_MASK = (1 << STAGE_SHIFT) - 1

# The words of a window table entry.
WINDOW_OCCUPANT = 0
"""step u32 | position u16 << 32 | generation u16 << 48. Generation 0: free. Stored last at issue."""
WINDOW_ISSUED = 1
"""CLOCK_MONOTONIC ns at which the broadcast into the window was issued."""
WINDOW_READY = 2
"""(low 48 bits of the ns) | generation u16 << 48. Valid only if the generation is the occupant's. 48 bits cover
three days, so readers complete them from the issued instant."""
WINDOW_IN_USE = 3
"""Like WINDOW_READY, but for wait end."""
GENERATION_SHIFT = 48
GENERATION_ONE = 1 << GENERATION_SHIFT
GENERATION_END = 1 << 64
INSTANT_MASK = (1 << 48) - 1
POSITION_SHIFT = 32


class Stage(IntEnum):
    """Where a rank's host is in a series."""

    BETWEEN = 0
    """Between two steps, before the first, or after an error that ended the series."""
    UNMARKED = 1
    """In a step that began with its first layer. Its end has no mark."""
    BEGUN = 2
    """In a step whose beginning was marked, before its first layer."""
    MARKED = 3
    """In such a step, from its first layer to its end, which will be marked."""


class Collective(IntEnum):
    """A collective that no series issued."""

    OTHER = 1
    ALL_REDUCE = 2
    ALL_GATHER = 3
    REDUCE_SCATTER = 4
    GATHER = 5
    BROADCAST = 6
    BARRIER = 7
    SEND = 8
    RECEIVE = 9


class Kind(IntEnum):
    """What a record is about."""

    TRANSFER = 1
    """One layer's transfer into its window, and the wait for it."""
    STEP = 2
    """One forward pass of one series."""
    LAUNCH = 3
    """When the host launched the work of a device's TRANSFER record; only for waits that stalled."""
    REQUEST = 4
    """A request in the batch of a timed step, if the request is traced; before the STEP record."""


class Observed(IntEnum):
    """How the ready instant of a transfer is known."""

    UPPER_BOUND = 0
    """Not observed. The ready instant is wait end; the true one was not later."""
    CALLBACK = 1
    """The transport's completion callback stamped it."""
    EXACT = 2
    """The transport computed it (an ideal channel)."""
    EVENT = 3
    """A device event."""
    STAMP = 4
    """A time stamp written by the device."""
    NEVER = 5
    """Unknown when the record was written. The ready instant is 0."""


class Clock(IntEnum):
    """The clock the four instants of a record were read from."""

    HOST = 0
    """CLOCK_MONOTONIC of the rank's host."""
    VIRTUAL = 1
    """The simulated time of an ideal channel."""
    DEVICE = 2
    """A device's clock, mapped to CLOCK_MONOTONIC of its host."""


class Phase(IntEnum):
    """What kind of tokens a step worked on."""

    OTHER = 0
    PREFILL = 1
    DECODE = 2
    MIXED = 3
    DUMMY = 4


class TransferFlag(IntFlag):
    """Flags of a TRANSFER record."""

    PREFILLED = 1
    """The window was filled at post-processing, so no broadcast belongs to this wait."""
    CROSSES_STEPS = 2
    """The broadcast was issued in the step before the one that waits."""
    OWN = 4
    """This rank is the source. It reads its own copy and never waits for its send."""
    OPEN = 8
    """The broadcast was not complete when the record was written."""
    UNWAITED = 16
    """No linear waited for it (an aborted or partial forward). Wait begin and wait end are 0."""


class StepFlag(IntFlag):
    """Flags of a STEP record."""

    ABORTED = 1
    """The forward ended early, and the runtime issued its remaining broadcasts."""
    IMPLICIT_END = 2
    """The end was not marked, so it is the end of the step's last wait."""


RUN_STEPS = 4
"""Where one step in *n* is timed or read, these come in runs of so many. After a step without instants it is unknown
what the channel carried last, so the first delivery of each run has no transfer, and its stall has no cause."""


class Untimed(IntEnum):
    """Why a step has no TRANSFER records. Its counts are still valid. On a device it has no instants either."""

    TIMED = 0
    """It has TRANSFER records."""
    SAMPLED = 1
    """The settings ask for only one timed step in n."""
    BUSY = 2
    """The device was so far behind the host that no set of events was free."""
    NO_ANCHOR = 3
    """The device's clock could not be mapped to the host's."""
    REPLAY = 4
    """A replayed graph without time stamps."""
    UNFINISHED = 5
    """The run ended before the device had finished the step."""


def check_word(*words: int) -> int:
    """Return the 32-bit check of a record: the sum of its words without the check itself, folded.

    It is a sum because instants and numbers only grow from one generation of a slot to the next. Stale words
    therefore cannot cancel each other out, as two equal ones would in an exclusive or.
    """
    total = sum(words)
    return (total ^ (total >> 32)) & 0xFFFFFFFF
