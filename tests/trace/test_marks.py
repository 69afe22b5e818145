"""What a ring says of this moment, as a recorder marks it and a reader sees it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from swtrace.trace.marks import Marks, Occupancy, Progress
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import Collective, Stage
from tests.support.writer_process import identity, series_info


def test_windows_go_through_their_states(tmp_path: Path) -> None:
    """A window is free, in flight, ready, in use and free again, with the instant of each change."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    recorder.add_series(series_info("other", window_count=3))
    series = recorder.add_series(series_info())
    base = recorder._renew_at_ns
    with RingReader.open(recorder.path) as reader:

        def state() -> tuple[object, ...]:
            assert all(window.state == Occupancy.FREE for window in reader.windows(0))
            return tuple(reader.windows(1)[1])[1:]

        assert state() == ("free", 0, 0, 0, 0, 0, 0)
        token = series.window_issued(1, 9, 4, base)
        assert state() == ("inflight", 9, 4, base, 0, 0, base)
        series.window_ready(1, token, base + 10)
        assert state() == ("ready", 9, 4, base, base + 10, 0, base + 10)
        series.window_in_use(1, token, base + 20)
        assert state() == ("in_use", 9, 4, base, base + 10, base + 20, base + 20)
        # A stamp for an earlier occupant changes nothing.
        again = series.window_issued(1, 10, 5, base + 30)
        series.window_ready(1, token, base + 40)
        assert state() == ("inflight", 10, 5, base + 30, 0, 0, base + 30)
        series.window_in_use(1, again, base + 50)
        assert state() == ("in_use", 10, 5, base + 30, 0, base + 50, base + 50)
        series.window_freed(1)
        assert state() == ("free", 0, 0, 0, 0, 0, 0)
    recorder.close()


@pytest.mark.parametrize("issued_ns", [1, (1 << 48) - 5, (1 << 48) * 3 + 7, (1 << 62) + 9])
def test_window_instants_are_complete_at_any_uptime(issued_ns: int, tmp_path: Path) -> None:
    """Ready and in-use instants, stored with 48 bits, are read back exactly around every wrap of these bits."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    with RingReader.open(recorder.path) as reader:
        reader.series()
        token = series.window_issued(0, 1, 2, issued_ns)
        series.window_ready(0, token, issued_ns + 10)
        series.window_in_use(0, token, issued_ns + 10**12)
        assert reader.windows(0)[0][4:7] == (issued_ns, issued_ns + 10, issued_ns + 10**12)
    recorder.close()


def test_generations_cycle_without_meeting_the_mark_of_a_free_window(tmp_path: Path) -> None:
    """After 65535 occupants, the next one is distinguished from an empty window and from the one before it."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    tokens = [series.window_issued(0, step, 1, step) for step in range(65537)]
    assert len(set(tokens)) == 65535
    assert 0 not in tokens
    assert tokens[65535] == tokens[0]
    recorder.close()


def test_ready_stamps_may_come_from_any_thread(tmp_path: Path) -> None:
    """A transport's callback thread stamps a window while the forward goes on."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    token = series.window_issued(0, 1, 2, 100)
    thread = threading.Thread(target=series.window_ready, args=(0, token, 200))
    thread.start()
    thread.join()
    with RingReader.open(recorder.path) as reader:
        assert reader.windows(0)[0].state == Occupancy.READY
    recorder.close()


def test_marks_show_what_the_rank_is_doing(tmp_path: Path) -> None:
    """A reader sees the broadcasts issued, the stage, what the host waits for and since when, and its collective."""
    recorder = Recorder.create(tmp_path, identity())
    recorder.add_series(series_info("a"))
    series = recorder.add_series(series_info("b"))
    with RingReader.open(recorder.path) as reader:
        reader.series()
        idle = Progress(0, Stage.BETWEEN, 0)
        assert reader.marks() == Marks((idle, idle))
        series.enter_stage(Stage.MARKED, 1 << 50)
        series.issued(62, (1 << 50) + 10)
        series.block(0, (1 << 50) + 20)
        assert recorder.enter_collective(Collective.BARRIER)
        assert not recorder.enter_collective(Collective.SEND)
        marks = reader.marks()
        assert marks.progress == (idle, Progress(62, Stage.MARKED, (1 << 50) + 10, 0, (1 << 50) + 20))
        assert marks.collective is Collective.BARRIER
        assert marks.collective_ns > 0
        series.unblock((1 << 50) + 30)
        series.completed(1, 40)
        recorder.leave_collective()
        left = reader.marks()
        assert left.progress[1] == Progress(62, Stage.MARKED, (1 << 50) + 30, -1, 0, 1, 40)
        assert left.collective is None
        assert left.collective_ns >= marks.collective_ns
        series.enter_stage(Stage.BETWEEN, (1 << 50) + 50)
        assert not reader.marks().progress[1].in_step


def test_marks_of_a_dead_rank_remain(tmp_path: Path) -> None:
    """What a rank was doing when it died can be read after its file was closed."""
    recorder = Recorder.create(tmp_path, identity())
    series = recorder.add_series(series_info())
    series.issued(3, 7)
    series.block(2, 9)
    with RingReader.open(recorder.path) as reader:
        reader.series()
        before = reader.marks()
        recorder._detach()
        assert not reader.alive()
        reader.read()
        reader.release()
        assert before == reader.marks() != Marks()
