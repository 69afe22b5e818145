"""Dead rings take no room from living ranks: the oldest are removed, and their total size is bounded."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtrace.errors import RingCreateError
from swtrace.trace import directory as folder
from swtrace.trace.directory import ring_paths
from swtrace.trace.header import file_bytes
from swtrace.trace.recorder import Recorder
from tests.support.small_disk import tmpfs
from tests.support.writer_process import Order, Writers, identity

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
