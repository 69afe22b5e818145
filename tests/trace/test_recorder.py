"""The writing side of a ring: its contents, who may read it, and what happens when it cannot be created."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
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
from swtrace.trace.ring_reader import Marks, Occupancy, Progress, RingReader
from swtrace.trace.schema import Collective, Stage
from tests.support.patience import patience
from tests.support.small_disk import tmpfs
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


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """The folder is 0700 and the ring 0600, even with a permissive umask."""
    directory = tmp_path / "a" / "rings"
    before = os.umask(0)
    try:
        recorder = Recorder.create(directory, identity(), records=64)
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(recorder.path.stat().st_mode) == 0o600
    assert [path.name for path in directory.iterdir()] == [recorder.path.name]
    recorder.close()


def test_a_ring_is_complete_when_its_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the rename the file is complete, locked and readable."""
    seen = []

    def rename(self: Path, target: Path) -> Path:
        with RingReader.open(self) as reader:
            seen.append((reader.alive(), reader.identity.rank, reader.anchor().monotonic_ns > 0))
        return real(self, target)

    real = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    Recorder.create(tmp_path, identity(5), records=64).close()
    assert seen == [(True, 5, True)]


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


def test_a_full_tmpfs_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    """On a tmpfs with too little room, creation fails at once instead of a later store with a SIGBUS."""
    with tmpfs(tmp_path, 1 << 20):
        with pytest.raises(RingCreateError, match="No space left"):
            Recorder.create(tmp_path, identity())
        recorder = Recorder.create(tmp_path, identity(), records=1024)
        write(recorder.add_series(series_info()), 1, 5000)
        recorder.close()


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


@pytest.mark.parametrize(
    ("folder", "ring"), [(0o700, 0o600), (0o755, 0o600), (0o2750, 0o640), (0o3777, 0o640)], ids=oct
)
def test_ring_is_readable_by_the_group_of_a_set_group_id_folder_only(tmp_path: Path, folder: int, ring: int) -> None:
    """With any umask, rings in a folder with the set-group-ID bit are readable by its group, and never by all."""
    directory = tmp_path / "rings"
    directory.mkdir()
    directory.chmod(folder)
    before = os.umask(0o077)
    try:
        recorder = Recorder.create(directory, identity(), records=64)
    finally:
        os.umask(before)
    status = recorder.path.stat()
    recorder.close()
    assert stat.S_IMODE(status.st_mode) == ring
    assert status.st_gid == directory.stat().st_gid


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
