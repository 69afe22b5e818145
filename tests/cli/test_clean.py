"""``swtrace clean`` removes the rings of dead ranks, and nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from swtrace.cli.clean import clean
from swtrace.cli.exit_codes import CommandError
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
