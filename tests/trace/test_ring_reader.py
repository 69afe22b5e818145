"""Whatever a ring file contains, a reader does not crash, miscount or allocate without bound."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtrace.errors import RingFormatError
from swtrace.trace import schema
from swtrace.trace.liveness import ended_ranks
from swtrace.trace.recorder import Recorder
from swtrace.trace.request_link import RequestLink
from swtrace.trace.ring_reader import RingReader, RingStatistics
from swtrace.trace.tail import Tail
from tests.support.reading import read_in_every_way
from tests.support.writer_process import check, identity, series_info, write

CAPACITY = 64


def _ring(directory: Path, *, checked: bool = False, count: int = 100) -> Path:
    """Return an intact ring of a dead rank: 100 records written, 64 still there."""
    recorder = Recorder.create(directory, identity(), records=CAPACITY, checked=checked)
    series = recorder.add_series(series_info())
    write(series, 1, count)
    series.window_ready(0, series.window_issued(0, 1, 2, 1000), 2000)
    recorder._detach()
    return recorder.path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, bytes]:
    """Bytes of an intact ring, without and with check words."""
    return {checked: _ring(tmp_path_factory.mktemp("sound"), checked=checked).read_bytes() for checked in (False, True)}


# Where in the file things are that decide something, so that random damage finds them.
_PLACES = st.one_of(
    st.integers(0, 320),
    st.integers(schema.IDENTITY_OFFSET, schema.IDENTITY_OFFSET + 300),
    st.integers(schema.SERIES_TABLE_OFFSET, schema.SERIES_TABLE_OFFSET + 600),
    st.integers(schema.WINDOW_TABLE_OFFSET, schema.WINDOW_TABLE_OFFSET + 64),
    st.integers(schema.HEADER_BYTES, schema.HEADER_BYTES + CAPACITY * 64 - 9),
)
_DAMAGE = st.lists(st.tuples(_PLACES, st.one_of(st.binary(min_size=1, max_size=9), st.just(b"\xff" * 8))), max_size=12)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(damage=_DAMAGE, checked=st.booleans())
def test_damage_anywhere_is_refused_or_read_with_an_exact_account(
    *, damage: list[tuple[int, bytes]], checked: bool, sound: dict[bool, bytes], tmp_path: Path
) -> None:
    """A ring damaged anywhere is refused with the reason, or read without an exception and with balanced counts."""
    data = bytearray(sound[checked])
    for offset, garbage in damage:
        data[offset : offset + len(garbage)] = garbage
    path = tmp_path / "ring-fuzz-0-00.swt"
    path.write_bytes(data)
    read_in_every_way(path)
    ended_ranks(tmp_path, "run")


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(words=st.lists(st.integers(0, (1 << 64) - 1), min_size=15, max_size=15), size=st.integers(0, 300_000))
def test_random_headers_are_refused(words: list[int], size: int, tmp_path: Path) -> None:
    """A file that begins like a ring and goes on at random is refused, whatever sizes it claims."""
    path = tmp_path / "ring-fuzz-0-01.swt"
    path.write_bytes(schema.HEADER.pack(schema.MAGIC, *words))
    os.truncate(path, size)
    with pytest.raises(RingFormatError):
        RingReader.open(path)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=20)
    | st.integers(0, 1 << 70).map("{:x}".format),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(field=st.sampled_from([*series_info().__dataclass_fields__, "first_window"]), value=_JSON)
def test_a_series_entry_of_any_values_ends_the_list_or_is_in_range(
    field: str, value: Any, sound: dict[bool, bytes], tmp_path: Path
) -> None:
    """A series entry with a valid checksum and any JSON in any field is ignored, or within the format's bounds."""
    data = bytearray(sound[False])
    (length,) = struct.unpack_from("<I", data, schema.SERIES_TABLE_OFFSET)
    start = schema.SERIES_TABLE_OFFSET + 8
    values = json.loads(data[start : start + length]) | {field: value}
    _put_series(data, json.dumps(values).encode())
    path = tmp_path / "ring-fuzz-0-02.swt"
    path.write_bytes(data)
    reader = read_in_every_way(path)
    assert reader is not None
    assert reader.series_damaged + len(reader._series) == 1


def _put_series(data: bytearray, text: bytes) -> None:
    entry = schema.SERIES_ENTRY.pack(len(text), zlib.crc32(text)) + text
    data[schema.SERIES_TABLE_OFFSET : schema.SERIES_TABLE_OFFSET + len(entry)] = entry


@pytest.mark.parametrize(
    "text",
    [b"[" * 8000, b'{"name":' * 900, b"\xff\xfe", b"1" * 5000, b"null", b'"\\ud800"', b""],
    ids=["deep list", "deep object", "not utf-8", "huge number", "null", "text", "empty"],
)
def test_json_that_breaks_parsers_ends_the_series_list(text: bytes, sound: dict[bool, bytes], tmp_path: Path) -> None:
    """JSON made to break a parser is a damaged entry like any other."""
    data = bytearray(sound[False])
    _put_series(data, text)
    path = tmp_path / "ring-fuzz-0-03.swt"
    path.write_bytes(data)
    with RingReader.open(path) as reader:
        assert reader.series() == ()
        assert reader.series_damaged == 1


def test_terminal_codes_in_names_are_refused(sound: dict[bool, bytes], tmp_path: Path) -> None:
    """A name that would write escape codes to a terminal is damage."""
    data = bytearray(sound[False])
    (length,) = struct.unpack_from("<I", data, schema.SERIES_TABLE_OFFSET)
    start = schema.SERIES_TABLE_OFFSET + 8
    _put_series(data, json.dumps(json.loads(data[start : start + length]) | {"name": "\x1b[2J"}).encode())
    path = tmp_path / "ring-fuzz-0-04.swt"
    path.write_bytes(data)
    with RingReader.open(path) as reader:
        assert reader.series() == ()


@pytest.mark.parametrize("length", [0, 1, 119, 4096, 8191, schema.HEADER_BYTES, schema.HEADER_BYTES + 64])
def test_a_truncated_file_is_refused(length: int, sound: dict[bool, bytes], tmp_path: Path) -> None:
    """A file truncated anywhere is not a ring."""
    path = tmp_path / "ring-short-0-00.swt"
    path.write_bytes(sound[False][:length])
    with pytest.raises(RingFormatError):
        RingReader.open(path)


@pytest.mark.parametrize("left", [0, 100, schema.HEADER_BYTES, schema.HEADER_BYTES + 10 * 64 + 7])
def test_truncation_under_an_open_reader_costs_records_and_nothing_else(left: int, tmp_path: Path) -> None:
    """Of a file truncated while it is open, the rest is delivered, and missing records count as damaged."""
    path = _ring(tmp_path, count=40)
    with RingReader.open(path) as reader:
        check(reader.read(5))
        assert reader.statistics() == RingStatistics(40, 5, 0, 0, 35)
        os.truncate(path, left)
        rest = reader.read()
        check(rest)
        # Slot n holds number n; slot 0 is written last.
        whole = max(0, (left - schema.HEADER_BYTES) // 64)
        assert rest["sequence"].tolist() == list(range(6, whole))
        assert reader.statistics() == RingStatistics(40, 5 + len(rest), 0, 35 - len(rest), 0)
        reader.windows(0)
        reader.anchor()


def test_damaged_records_are_counted_and_stepped_over(tmp_path: Path) -> None:
    """Three records wiped out in the middle count as damaged; all others are delivered."""
    path = _ring(tmp_path, count=50)
    with path.open("r+b") as file:
        file.seek(schema.HEADER_BYTES + 20 * 64)
        file.write(bytes(3 * 64))
    with RingReader.open(path) as reader:
        records = reader.read()
        check(records)
        assert records["sequence"].tolist() == [*range(1, 20), *range(23, 51)]
        assert reader.statistics() == RingStatistics(50, 47, 0, 3, 0)


@pytest.mark.parametrize("more", [0, 10, 70, 200])
def test_history_that_is_overwritten_is_skipped_and_not_lost(more: int, tmp_path: Path) -> None:
    """Of records written before a reader marked them as history, none is lost; of later ones, those overwritten are."""
    recorder = Recorder.create(tmp_path, identity(), records=CAPACITY)
    series = recorder.add_series(series_info())
    write(series, 1, 100)
    with RingReader.open(recorder.path) as reader:
        assert reader.mark_history() == 100
        write(series, 101, more)
        overwritten = 100 + more - CAPACITY
        assert len(reader.read()) == CAPACITY
        skipped = min(overwritten, 100)
        assert reader.statistics() == RingStatistics(100 + more, CAPACITY, overwritten - skipped, 0, 0, skipped)
    recorder.close()


@pytest.mark.parametrize("wiped", [2, 10, 30])
def test_records_behind_a_wiped_out_stretch_are_found_once_the_writer_is_dead(wiped: int, tmp_path: Path) -> None:
    """A stretch of any length wiped out at the cursor does not hide the records after it."""
    path = _ring(tmp_path, count=50)
    with path.open("r+b") as file:
        file.seek(schema.HEADER_BYTES + 64)
        file.write(bytes(wiped * 64))
    with RingReader.open(path) as reader:
        assert not reader.alive()
        assert reader.read()["sequence"].tolist() == list(range(wiped + 1, 51))
        assert reader.statistics() == RingStatistics(50, 50 - wiped, 0, wiped, 0)


def test_a_wrong_check_word_is_damage_where_records_carry_one(tmp_path: Path) -> None:
    """One changed bit in a record with a check word keeps it from being delivered."""
    path = _ring(tmp_path, checked=True, count=50)
    with path.open("r+b") as file:
        file.seek(schema.HEADER_BYTES + 20 * 64)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    with RingReader.open(path) as reader:
        records = reader.read()
        check(records)
        assert 20 not in records["sequence"]
        assert reader.statistics() == RingStatistics(50, 49, 0, 1, 0)


def test_claimed_sequence_numbers_cost_no_memory(tmp_path: Path) -> None:
    """A ring that claims 2**61 records counts them as lapped, and reading it takes no more memory than usual."""
    path = _ring(tmp_path, count=50)
    data = np.fromfile(path, "<u8")
    data[schema.HEADER_BYTES // 8 + 7 :: 8] += np.uint64(1 << 61)
    data.tofile(path)
    tracemalloc.start()
    try:
        assert read_in_every_way(path) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_new_reader_does_not_step_through_what_was_overwritten_long_ago(tmp_path: Path) -> None:
    """The first read of a ring delivers what the ring holds, however many records its writer has overwritten."""
    path = _ring(tmp_path, count=CAPACITY)
    data = np.fromfile(path, "<u8")
    data[schema.HEADER_BYTES // 8 + 7 :: 8] += np.uint64(1 << 40)
    data.tofile(path)
    with RingReader.open(path) as reader:
        assert reader.read(2 * CAPACITY)["sequence"].tolist() == [*range((1 << 40) + 1, (1 << 40) + CAPACITY + 1)]
        assert reader.statistics() == RingStatistics((1 << 40) + CAPACITY, CAPACITY, 1 << 40, 0, 0)


def test_what_is_not_a_plain_file_is_refused_without_blocking(tmp_path: Path) -> None:
    """A pipe, a folder, a link and a missing file under a ring's name are refused at once."""
    pipe, folder, link, missing = (tmp_path / f"ring-{kind}-0-00.swt" for kind in ("pipe", "folder", "link", "missing"))
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to(_ring(tmp_path))
    for path in (pipe, folder, link, missing):
        with pytest.raises(RingFormatError, match=path.name):
            RingReader.open(path)
    tail = Tail(tmp_path)
    poll = tail.poll()
    assert len(poll.joined) == 1
    assert set(tail.problems) == {pipe, folder, link}
    tail.close()


def test_lag_is_counted_from_the_last_instant_of_a_long_read(tmp_path: Path) -> None:
    """Also where that instant is followed by more steps without any than are copied together."""
    recorder = Recorder.create(tmp_path, identity(), records=8192)
    series = recorder.add_series(series_info())
    series.step(begin_ns=100, arrival_ns=100, end_ns=1_000, step=0)
    for step in range(1, 5_000):
        series.step(step=step, untimed=schema.Untimed.SAMPLED)
    with RingReader.open(recorder.path) as reader:
        assert len(reader.read()) == 5_000
        series.step(begin_ns=5_000, arrival_ns=5_000, end_ns=6_000, step=5_000)
        assert reader.statistics().pending == 1
        assert reader.lag_ns() == 5_000
    recorder.close()


def test_ids_of_requests_are_not_instants(tmp_path: Path) -> None:
    """Lag and the order of reading follow the instant in a request's record, however large its ids are."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    huge = RequestLink((1 << 128) - 1, (1 << 64) - 1)
    series.request(1_000, huge, 0, 0)
    with RingReader.open(recorder.path) as reader:
        assert reader.next_ns() == 1_000
        assert len(reader.read()) == 1
        series.request(5_000, huge, 1, 0)
        assert reader.statistics().pending == 1
        assert reader.lag_ns() == 4_000
    recorder.close()
