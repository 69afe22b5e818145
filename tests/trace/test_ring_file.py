"""The file of a ring: who may read it, when it gets its name, and what happens without room."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from swtrace.errors import RingCreateError
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader
from tests.support.small_disk import tmpfs
from tests.support.writer_process import identity, series_info, write


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


def test_a_full_tmpfs_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    """On a tmpfs with too little room, creation fails at once instead of a later store with a SIGBUS."""
    with tmpfs(tmp_path, 1 << 20):
        with pytest.raises(RingCreateError, match="No space left"):
            Recorder.create(tmp_path, identity())
        recorder = Recorder.create(tmp_path, identity(), records=1024)
        write(recorder.add_series(series_info()), 1, 5000)
        recorder.close()


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
