"""The doctor looks at the ring folder: who may write there, what it lies on, and whether a ring fits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from swtrace import units
from swtrace.cli.doctor import check_folder
from swtrace.cli.doctor.check_folder import _filesystem, folder
from swtrace.cli.doctor.diagnosis import State
from swtrace.settings import Settings
from tests.cli.doctor.conftest import Doctor
from tests.support.commands import FAKE_RANK
from tests.support.patience import patience


def test_nothing_is_broken_before_the_first_rank(doctor: Doctor, rings: Path) -> None:
    """A folder that does not exist yet is no fault, and looking at it does not make it."""
    assert "will be created" in doctor()["ring folder"]["detail"]
    assert not rings.exists()


def test_a_file_in_place_of_the_folder_is_broken(doctor: Doctor, rings: Path) -> None:
    """Ranks could not write there: that is reported, with the variable that fixes it."""
    rings.write_text("not a folder")
    finding = doctor(broken=True)["ring folder"]
    assert finding["state"] == "broken"
    assert "is not a folder" in finding["detail"]
    assert "SWTRACE_DIR" in finding["fix"]


def test_a_folder_others_may_write_is_doubtful(doctor: Doctor, rings: Path) -> None:
    """Someone else could remove rings: reported with the command that fixes it, and no failure."""
    rings.mkdir()
    rings.chmod(0o777)
    finding = doctor()["ring folder"]
    assert (finding["state"], finding["fix"]) == ("doubtful", f"chmod go-w {rings}")


def test_the_room_is_that_of_a_ring_as_set(doctor: Doctor) -> None:
    """What a ring takes follows SWTRACE_RING_RECORDS: one that does not fit is found before the rank is started."""
    largest = str(1 << 24)
    assert "a ring takes 1.00 GiB" in doctor(SWTRACE_RING_RECORDS=largest)["ring space"]["detail"]


@pytest.mark.parametrize(
    ("settings", "free", "state"),
    [
        (Settings(), 1 << 30, State.GOOD),
        (Settings(), 64 << 20, State.ABSENT),
        (Settings(replicas=2), 64 << 20, State.DOUBTFUL),
        (Settings(transport="pull"), 64 << 20, State.DOUBTFUL),
        (Settings(replicas=2, transport="broadcast"), 64 << 20, State.ABSENT),
    ],
)
def test_replicas_that_pull_need_room_for_layers(settings: Settings, free: int, state: State) -> None:
    """A container's 64 MiB are doubtful if it is known that replicas pull, and the fix says how to get more."""
    finding = check_folder._room_for_layers(free, settings)
    assert finding.state is state
    assert ("--shm-size" in finding.fix) is (free < 1 << 30 and settings.transport != "broadcast")


def test_file_system_is_the_mounts() -> None:
    """The kernel's own table says what a folder lies on."""
    assert _filesystem(Path("/proc/self")) == "proc"
    assert _filesystem(Path("/dev/shm")) == "tmpfs"


def test_a_default_ring_has_the_size_the_doctor_expects(environment: dict[str, str], rings: Path) -> None:
    """What the doctor calls enough space is what a rank takes."""
    subprocess.run([*FAKE_RANK, "1"], env={**environment, "SWTRACE_RUN_ID": "size"}, check=True, timeout=patience())
    (ring,) = rings.iterdir()
    space = next(each for each in folder(rings, Settings()) if each.subject == "ring space")
    assert space.detail.endswith(f"a ring takes {units.size(ring.stat().st_size)}")
