"""``swtrace clean`` removes the rings and the share folders of dead ranks, and nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from swtrace.cli.clean import clean
from swtrace.cli.exit_codes import CommandError
from swtrace.trace.share_folder import ShareFolder
from tests.support.commands import checked
from tests.support.recorded_run import RecordedRun
from tests.support.writer_process import Order, Writers


def test_dead_rings_go_and_live_ones_stay(tmp_path: Path) -> None:
    """A killed writer's ring is removed; a live writer's ring and a foreign file are not, however old they are."""
    foreign = tmp_path / "notes.txt"
    foreign.touch()
    with Writers() as writers:
        pid, dead = writers.start(Order(str(tmp_path), count=1, rank=1))
        _, live = writers.start(Order(str(tmp_path), count=1, rank=2))
        writers.kill(pid)
        os.utime(live, (0, 0))
        would = checked("clean", "--dir", tmp_path, "--dry-run").stdout
        assert "Would remove 1 dead ring (" in would
        assert dead.exists()
        assert checked("clean", "--dir", tmp_path).stdout == would.replace("Would remove", "Removed")
        assert set(tmp_path.iterdir()) == {live, foreign}
        assert "Removed 0 dead rings" in checked("clean", "--dir", tmp_path).stdout


def test_newer_rings_are_kept(tmp_path: Path) -> None:
    """With --older-than, a ring's last record decides."""
    RecordedRun(tmp_path).close()
    old, new = sorted(tmp_path.iterdir())
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    removed = json.loads(checked("clean", "--dir", tmp_path, "--older-than", "1800", "--json").stdout)["removed"]
    assert [ring["path"] for ring in removed] == [str(old)]
    assert list(tmp_path.iterdir()) == [new]


def dead_share_folder(directory: Path) -> Path:
    """Return a share folder of which all ranks were killed, with one layer of 5000 bytes."""
    path = directory / "pull-run-0123456789ab"
    path.mkdir(mode=0o700)
    for name, content in (("rank-0.lock", b""), ("layer-0", b"x" * 5000)):
        (path / name).write_bytes(content)
        (path / name).chmod(0o600)
    return path


def test_dead_share_folders_go_and_live_ones_stay(tmp_path: Path) -> None:
    """Whatever their age; a dry run only lists them."""
    living = ShareFolder(tmp_path / "pull-living", (0, 1), 0, 1.0)
    living.join()
    dead = dead_share_folder(tmp_path)
    would = checked("clean", "--dir", tmp_path, "--dry-run", "--older-than", "3600").stdout
    assert would.splitlines() == [
        dead.name,
        f"Would remove 0 dead rings (0 B) and 1 dead share folder (4.88 KiB) from {tmp_path}",
    ]
    assert dead.exists()
    done = checked("clean", "--dir", tmp_path, "--older-than", "3600").stdout
    assert done == would.replace("Would remove", "Removed")
    assert list(tmp_path.iterdir()) == [living.path]
    living.leave()


def test_removed_share_folders_are_listed_in_json(tmp_path: Path) -> None:
    """With their size, apart from the rings."""
    dead = dead_share_folder(tmp_path)
    answer = json.loads(checked("clean", "--dir", tmp_path, "--json").stdout)
    assert answer["removed_share_folders"] == [{"path": str(dead), "bytes": 5000}]
    assert answer["removed"] == answer["not_removed"] == []
    assert not dead.exists()


def test_a_share_folder_that_cannot_be_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays, and the command fails and says so."""
    dead = dead_share_folder(tmp_path)
    monkeypatch.setattr("swtrace.trace.share_folder.remove", lambda _folder: False)
    with pytest.raises(CommandError, match=r"cannot remove 0 dead rings \(0 B\) and 1 dead share folder \("):
        clean(directory=tmp_path)
    assert dead.exists()


def test_a_ring_that_cannot_be_removed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ring stays, and the command fails and says who may remove it."""
    RecordedRun(tmp_path).close()
    monkeypatch.setattr("swtrace.trace.directory.remove", lambda _ring: False)
    with pytest.raises(CommandError, match=r"cannot remove 2 dead rings \(.*run as their owner"):
        clean(directory=tmp_path)
    assert "Removed 0 dead rings" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2
