"""Records as NumPy arrays: the reader's side of :mod:`swtrace.trace.schema`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from swtrace.trace import schema

Records = npt.NDArray[np.void]
"""A batch of records of dtype :data:`TRANSFER`, :data:`STEP` or :data:`REQUEST`, three views of the same 64 bytes."""

TRANSFER, STEP, REQUEST = (
    np.dtype([(field.name, field.dtype) for field in fields + schema.TAIL_FIELDS])
    for fields in (schema.TRANSFER_FIELDS, schema.STEP_FIELDS, schema.REQUEST_FIELDS)
)
WORDS = np.dtype("<u8")

for _dtype in (TRANSFER, STEP, REQUEST):
    if _dtype.itemsize != schema.RECORD_BYTES:
        raise RuntimeError(f"record dtype has {_dtype.itemsize} bytes, the schema has {schema.RECORD_BYTES}")


def empty() -> Records:
    """Return an empty batch."""
    return np.empty(0, TRANSFER)


def last_ns(records: Records) -> int:
    """Return the last instant in a batch; 0 if it has none."""
    instants = records.view(WORDS).reshape(-1, schema.RECORD_WORDS)[:, :4].copy()
    instants[records["kind"] == schema.Kind.STEP, 3] = 0
    instants[records["kind"] == schema.Kind.REQUEST, 1:] = 0
    return int(instants.max(initial=0))


def step_numbers(records: Records) -> npt.NDArray[np.uint32]:
    """Return the step that each record belongs to, modulo 2**32 as recorded."""
    of_step = records["kind"] == schema.Kind.STEP
    return np.where(of_step, records.view(STEP)["step"], records["step"])


def observed(records: Records) -> npt.NDArray[np.uint8]:
    """Return how each transfer's ready instant is known (:class:`~swtrace.trace.schema.Observed`)."""
    return np.asarray(records["observed_clock"] & 0x0F, np.uint8)


def clock(records: Records) -> npt.NDArray[np.uint8]:
    """Return the clock that each record was timed with (:class:`~swtrace.trace.schema.Clock`)."""
    return np.asarray(records["observed_clock"] >> 4, np.uint8)


def checks_hold(records: Records) -> npt.NDArray[np.bool_]:
    """Return for each record whether its check word is right (see :func:`~swtrace.trace.schema.check_word`)."""
    words = records.view(WORDS).reshape(-1, schema.RECORD_WORDS)
    low = words[:, schema.CHECK_WORD] & np.uint64(0xFFFFFFFF)
    total = np.add.reduce(words[:, : schema.CHECK_WORD], axis=1) + low + words[:, schema.SEQUENCE_WORD]
    folded = (total ^ (total >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    return np.asarray(folded == words[:, schema.CHECK_WORD] >> np.uint64(32), np.bool_)
