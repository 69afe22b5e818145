"""Where rings live, and when dead ones are removed so that they take no room from living ranks."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtrace.errors import RingCreateError, SettingsError
from swtrace.trace import directory as folder
from swtrace.trace.directory import default_directory, folder_problem, remove_expired, ring_paths
from swtrace.trace.header import file_bytes
from swtrace.trace.recorder import Recorder
from tests.support.daemon_command import environment
from tests.support.other_user import USER, as_user, needs_other_users
from tests.support.small_disk import tmpfs
from tests.support.writer_process import Order, Writers, identity, series_info

RING_BYTES = file_bytes(64)
ROOM = 3
"""Rings of 64 records that fit."""


def pretend_to_be_small(rings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the folder behave like a file system with room for this many rings, which works without root."""
    real = os.posix_fallocate
    total = ROOM * RING_BYTES

    def used() -> int:
        return sum(path.stat().st_size for path in rings.iterdir())

    def fallocate(descriptor: int, offset: int, length: int) -> None:
        if used() + length > total:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, offset, length)

    def disk_usage(_path: Path) -> tuple[int, int, int]:
        return shutil._ntuple_diskusage(total, used(), total - used())

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


@pytest.fixture(params=["pretended", "tmpfs"])
def small(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with room for three rings and no more; dead rings may take all of it."""
    monkeypatch.setattr(folder, "DEAD_SHARE", 1)
    if request.param == "pretended":
        pretend_to_be_small(tmp_path, monkeypatch)
        yield tmp_path
        return
    with tmpfs(tmp_path, (ROOM * RING_BYTES + 4095) // 4096 * 4096):
        yield tmp_path


def make(rings: Path, rank: int) -> Recorder:
    return Recorder.create(rings, identity(rank), records=64)


def dead(rings: Path, rank: int, age_s: float) -> Path:
    """Leave a dead ring whose last activity was that long ago."""
    recorder = make(rings, rank)
    recorder.close()
    then = time.time() - age_s
    os.utime(recorder.path, (then, then))
    return recorder.path


def test_the_oldest_dead_ring_gives_way_to_a_new_one(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If dead rings fill the file system, as after a crash loop, one is removed, and the log names it."""
    living = make(small, 0)
    os.utime(living.path, (0, 0))
    younger, older = dead(small, 1, 20), dead(small, 2, 30)
    with caplog.at_level(logging.WARNING):
        new = make(small, 3)
    assert set(ring_paths(small)) == {living.path, younger, new.path}
    (said,) = caplog.messages
    assert older.name in said
    assert str(small) in said
    assert younger.name not in said
    living.close()
    new.close()


def test_living_rings_never_give_way(small: Path) -> None:
    """Rings of living writers are kept, however old they look, and the new ring is refused."""
    with Writers() as writers:
        for rank in range(ROOM):
            _, path = writers.start(Order(str(small), count=1, rank=rank))
            os.utime(path, (1, 1))
        before = ring_paths(small)
        with pytest.raises(RingCreateError, match="No space left"):
            make(small, ROOM)
        assert ring_paths(small) == before
        assert len(before) == ROOM


def test_nothing_is_removed_in_vain(small: Path) -> None:
    """If a ring would not fit even without the dead ones, none of them is removed."""
    kept = dead(small, 0, 20)
    with pytest.raises(RingCreateError, match="No space left"):
        Recorder.create(small, identity(1), records=1 << 16)
    assert ring_paths(small) == (kept,)
    assert len(list(small.iterdir())) == 1


def test_an_unfinished_ring_gives_way_once_nobody_can_be_at_work_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a rank has just created and not locked yet is kept; the leftover of a killed rank is removed."""
    monkeypatch.setattr(folder, "DEAD_BYTES", 0)
    (tmp_path / ".ring-run-1-young.swt").touch()
    old = tmp_path / ".ring-run-2-old.swt"
    old.write_bytes(b"\0")
    os.utime(old, (time.time() - 90,) * 2)
    make(tmp_path, 0).close()
    assert {path.name for path in tmp_path.glob(".ring-*")} == {".ring-run-1-young.swt"}


def test_dead_rings_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash loop on a large file system does not fill the memory, because only the newest dead rings are kept."""
    rings = [dead(tmp_path, rank, 100 - rank) for rank in range(5)]
    monkeypatch.setattr(folder, "DEAD_BYTES", 2 * RING_BYTES)
    living = make(tmp_path, 5)
    assert set(ring_paths(tmp_path)) == {*rings[3:], living.path}
    living.close()


def test_dead_rings_leave_most_of_a_file_system_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the limit in bytes, dead rings take at most a quarter of the file system."""
    rings = [dead(tmp_path, rank, 100 - rank) for rank in range(4)]
    total = 8 * RING_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(total, 0, total))
    living = make(tmp_path, 5)
    assert set(ring_paths(tmp_path)) == {*rings[2:], living.path}
    living.close()


HOUR_S = 3600


def _age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_only_dead_rings_past_their_time_are_removed(tmp_path: Path) -> None:
    """Clean-up removes dead and unfinished rings by age, and never a living ring or another file."""
    with Writers() as writers:
        pid, dead = writers.start(Order(str(tmp_path), count=1, rank=1))
        _, living = writers.start(Order(str(tmp_path), count=1, rank=2))
        recent = Recorder.create(tmp_path, identity(3), records=64)
        recent.close()
        writers.kill(pid)
        unfinished = tmp_path / ".ring-run-4-00.swt"
        foreign = tmp_path / "ring-notes.txt"
        unfinished.touch()
        foreign.touch()
        for path in (dead, living, unfinished, foreign):
            _age(path, 2 * HOUR_S)
        assert set(ring_paths(tmp_path)) == {dead, living, recent.path}
        # A new rank in the same folder cleans up.
        Recorder.create(tmp_path, identity(5), records=64).close()
        assert not dead.exists()
        assert not unfinished.exists()
        assert living.exists()
        assert recent.path.exists()
        assert foreign.exists()
        assert recent.path in [ring.path for ring in remove_expired(tmp_path, 0)]
        assert living.exists()


def test_steps_keep_a_running_ring_young(tmp_path: Path) -> None:
    """The file's modification time, which gives a dead ring's age, follows the steps, not the stores into tmpfs."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    _age(recorder.path, 2 * HOUR_S)
    old = recorder.path.stat().st_mtime
    recorder._renew_at_ns = 0
    series.step(begin_ns=1, arrival_ns=2, end_ns=3, step=4, tokens=5, requests=6, waits=7, run_delay_us=8, steal_us=9)
    assert recorder.path.stat().st_mtime > old + HOUR_S
    recorder.close()


def test_rings_live_on_the_local_tmpfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no setting names a folder, rings are in a folder of this user on the local tmpfs."""
    # XDG_RUNTIME_DIR would be removed when its user logs out.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/dev/shm")
    assert default_directory() == Path(f"/dev/shm/swtrace-{os.geteuid()}")


def test_a_default_folder_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of another user under this user's default name is an error that names the setting."""
    monkeypatch.setattr("swtrace.trace.directory._SHARED_MEMORY", tmp_path)
    mine = os.geteuid()
    (tmp_path / f"swtrace-{mine + 1}").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(SettingsError, match="SWTRACE_DIR"):
        default_directory()


ROOT, DAEMON, RANK = 0, USER, 1000
LOOK = """
import sys, pathlib, swtrace.trace.directory
print(swtrace.trace.directory.folder_problem(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture
def shown() -> Iterator[Path]:
    """Return a folder that every user can reach."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def problem(directory: Path, user: int, *options: str) -> str:
    """Return what a reader of this user says about a folder."""
    command = [*as_user(user, *options), sys.executable, "-c", LOOK, str(directory)]
    return subprocess.run(command, env=environment(), capture_output=True, check=True, text=True).stdout.strip()


@needs_other_users
@pytest.mark.parametrize(
    ("owner", "group", "mode", "user", "expected"),
    [
        (ROOT, ROOT, 0o755, DAEMON, "only its own user can read a ring (folder of user 0, group 0, mode 0755)"),
        (RANK, RANK, 0o755, DAEMON, "only its own user can read a ring (folder of user 1000, group 1000, mode 0755)"),
        (RANK, RANK, 0o2755, DAEMON, "only its own user and group 1000 can read a ring"),
        (RANK, RANK, 0o700, DAEMON, "only its own user can read a ring (folder of user 1000, group 1000, mode 0700)"),
        (ROOT, DAEMON, 0o3777, DAEMON, ""),
        (ROOT, DAEMON, 0o2755, DAEMON, ""),
        (RANK, DAEMON, 0o2750, DAEMON, ""),
        (ROOT, ROOT, 0o1777, DAEMON, ""),
        (DAEMON, DAEMON, 0o700, DAEMON, ""),
        (ROOT, DAEMON, 0o770, DAEMON, ""),
        (ROOT, ROOT, 0o755, ROOT, ""),
        (RANK, RANK, 0o700, ROOT, ""),
    ],
)
def test_a_folder_has_a_problem_if_its_reader_could_see_no_rank(
    shown: Path, owner: int, group: int, mode: int, user: int, expected: str
) -> None:
    """Its own user's ranks, those of a folder of its group, or, as root, all: one of these must be able to exist."""
    shown.chmod(mode)
    os.chown(shown, owner, group)
    shown.chmod(mode)
    said = problem(shown, user)
    assert expected in said
    assert bool(said) is bool(expected)


@needs_other_users
def test_privileges_count_and_not_the_user(shown: Path) -> None:
    """Root without capabilities sees nothing of others; another user with CAP_DAC_READ_SEARCH sees everything."""
    os.chown(shown, RANK, RANK)
    assert "only its own user can read a ring" in problem(shown, ROOT, "--bounding-set=-all")
    assert problem(shown, DAEMON, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search") == ""


@needs_other_users
def test_a_missing_folder_is_a_problem_if_no_visible_rank_could_make_it(shown: Path) -> None:
    """A rank that makes the folder makes it for its own user."""
    assert f"does not exist, and user {DAEMON} may not create it" in problem(shown / "rings", DAEMON)
    assert problem(shown / "rings", ROOT) == ""
    shown.chmod(0o1777)
    assert problem(shown / "deep" / "rings", DAEMON) == ""


@needs_other_users
def test_an_access_control_list_is_not_judged(shown: Path) -> None:
    """It may allow what the mode does not show, so a folder with one is no problem until a ring cannot be read."""
    assert problem(shown, DAEMON)
    entries = ((1, 7, -1), (2, 5, DAEMON), (4, 5, -1), (0x10, 5, -1), (0x20, 5, -1))
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(shown, "system.posix_acl_default", struct.pack("<I", 2) + packed)
    assert problem(shown, DAEMON) == ""


def test_a_file_in_place_of_the_folder_is_a_problem(tmp_path: Path) -> None:
    """It is said in one sentence, whoever reads."""
    path = tmp_path / "rings"
    path.write_text("")
    assert folder_problem(path) == f"{path}: is not a folder"
    assert folder_problem(path / "deep") == f"{path / 'deep'}: cannot be listed: Not a directory"
