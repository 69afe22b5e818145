"""The byte layout of a recording is lossless."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from swtrace.recording.format import pack_records, unpack_records
from swtrace.trace import records


@given(st.lists(st.tuples(st.integers(0, 9), st.binary(min_size=0, max_size=640)), min_size=1, max_size=5))
def test_packing_is_lossless(batches: list[tuple[int, bytes]]) -> None:
    """Any 64 bytes are read back unchanged."""
    segments = [(rank, np.frombuffer(data[: len(data) // 64 * 64], records.TRANSFER).copy()) for rank, data in batches]
    again = unpack_records(pack_records(segments))
    assert [(rank, batch.tobytes()) for rank, batch in again] == [(rank, b.tobytes()) for rank, b in segments]
