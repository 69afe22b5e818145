"""The bytes of a trace ring: the only module that knows them.

A ring file belongs to one rank. It holds, in this order, a fixed header, the rank's identity
(JSON), a table of its series (JSON, append-only), a table of its windows (live state, four words
each) and the ring of records itself. Everything is little-endian and made of 8-byte words, because
an aligned 8-byte store is the largest that a reader can rely on to be seen whole.

A record is eight words. The writer stores the last one, the sequence number, last; a slot whose
sequence number is not the expected one holds no record for that reader. Before it touches a slot it
sets that word to 0, so that a reader that finds the number before and after its copy has read
nothing else. That needs stores to be seen in program order, which x86 promises. On other machines
records carry a check word over all words as well (the header says so), and a record assembled from
two generations is recognised by it; on x86 it would double the cost of a record for nothing.

This module imports neither numpy nor torch: ranks load it.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

MAGIC = b"SWTRACE\0"
VERSION = 2

RECORD_BYTES = 64
RECORD_WORDS = 8
RECORD = struct.Struct("<8Q")


class Field(NamedTuple):
    """A field of a record."""

    name: str
    dtype: str
    """As NumPy writes it."""
    about: str


TRANSFER_FIELDS = (
    Field("issued_ns", "<i8", "the broadcast into the window was issued"),
    Field("ready_ns", "<i8", "its bytes were there; 0: nobody knows"),
    Field("wait_begin_ns", "<i8", "the forward came to wait for it"),
    Field("wait_end_ns", "<i8", "and went on"),
    Field("step", "<u4", "that waits, modulo 2**32"),
    Field("operation", "<u4", "number of the broadcast on its communicator, modulo 2**32"),
    Field("position", "<u2", "of the layer"),
    Field("reach_position", "<u2", "of the layer that the forward had reached at its issue"),
    Field("source", "<u2", "group rank that keeps the layer"),
    Field("window", "<u2", "that it goes to, or NO_WINDOW"),
)
"""Of a TRANSFER record. A LAUNCH record has the same: the launches of issue and wait in *issued* and *wait begin*, in
host time, and no other instants."""
STEP_FIELDS = (
    Field("begin_ns", "<i8", "the forward began"),
    Field("arrival_ns", "<i8", "it arrived at position 0"),
    Field("end_ns", "<i8", "it ended"),
    Field("run_delay_us", "<u4", "the rank was ready to run and had no core, since the step before"),
    Field("steal_us", "<u4", "the hypervisor took cores away, since the step before"),
    Field("step", "<u4", "its number, modulo 2**32"),
    Field("tokens", "<u4", "in its batch"),
    Field("requests", "<u2", "in its batch"),
    Field("kept_layers", "<u2", "whose memory is left to whoever holds them, beside the windows, at its end"),
    Field("phase", "u1", "Phase"),
    Field("untimed", "u1", "Untimed"),
    Field("waits", "<u2", "of the forward: as many as layers, unless it was aborted or passed some by"),
)
"""Of a STEP record."""
TAIL_FIELDS = (
    Field("kind", "u1", "Kind"),
    Field("series", "u1", "index in the series table"),
    Field("observed_clock", "u1", "Observed, and Clock times 16"),
    Field("flags", "u1", "TransferFlag or StepFlag"),
    Field("check", "<u4", "check word, 0 in a ring without them"),
    Field("sequence", "<u8", "sequence number, from 1; stored last"),
)
"""What all records end with."""

_CODES = {"<i8": "Q", "<u8": "Q", "<u4": "I", "<u2": "H", "u1": "B"}


def _struct(fields: tuple[Field, ...], tail: str = "") -> struct.Struct:
    return struct.Struct("<" + "".join(_CODES[field.dtype] for field in fields) + tail)


TRANSFER_RECORD = _struct(TRANSFER_FIELDS, "I4xQ")
"""With kind, series, observed, clock and flags as one number: each argument costs 15 ns."""
CHECKED_TRANSFER_RECORD = _struct(TRANSFER_FIELDS, "2IQ")
"""The same with the check before the sequence number."""
STEP_BODY = _struct(STEP_FIELDS)
STEP_RECORD = _struct(STEP_FIELDS + TAIL_FIELDS)
BODY = struct.Struct("<6Q")
"""The words before the tail."""
SEQUENCE_WORD = 7
"""Sequence numbers start at 1; number ``n`` lives in slot ``n & (capacity - 1)``."""
CHECK_WORD = 6

HEADER = struct.Struct("<8s15Q")
"""magic, version, header bytes, record bytes, capacity (records, a power of two), identity offset,
identity length, identity crc32, series table offset, series slots, bytes per series slot, window
table offset, window slots, epoch_ns (CLOCK_MONOTONIC at creation), creation time (CLOCK_REALTIME),
1 if records carry check words, else 0."""

SERIES_COUNT_OFFSET = 256
"""Number of committed entries of the series table: stored after the entry itself."""
CLOSED_OFFSET = 264
"""CLOCK_MONOTONIC ns of an orderly close, or of the moment from which on one was under way; 0 while open or when the
writer died."""
ANCHOR = struct.Struct("<2Q")
ANCHOR_OFFSET = 272
"""Two words: CLOCK_MONOTONIC ns, CLOCK_REALTIME ns, taken together. The first is set to 0 while the
pair is being renewed."""

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
"""21 s of one 61-layer series at 50 steps/s (62 records a step); 4 MiB."""
MIN_RECORDS = 1 << 6
MAX_RECORDS = 1 << 24

NO_WINDOW = 0xFFFF
"""Window of a record whose layer this rank owns."""
MAX_POSITIONS = 0xFFFF
MAX_GROUP = 0xFFFF

# The words of a window table entry.
WINDOW_OCCUPANT = 0
"""step u32 | position u16 << 32 | generation u16 << 48. Generation 0: free. Stored last at issue."""
WINDOW_ISSUED = 1
"""CLOCK_MONOTONIC ns at which the broadcast into the window was issued."""
WINDOW_READY = 2
"""(low 48 bits of the ns) | generation u16 << 48: counts only if the generation is the occupant's. 48 bits are
three days, so readers complete them from the issued instant."""
WINDOW_IN_USE = 3
"""As WINDOW_READY, set at wait end."""
GENERATION_SHIFT = 48
GENERATION_ONE = 1 << GENERATION_SHIFT
GENERATION_END = 1 << 64
INSTANT_MASK = (1 << 48) - 1
POSITION_SHIFT = 32


class Kind(IntEnum):
    """What a record is about."""

    TRANSFER = 1
    """One layer's transfer into its window, and the wait for it."""
    STEP = 2
    """One forward pass of one series."""
    LAUNCH = 3
    """When the host launched what a device's TRANSFER record tells; only of waits that stalled."""


class Observed(IntEnum):
    """How the ready instant of a transfer is known."""

    UPPER_BOUND = 0
    """Not observed: the ready instant is wait end, the true one was earlier."""
    CALLBACK = 1
    """The transport's completion callback stamped it."""
    EXACT = 2
    """The transport computed it: an ideal channel."""
    EVENT = 3
    """A device event."""
    STAMP = 4
    """A time stamp written by the device."""
    NEVER = 5
    """Not known when the record was written: the ready instant is 0."""


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
    """The window was filled at post-processing: no broadcast belongs to this wait."""
    CROSSES_STEPS = 2
    """Issued in the step before the one that waits."""
    OWN = 4
    """This rank is the source: it reads its own copy and never waits for its send."""
    OPEN = 8
    """Not complete when the record was written."""
    UNWAITED = 16
    """No linear waited for it (an aborted or partial forward): wait begin and wait end are 0."""


class StepFlag(IntFlag):
    """Flags of a STEP record."""

    ABORTED = 1
    """The forward ended early; what was left of the circle was broadcast by the runtime."""
    IMPLICIT_END = 2
    """Nobody marked the end: it is the end of the step's last wait."""


class Untimed(IntEnum):
    """Why a step has no TRANSFER records; its counts stand. On a device it has no instants either."""

    TIMED = 0
    """It has."""
    SAMPLED = 1
    """The settings ask for one step in n only."""
    BUSY = 2
    """The device was so far behind the host that no set of events was free."""
    NO_ANCHOR = 3
    """The device's clock could not be tied to the host's."""
    REPLAY = 4
    """A replayed graph that carries no time stamps."""
    UNFINISHED = 5
    """The run ended before the device did."""


def check_word(*words: int) -> int:
    """Return the 32-bit check of a record: the sum of its words, without the check itself, folded.

    A sum, because instants and numbers only grow from one generation of a slot to the next: stale words
    cannot cancel each other out, as two equal ones would in an exclusive or.
    """
    total = sum(words)
    return (total ^ (total >> 32)) & 0xFFFFFFFF
