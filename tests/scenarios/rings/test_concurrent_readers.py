"""Readers of a running writer see no torn record and no wrong count, and do not disturb each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader, RingStatistics
from tests.support.patience import patience
from tests.support.writer_process import Order, Writers, check, identity, series_info, until, write

_READ_ALL = """
import json, sys
from pathlib import Path
from swtrace.trace.ring_reader import RingReader
with RingReader.open(Path(sys.argv[1])) as reader:
    records = reader.read(1 << 20)
    print(json.dumps([records["sequence"].tolist(), list(reader.statistics()), reader.alive()]))
"""


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
@pytest.mark.parametrize("capacity", [64, 1024, 16384])
def test_no_torn_record_is_ever_delivered(capacity: int, checked: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """A reader that races a writer at full speed, often lapped, delivers only whole records, each once and in order."""
    with Writers() as writers:
        _, path = writers.start(Order(str(tmp_path), records=capacity, checked=checked))
        with RingReader.open(path) as reader:
            newest = delivered = 0
            deadline = time.monotonic() + patience()
            # The smallest ring is lapped faster than Python reads, so it takes longer to deliver a ring's worth.
            while reader.statistics().written < 400_000 or delivered <= capacity:
                assert time.monotonic() < deadline, f"{delivered} delivered"
                records = reader.read(capacity)
                check(records)
                if len(records):
                    assert records["sequence"][0] > newest
                    newest = int(records["sequence"][-1])
                delivered += len(records)
                assert reader.statistics().delivered == delivered
                assert reader.statistics().damaged == 0
            assert delivered > capacity


@pytest.mark.parametrize("lap", [1, 40, 64, 200])
def test_a_slot_overwritten_while_it_is_copied_is_not_delivered(
    lap: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever order a copy reads its words in, records overwritten meanwhile are lapped, and others delivered."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    write(series, 1, 64)
    copies = 0

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        # GIVEN a copy that reads every sequence number first, and every other word after the writer went on
        nonlocal copies
        copies += 1
        count = real(descriptor, buffers, offset)
        if copies == 1:
            write(series, 65, lap)
            later = bytearray(len(buffers[0].cast("B")))
            real(descriptor, [memoryview(later)], offset)
            words, new = buffers[0].cast("B").cast("Q"), memoryview(later).cast("Q")
            for word in range(len(words)):
                if word % 8 != 7:
                    words[word] = new[word]
        return count

    real = os.preadv
    with RingReader.open(recorder.path) as reader:
        monkeypatch.setattr(os, "preadv", preadv)
        records = reader.read(63)
        monkeypatch.undo()
        check(records)
        assert copies > 1
        lost = min(lap, 63)
        assert records["sequence"].tolist() == list(range(lost + 1, 64))
        assert reader.statistics()[1:4] == (len(records), max(lost, lap), 0)
    recorder.close()


def test_readers_do_not_see_each_other(tmp_path: Path) -> None:
    """Two readers of one ring and a third in another process each get every record, independently of each other."""
    recorder = Recorder.create(tmp_path, identity(), records=128)
    series = recorder.add_series(series_info())
    with RingReader.open(recorder.path) as one, RingReader.open(recorder.path) as two:
        write(series, 1, 60)
        assert len(one.read()) == 60
        write(series, 61, 40)
        assert one.read()["sequence"].tolist() == list(range(61, 101))
        assert two.read()["sequence"].tolist() == list(range(1, 101))
        answer = subprocess.run(
            [sys.executable, "-c", _READ_ALL, str(recorder.path)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            check=True,
            timeout=patience(),
        ).stdout
        assert json.loads(answer) == [list(range(1, 101)), [100, 100, 0, 0, 0, 0], True]
    recorder.close()


def test_a_stopped_reader_is_told_exactly_what_it_lost(tmp_path: Path) -> None:
    """A lapped reader continues with the oldest record still there, and counts everything before it as lost at once."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    with RingReader.open(recorder.path) as reader:
        write(series, 1, 10)
        check(reader.read(4))
        write(series, 11, 1000)
        assert reader.statistics() == RingStatistics(1010, 4, 1010 - 64 - 4, 0, 64)
        records = reader.read()
        check(records)
        assert records["sequence"].tolist() == list(range(1010 - 63, 1011))
        assert reader.statistics() == RingStatistics(1010, 68, 1010 - 68, 0, 0)
    recorder.close()


def test_limits_are_kept_across_the_end_of_the_ring(tmp_path: Path) -> None:
    """Reads with any limit return that many records in order, even where the ring wraps."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    with RingReader.open(recorder.path) as reader:
        written = delivered = 0
        for limit in (1, 7, 63, 64, 20, 50, 64):
            write(series, written + 1, limit)
            written += limit
            assert len(reader.read(limit - 1)) == limit - 1
            assert len(reader.read(limit)) == 1
            delivered += limit
            assert reader.statistics() == RingStatistics(written, delivered, 0, 0, 0)
        assert len(reader.read()) == 0
    recorder.close()


def test_a_reader_sees_a_writer_come_to_life_and_die(tmp_path: Path) -> None:
    """For every reader, ``alive`` depends only on the writer's lock: true while it runs, false after its death."""
    with Writers() as writers:
        pid, path = writers.start(Order(str(tmp_path), count=3))
        with RingReader.open(path) as one, RingReader.open(path) as two:
            until(lambda: one.statistics().written == 3)
            assert one.alive()
            assert two.alive()
            writers.kill(pid)
            assert not one.alive()
            assert not two.alive()
            assert not one.closed()
