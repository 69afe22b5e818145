"""The byte layout of a recording is lossless, and a number that is none is damage."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtrace.errors import RecordingFormatError
from swtrace.ledger.alignment import Probe
from swtrace.recording.format import pack_probe, pack_records, unpack_about, unpack_probe, unpack_records
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


_PROBE = Probe("boot-b", "boot-a", 7, 5, 9)


def test_a_probe_of_a_clock_is_read_back() -> None:
    """A probe is the same after it was written and read."""
    assert unpack_probe(pack_probe(_PROBE)) == _PROBE


@pytest.mark.parametrize(
    "changes",
    [
        {"low_ns": 10},
        {"at_ns": -1},
        {"at_ns": 10**400},
        {"at_ns": 1.5},
        {"at_ns": None},
        {"clock": ""},
        {"clock": 7},
        {"by": "b" * 10_000},
        {"more": 1},
    ],
)
def test_what_no_probe_can_be_is_damage(changes: dict[str, object]) -> None:
    """Values that no clock shows, and names that are none, are an error about damage."""
    raw = json.dumps({**_PROBE._asdict(), **changes}).encode()
    with pytest.raises(RecordingFormatError, match="damaged"):
        unpack_probe(raw)
