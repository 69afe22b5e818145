"""The doctor looks at the rings: whose they are, which ranks have none, and which files are no rings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from swtrace.cli.doctor.check_rings import rings as ring_findings
from swtrace.trace.identity import UntracedRank
from swtrace.trace.recorder import Recorder
from tests.cli.doctor.conftest import Doctor
from tests.support.commands import FAKE_RANK
from tests.support.daemon_command import ROOT
from tests.support.other_user import USER, as_user, needs_other_users
from tests.support.patience import patience
from tests.support.recorded_run import identity, series_info


def test_rings_are_told_with_their_records(doctor: Doctor, environment: dict[str, str], rings: Path) -> None:
    """A ring shows whose it is, whether its writer lives, and how much it holds."""
    subprocess.run([*FAKE_RANK, "3"], env={**environment, "SWTRACE_RUN_ID": "seen"}, check=True, timeout=patience())
    (ring,) = rings.iterdir()
    detail = doctor()[ring.name]["detail"]
    assert "run seen rank 1, closed, 15 records; self_attn.o_proj" in detail


def test_a_file_that_is_no_ring_is_told(doctor: Doctor, rings: Path) -> None:
    """Garbage under a ring's name is named, and does not stop the doctor."""
    rings.mkdir(mode=0o700)
    (rings / "ring-x-0-0.swt").write_bytes(os.urandom(4096))
    finding = doctor()["ring-x-0-0.swt"]
    assert finding["state"] == "doubtful"
    assert "remove it" in finding["fix"]


@pytest.mark.parametrize("alive", [True, False])
def test_a_ring_that_a_living_rank_holds_is_never_to_be_removed(doctor: Doctor, rings: Path, *, alive: bool) -> None:
    """A ring that this version cannot read may be that of a rank which runs: then the advice is to leave it."""
    recorder = Recorder.create(rings, identity("run", 0), records=64)
    with recorder.path.open("r+b") as ring:
        ring.seek(8)
        ring.write((99).to_bytes(8, "little"))
    if not alive:
        recorder.close()
    finding = doctor()[recorder.path.name]
    assert "ring format 99" in finding["detail"]
    assert ("leave it" in finding["fix"]) is alive
    assert ("remove it" in finding["fix"]) is not alive
    recorder.close()


@needs_other_users
def test_a_ring_that_may_be_in_use_is_never_to_be_removed(environment: dict[str, str]) -> None:
    """A user who may not open a ring cannot know whether its rank lives, so the advice is to leave it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        directory.chmod(0o755)
        recorder = Recorder.create(directory, identity("run", 0), records=64)
        command = [*as_user(USER), sys.executable, "-m", "swtrace", "doctor", "--quick", "--json"]
        environment |= {"SWTRACE_DIR": name, "PYTHONPATH": str(ROOT)}
        said = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False).stdout
        finding = next(each for each in json.loads(said)["findings"] if each["subject"] == recorder.path.name)
        recorder.close()
    assert "user 9465 may not read it (owner 0, mode 0600); its folder is not shared with a group" in finding["detail"]
    assert finding["fix"].startswith("leave it, because its rank may be alive")


def test_what_is_no_file_is_never_to_be_removed(doctor: Doctor, rings: Path) -> None:
    """A link or a folder under a ring's name is not opened, so nothing is known about its use."""
    recorder = Recorder.create(rings.with_name("other"), identity("run", 0), records=64)
    rings.mkdir(mode=0o700)
    (rings / "ring-x-0-0.swt").symlink_to(recorder.path)
    (rings / "ring-y-0-0.swt").mkdir()
    findings = doctor()
    for name in ("ring-x-0-0.swt", "ring-y-0-0.swt"):
        assert findings[name]["state"] == "doubtful"
        assert findings[name]["fix"].startswith("leave it until you know what uses it")
    recorder.close()


@pytest.mark.parametrize("alive", [True, False])
def test_a_ring_older_than_the_sharing_of_its_folder_is_told(doctor: Doctor, rings: Path, *, alive: bool) -> None:
    """Whoever may read the ring still learns that the group's daemon may not, and what to do about it."""
    recorder = Recorder.create(rings, identity("run", 0), records=64)
    rings.chmod(0o2750)
    if not alive:
        recorder.close()
    finding = doctor()[recorder.path.name]
    assert finding["state"] == "doubtful"
    assert f"group {rings.stat().st_gid} cannot read it, because it was made before" in finding["detail"]
    assert finding["fix"].startswith("run chgrp") is alive
    assert finding["fix"].startswith("remove it") is not alive
    recorder.close()


def test_a_rank_that_runs_untraced_is_told_by_its_peers(doctor: Doctor, rings: Path) -> None:
    """The doctor reads in the rings of the others which rank has none, why, and what helps."""
    recorders = [Recorder.create(rings, identity("run", rank), records=64) for rank in (0, 2)]
    for recorder in recorders:
        recorder.add_series(series_info(0, 3, untraced=(UntracedRank(1, "No space left on device"),)))
    finding = doctor()["rank 1"]
    assert finding["state"] == "doubtful"
    assert "runs untraced: No space left on device" in finding["detail"]
    assert "SWTRACE_DIR" in finding["fix"]
    assert len(ring_findings(rings)) == 3
    for recorder in recorders:
        recorder.close()
