"""Records and window entries as numpy sees them: the reader's side of :mod:`swtrace.trace.schema`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swtrace.trace import schema

Records = npt.NDArray[np.void]
"""A batch of records, dtype :data:`TRANSFER` or :data:`STEP` (both are views of the same 64 bytes)."""

_TAIL: list[tuple[str, str]] = [
    ("kind", "u1"),
    ("series", "u1"),
    ("observed_clock", "u1"),
    ("flags", "u1"),
    ("check", "<u4"),
    ("sequence", "<u8"),
]

TRANSFER = np.dtype(
    [
        ("issued_ns", "<i8"),
        ("ready_ns", "<i8"),
        ("wait_begin_ns", "<i8"),
        ("wait_end_ns", "<i8"),
        ("step", "<u4"),
        ("operation", "<u4"),
        ("position", "<u2"),
        ("reach_position", "<u2"),
        ("source", "<u2"),
        ("window", "<u2"),
        *_TAIL,
    ]
)
STEP = np.dtype(
    [
        ("begin_ns", "<i8"),
        ("arrival_ns", "<i8"),
        ("end_ns", "<i8"),
        ("run_delay_us", "<u4"),
        ("steal_us", "<u4"),
        ("step", "<u4"),
        ("tokens", "<u4"),
        ("requests", "<u4"),
        ("phase", "u1"),
        ("untimed", "u1"),
        ("waits", "<u2"),
        *_TAIL,
    ]
)
WORDS = np.dtype("<u8")

for _dtype in (TRANSFER, STEP):
    if _dtype.itemsize != schema.RECORD_BYTES:
        raise RuntimeError(f"record dtype has {_dtype.itemsize} bytes, the schema has {schema.RECORD_BYTES}")


def empty() -> Records:
    """Return a batch of no records."""
    return np.empty(0, TRANSFER)


def step_numbers(records: Records) -> npt.NDArray[np.uint32]:
    """Return the step that each record belongs to, as recorded: modulo 2**32."""
    of_step = records["kind"] == schema.Kind.STEP
    return np.where(of_step, records.view(STEP)["step"], records["step"])


def observed(records: Records) -> npt.NDArray[np.uint8]:
    """Return how each transfer's ready instant is known (:class:`~swtrace.trace.schema.Observed`)."""
    return np.asarray(records["observed_clock"] & 0x0F, np.uint8)


def clock(records: Records) -> npt.NDArray[np.uint8]:
    """Return the clock each record was timed with (:class:`~swtrace.trace.schema.Clock`)."""
    return np.asarray(records["observed_clock"] >> 4, np.uint8)


def checks_hold(records: Records) -> npt.NDArray[np.bool_]:
    """Return for each record whether its check word fits its other words (:func:`~swtrace.trace.schema.check_word`)."""
    words = records.view(WORDS).reshape(-1, schema.RECORD_WORDS)
    low = words[:, schema.CHECK_WORD] & np.uint64(0xFFFFFFFF)
    total = np.add.reduce(words[:, : schema.CHECK_WORD], axis=1) + low + words[:, schema.SEQUENCE_WORD]
    folded = (total ^ (total >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    return np.asarray(folded == words[:, schema.CHECK_WORD] >> np.uint64(32), np.bool_)
