"""A ring can be read only by its user, or by the group of a shared folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from swtrace.trace.recorder import Recorder
from tests.support.recorded_run import identity


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
        recorder = Recorder.create(directory, identity("run", 0), records=64)
    finally:
        os.umask(before)
    status = recorder.path.stat()
    recorder.close()
    assert stat.S_IMODE(status.st_mode) == ring
    assert status.st_gid == directory.stat().st_gid
