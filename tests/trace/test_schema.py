"""The byte layout of a ring: a record is one cache line, and a ring holds seconds of them."""

from __future__ import annotations

import struct

from swtrace.trace import schema


def test_the_default_ring_holds_fifteen_seconds() -> None:
    """The default capacity is at least 15 s of a 61-layer series at 50 steps a second."""
    assert schema.DEFAULT_RECORDS >= 15 * 50 * (61 + 1)


def test_the_layout_of_a_record_is_eight_words() -> None:
    """All kinds fill 64 bytes, end with the sequence number, and have kind and check at the same offsets."""
    word = 1 | 2 << 8 | 3 << 16 | 4 << 24
    for record, ends in (
        (schema.TRANSFER_RECORD, (word, 6)),
        (schema.CHECKED_TRANSFER_RECORD, (word, 5, 6)),
        (schema.STEP_RECORD, (1, 2, 3, 4, 5, 6)),
        (schema.REQUEST_RECORD, (1, 2, 3, 4, 5, 6)),
    ):
        assert record.size == schema.RECORD_BYTES
        count = len(struct.unpack(record.format, bytes(64)))
        packed = record.pack(*[0] * (count - len(ends)), *ends)
        assert packed[48:] == struct.pack("<4BIQ", 1, 2, 3, 4, 5 if 5 in ends else 0, 6)
