"""The byte layout of a recording is lossless, and a number that is none is damage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtrace.errors import RecordingFormatError
from swtrace.recording.format import pack_records, unpack_about, unpack_records
from swtrace.recording.status import unpack_status
from swtrace.trace import records


@given(st.lists(st.tuples(st.integers(0, 9), st.binary(min_size=0, max_size=640)), min_size=1, max_size=5))
def test_packing_is_lossless(batches: list[tuple[int, bytes]]) -> None:
    """Any 64 bytes are read back unchanged."""
    segments = [(rank, np.frombuffer(data[: len(data) // 64 * 64], records.TRANSFER).copy()) for rank, data in batches]
    again = unpack_records(pack_records(segments))
    assert [(rank, batch.tobytes()) for rank, batch in again] == [(rank, b.tobytes()) for rank, b in segments]


@pytest.mark.parametrize(
    ("unpack", "raw"),
    [
        (unpack_about, b'{"recording": "a", "part": 0, "created_ns": Infinity, "version": "1", "records_before": 0}'),
        (
            lambda raw: unpack_status(raw, {1: ("run", 0)}),  # type: ignore[dict-item]
            b'{"ranks": [{"rank": 1, "alive": 1, "closed": 0, "statistics": [1e999]}], "problems": {}, "caught_up": 1}',
        ),
    ],
    ids=["about", "status"],
)
def test_an_infinite_number_is_damage(unpack: Callable[[bytes], object], raw: bytes) -> None:
    """JSON can hold infinity, which no integer can. The error is the one about damage."""
    with pytest.raises(RecordingFormatError, match="damaged"):
        unpack(raw)
