"""The doctor looks at the rings: whose they are, which ranks have none, and which files are no rings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from swtrace.cli.doctor.check_rings import rings as ring_findings
from swtrace.trace.identity import UntracedRank
from swtrace.trace.recorder import Recorder
from tests.cli.doctor.conftest import Doctor
from tests.support.commands import FAKE_RANK
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
