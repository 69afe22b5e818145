"""The writing side of a ring: its contents, who may read it, and what happens when it cannot be created."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swtrace.errors import RingCreateError, RingFullError, TraceError
from swtrace.trace import schema
from swtrace.trace.directory import ring_paths
from swtrace.trace.header import MAX_TEXT
from swtrace.trace.liveness import ended_ranks
from swtrace.trace.recorder import Recorder
from swtrace.trace.records import REQUEST, STEP, checks_hold, clock, observed
from swtrace.trace.request_link import RequestLink
from swtrace.trace.ring_reader import RingReader
from tests.support.patience import patience
from tests.support.writer_process import identity, series_info, write


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_every_field_comes_back(checked: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """A reader gets every field of a transfer, a step and a request as it was recorded."""
    recorder = Recorder.create(tmp_path, identity(), records=64, checked=checked)
    recorder.add_series(series_info("first"))
    series = recorder.add_series(series_info("second"))
    series.transfer(11, 22, 33, 44, 55, 66, 7, 6, 3, schema.NO_WINDOW, schema.Observed.CALLBACK, 4 | 8, 1)
    series.step(
        begin_ns=1,
        arrival_ns=2,
        end_ns=3,
        step=4,
        tokens=5,
        requests=6,
        kept_layers=9,
        phase=schema.Phase.MIXED,
        waits=60,
        run_delay_us=70,
        steal_us=80,
        flags=schema.StepFlag.ABORTED,
        clock=schema.Clock.VIRTUAL,
    )
    series.request(12, RequestLink(1 << 127 | 5, 1 << 63 | 6), 1 << 32 | 4, 31)
    with RingReader.open(recorder.path) as reader:
        records = reader.read()
    assert checks_hold(records).all() == checked
    transfer, step, request = records[0], records.view(STEP)[1], records.view(REQUEST)[2]
    assert request.tolist()[:9] == (12, 1 << 63, 5, 1 << 63 | 6, 4, 31, 0, schema.Kind.REQUEST, 1)
    assert transfer.tolist()[:10] == (11, 22, 33, 44, 55, 66, 7, 6, 3, 0xFFFF)
    assert (transfer["kind"], transfer["series"], transfer["flags"]) == (schema.Kind.TRANSFER, 1, 12)
    assert (observed(records)[0], clock(records)[0]) == (schema.Observed.CALLBACK, schema.Clock.VIRTUAL)
    assert step.tolist()[:12] == (1, 2, 3, 70, 80, 4, 5, 6, 9, schema.Phase.MIXED, 0, 60)
    assert (step["kind"], step["series"], step["flags"]) == (schema.Kind.STEP, 1, schema.StepFlag.ABORTED)
    assert clock(records)[1] == schema.Clock.VIRTUAL
    assert recorder.statistics() == (3, 2)
    recorder.close()


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_numbers_too_wide_for_their_field_wrap(checked: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """When operation numbers outgrow 32 bits after weeks, they wrap, and the hot path does not raise."""
    recorder = Recorder.create(tmp_path, identity(), records=64, checked=checked)
    series = recorder.add_series(series_info())
    series.transfer(1, 2, 3, 4, (1 << 32) + 5, (1 << 40) + 6, (1 << 16) + 7, 8, 9, -1, 1, 0)
    series.step(
        begin_ns=1,
        arrival_ns=2,
        end_ns=3,
        step=(1 << 32) + 4,
        tokens=1 << 32,
        requests=(1 << 16) + 6,
        kept_layers=(1 << 16) + 8,
        phase=1,
        waits=(1 << 16) + 60,
        run_delay_us=1 << 33,
        steal_us=-1,
    )
    series.window_issued(0, (1 << 32) + 5, 6, 7)
    with RingReader.open(recorder.path) as reader:
        records = reader.read()
        assert checks_hold(records).all() == checked
        assert records[0].tolist()[4:10] == (5, 6, 7, 8, 9, 0xFFFF)
        assert records.view(STEP)[1].tolist()[3:12] == (0, 0xFFFFFFFF, 4, 0, 6, 8, 1, 0, 60)
        assert (reader.windows(0)[0].step, reader.windows(0)[0].position) == (5, 6)
    recorder.close()


def test_a_later_series_of_the_same_name_gets_its_own(tmp_path: Path) -> None:
    """A name is unique per start layer and group, refused series do not count, and a long name is cut, not refused."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    long = "n" * MAX_TEXT
    changes: list[dict[str, Any]] = [
        {"refused": "too small"},
        {},
        {"start_layer": 30},
        {"group_ranks": (0, 2)},
        {},
        {},
    ]
    for change in changes:
        recorder.add_series(series_info("a", **change))
    for _ in range(2):
        recorder.add_series(series_info(long))
    with RingReader.open(recorder.path) as reader:
        names = [info.name for info in reader.series()]
    assert names == ["a", "a", "a", "a", "a:2", "a:3", long, f"{long[:-2]}:2"]
    recorder.close()


def test_late_events_after_close_go_nowhere(tmp_path: Path) -> None:
    """Callbacks that arrive after the ring was closed neither raise nor change it."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    write(series, 1, 5)
    token = series.window_issued(0, 1, 2, 100)
    recorder.close()
    recorder.close()
    before = recorder.path.read_bytes()
    write(series, 6, 5)
    series.window_ready(0, token, 200)
    series.step(begin_ns=1, arrival_ns=2, end_ns=3, step=4, tokens=5, requests=6, waits=7, run_delay_us=8, steal_us=9)
    recorder.renew_anchor()
    assert recorder.path.read_bytes() == before
    with pytest.raises(TraceError, match="closed"):
        recorder.add_series(series_info("late"))


def test_an_end_that_was_announced_is_no_death(tmp_path: Path) -> None:
    """A writer killed after it has announced its end leaves a closed ring, including what it recorded since."""
    pid = os.fork()
    if pid == 0:
        recorder = Recorder.create(tmp_path, identity(), records=64)
        series = recorder.add_series(series_info())
        recorder.announce_close()
        write(series, 1, 5)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (path,) = ring_paths(tmp_path)
    with RingReader.open(path) as reader:
        assert (reader.alive(), reader.closed(), len(reader.read())) == (False, True, 5)
    assert False not in ended_ranks(tmp_path, "run").values()


def test_no_room_is_an_error_that_names_the_settings(tmp_path: Path) -> None:
    """If the file cannot grow, creation fails with path, size and settings in the error, and leaves nothing behind."""
    code = (
        "import resource, sys; from pathlib import Path; from tests.support.writer_process import identity\n"
        "from swtrace.trace.recorder import Recorder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "Recorder.create(Path(sys.argv[1]), identity())\n"
    )
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(here.parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(),
    )
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "RingCreateError" in message
    for part in (str(tmp_path), str(schema.HEADER_BYTES + (64 << 16)), "SWTRACE_DIR", "SWTRACE_RING_RECORDS"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("records", [0, -1, schema.MAX_RECORDS + 1])
def test_impossible_sizes_are_refused(records: int, tmp_path: Path) -> None:
    """A capacity outside the format's limits is an error that names the setting."""
    with pytest.raises(RingCreateError, match="SWTRACE_RING_RECORDS"):
        Recorder.create(tmp_path, identity(), records=records)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A file where the folder should be is an error that names the setting of the folder."""
    (tmp_path / "file").touch()
    with pytest.raises(RingCreateError, match="SWTRACE_DIR"):
        Recorder.create(tmp_path / "file" / "rings", identity())


def test_tables_that_are_full_say_so(tmp_path: Path) -> None:
    """Too many series, too many windows and a group too large for its entry are errors that leave the ring intact."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    with pytest.raises(RingFullError, match="1024 left"):
        recorder.add_series(series_info(window_count=1025))
    with pytest.raises(RingFullError, match="group of 4000 ranks"):
        recorder.add_series(series_info(group_ranks=tuple(range(4000))))
    for number in range(16):
        recorder.add_series(series_info(f"series {number}", window_count=64))
    with pytest.raises(RingFullError, match="16 series"):
        recorder.add_series(series_info("one more"))
    with RingReader.open(recorder.path) as reader:
        assert [info.name for info in reader.series()] == [f"series {number}" for number in range(16)]
        assert len(reader.windows(15)) == 64
    recorder.close()


def test_the_recorder_loads_nothing_heavy() -> None:
    """Importing the modules of this package that a rank needs loads neither NumPy nor torch."""
    code = (
        "import sys, swtrace.trace.recorder, swtrace.trace.liveness, swtrace.trace.machine\n"
        "assert not {'numpy', 'torch', 'opentelemetry'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        timeout=patience(),
    )


def test_files_are_closed(tmp_path: Path) -> None:
    """A closed recorder and a closed reader leave no descriptor and no mapping of the ring behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    recorder = Recorder.create(tmp_path, identity(), records=64)
    recorder.add_series(series_info())
    reader = RingReader.open(recorder.path)
    recorder.close()
    reader.close()
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert recorder.path.name not in Path("/proc/self/maps").read_text(encoding="utf-8")
