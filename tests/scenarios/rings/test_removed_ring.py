"""The ring of a living rank is removed: the rank recreates it, and every reader sees one rank, counted once."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from swtrace.trace.directory import ring_paths
from swtrace.trace.liveness import ended_ranks
from swtrace.trace.marks import Occupancy
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.ring_reader import RingReader, RingStatistics
from tests.support.writer_process import check, identity, series_info, write


def step(recorder: Recorder, series: SeriesRecorder) -> None:
    """Record the end of a step at which the recorder checks its file."""
    recorder._renew_at_ns = 0
    series.step(begin_ns=1, arrival_ns=2, end_ns=3, step=4, tokens=5, requests=6, waits=7, run_delay_us=8, steal_us=9)


def remove_file(recorder: Recorder) -> None:
    recorder.path.unlink()


def remove_folder(recorder: Recorder) -> None:
    shutil.rmtree(recorder.path.parent)


def move_away(recorder: Recorder) -> None:
    recorder.path.rename(recorder.path.parent.parent / "elsewhere.swt")


def replace_file(recorder: Recorder) -> None:
    recorder.path.unlink()
    recorder.path.write_bytes(b"not a ring")


@pytest.mark.parametrize("remove", [remove_file, remove_folder, move_away, replace_file])
def test_the_ring_is_made_again_and_goes_on(remove: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the end of a step the ring is restored with all its contents; numbers, tables and counts continue."""
    recorder = Recorder.create(tmp_path / "rings", identity(), records=64)
    series = recorder.add_series(series_info())
    write(series, 1, 30)
    remove(recorder)  # type: ignore[operator]
    step(recorder, series)
    write(series, 32, 20)
    recorder.add_series(series_info("later"))
    (path,) = ring_paths(tmp_path / "rings")
    assert path == recorder.path
    with RingReader.open(path) as reader:
        assert reader.alive()
        assert [info.name for info in reader.series()] == ["o_proj", "later"]
        records = reader.read()
        assert records["sequence"].tolist() == list(range(1, 52))
        check(records[:30])
        recorder.close()
        assert reader.closed()
        assert not reader.alive()
    (said,) = caplog.messages
    assert f"recreated its ring {path}, which was removed" in said


def test_a_reader_of_the_removed_ring_counts_every_record_once(tmp_path: Path) -> None:
    """A reader that had the old file open continues in the new one and delivers every record exactly once."""
    recorder = Recorder.create(tmp_path, identity(), records=128)
    series = recorder.add_series(series_info())
    with RingReader.open(recorder.path) as reader:
        write(series, 1, 10)
        seen = reader.read()["sequence"].tolist()
        write(series, 11, 10)
        recorder.path.unlink()
        write(series, 21, 10)
        step(recorder, series)
        write(series, 32, 10)
        assert reader.alive()
        seen += reader.read()["sequence"].tolist()
        assert seen == list(range(1, 42))
        assert reader.statistics() == RingStatistics(41, 41, 0, 0, 0)
        assert not reader.gone()
        recorder.close()
        assert (reader.alive(), reader.closed()) == (False, True)


def test_a_ring_is_made_again_once_its_folder_is_shared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rank that began before its folder was shared becomes readable for the group, without a restart."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    with RingReader.open(recorder.path) as reader:
        write(series, 1, 10)
        tmp_path.chmod(0o2750)
        assert recorder.path.stat().st_mode & 0o777 == 0o600
        for _ in range(3):
            step(recorder, series)
        assert recorder.path.stat().st_mode & 0o777 == 0o640
        assert reader.alive()
        assert reader.read()["sequence"].tolist() == list(range(1, 14))
    (said,) = caplog.messages
    assert f"recreated its ring {recorder.path}, which is older than the sharing of its folder" in said
    recorder.close()


def test_nobody_takes_it_for_a_death(tmp_path: Path) -> None:
    """A process that watches the old file's lock finds the ring closed, and the folder shows no dead rank."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    with RingReader.open(recorder.path) as held:
        held.path = tmp_path / "no such ring"
        recorder.path.unlink()
        step(recorder, series)
        assert (held.alive(), held.closed()) == (False, True)
    assert False not in ended_ranks(tmp_path, "run").values()
    recorder.close()


def test_a_ready_stamp_survives_from_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stamp that a transport's thread stores in the old file while it is copied is also in the new one."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    stale = series.window_issued(1, 8, 4, 1000)
    token = series.window_issued(0, 9, 4, 1000)
    series.window_issued(1, 9, 5, 1000)
    recorder.path.unlink()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        series.window_ready(0, token, 1010)
        series.window_ready(1, stale, 1020)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    step(recorder, series)
    with RingReader.open(recorder.path) as reader:
        ready, inflight = reader.windows(0)
        assert (ready.state, ready.ready_ns) == (Occupancy.READY, 1010)
        assert inflight.state == Occupancy.INFLIGHT
    recorder.close()


def test_a_ring_that_cannot_be_made_again_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the ring cannot be recreated, the rank goes on, logs this once, and recreates the ring when it can."""
    rings = tmp_path / "rings"
    recorder = Recorder.create(rings, identity(), records=64)
    series = recorder.add_series(series_info())
    with RingReader.open(recorder.path) as reader:
        shutil.rmtree(rings)
        rings.write_text("a file where the folder was")
        for _ in range(3):
            step(recorder, series)
        (said,) = caplog.messages
        assert f"its ring {recorder.path} was removed and cannot be recreated" in said
        assert len(reader.read()) == 3
        assert reader.alive()
        rings.unlink()
        step(recorder, series)
        assert ring_paths(rings) == (recorder.path,)
        assert reader.alive()
        assert len(reader.read()) == 1
    assert len(caplog.records) == 2
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    recorder.close()


def test_a_ring_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking the file costs a few system calls and changes nothing, even if the folder cannot be searched."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    inode = recorder.path.stat().st_ino
    step(recorder, series)
    assert recorder.path.stat().st_ino == inode
    with monkeypatch.context() as patched:
        patched.setattr(Path, "lstat", _refuse)
        step(recorder, series)
    assert recorder.path.stat().st_ino == inode
    before = len(list(Path("/proc/self/fd").iterdir()))
    recorder.path.unlink()
    step(recorder, series)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    recorder.close()


def _refuse(_path: Path) -> os.stat_result:
    raise PermissionError
