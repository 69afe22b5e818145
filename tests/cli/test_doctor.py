"""``swtrace doctor``: finds what is broken, says how to fix it, and breaks at nothing it looks at."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from swtrace import units
from swtrace.cli.doctor.check_environment import _numbers
from swtrace.cli.doctor.check_folder import _filesystem, folder
from swtrace.cli.doctor.check_rings import rings as ring_findings
from swtrace.cli.exit_codes import ExitCode
from swtrace.trace.identity import UntracedRank
from swtrace.trace.recorder import Recorder
from swtrace.trace.schema import DEFAULT_RECORDS
from tests.cli.conftest import FAKE_RANK, StartSwtrace, Swtrace
from tests.support.patience import patience
from tests.support.recorded_run import identity, series_info

Findings = dict[str, dict[str, str]]
Doctor = Callable[..., Findings]


@pytest.fixture
def doctor(swtrace: Swtrace) -> Doctor:
    """Return a function that runs the doctor and returns its findings by subject."""

    def look(*, broken: bool = False, **extra: str) -> Findings:
        result = swtrace("doctor", "--quick", "--json", extra=extra)
        assert result.stderr == ""
        assert result.returncode == (ExitCode.FAILED if broken else ExitCode.SUCCESS), result.stdout
        document = json.loads(result.stdout)
        assert document["broken"] is broken
        return {finding["subject"]: finding for finding in document["findings"]}

    return look


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


def test_an_unusable_setting_is_broken(doctor: Doctor) -> None:
    """A setting that would stop a rank is found before the rank is started."""
    finding = doctor(broken=True, SWTRACE_PREFETCH_STEP="soon")["settings"]
    assert finding["state"] == "broken"
    assert "SWTRACE_PREFETCH_STEP='soon'" in finding["detail"]


def test_a_strangers_port_is_broken(doctor: Doctor) -> None:
    """A daemon could not serve there, and what is there is none."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        listen = f"127.0.0.1:{stranger.getsockname()[1]}"
        finding = doctor(broken=True, SWTRACE_LISTEN=listen)["daemon"]
    assert finding["state"] == "broken"
    assert "SWTRACE_LISTEN" in finding["fix"]


def test_a_daemon_that_answers_is_good(doctor: Doctor, start_swtrace: StartSwtrace) -> None:
    """The daemon at the expected address is asked, not guessed at."""
    daemon = start_swtrace("daemon", "--listen", "127.0.0.1:0")
    assert daemon.stdout is not None
    url = daemon.stdout.readline().strip()
    assert doctor(SWTRACE_LISTEN=url.removeprefix("http://"))["daemon"]["state"] == "good"


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


def test_sharing_without_tracing_is_told(doctor: Doctor) -> None:
    """With SWTRACE_TRACE=0 the doctor says why there will be no ring."""
    finding = doctor(SWTRACE_TRACE="0")["tracing"]
    assert finding["detail"] == "no rank writes a ring because SWTRACE_TRACE=0"


def test_variables_of_the_daemon_are_settings_too(doctor: Doctor) -> None:
    """Whoever set SWTRACE_LISTEN only is not told that no variable is set."""
    assert "SWTRACE_LISTEN" in doctor(SWTRACE_LISTEN="127.0.0.1:0")["settings"]["detail"]


def test_the_room_is_that_of_a_ring_as_set(doctor: Doctor) -> None:
    """What a ring takes follows SWTRACE_RING_RECORDS: one that does not fit is found before the rank is started."""
    largest = str(1 << 24)
    assert "a ring takes 1.00 GiB" in doctor(SWTRACE_RING_RECORDS=largest)["ring space"]["detail"]


def test_the_text_says_how_to_fix_it(swtrace: Swtrace, rings: Path) -> None:
    """People read the same findings, each broken one with what to do."""
    rings.write_text("not a folder")
    result = swtrace("doctor", "--quick")
    assert result.returncode == ExitCode.FAILED
    assert "-> set SWTRACE_DIR" in result.stdout
    assert result.stdout.endswith("1 broken.\n")


def test_file_system_is_the_mounts() -> None:
    """The kernel's own table says what a folder lies on."""
    assert _filesystem(Path("/proc/self")) == "proc"
    assert _filesystem(Path("/dev/shm")) == "tmpfs"


def test_a_default_ring_has_the_size_the_doctor_expects(environment: dict[str, str], rings: Path) -> None:
    """What the doctor calls enough space is what a rank takes."""
    subprocess.run([*FAKE_RANK, "1"], env={**environment, "SWTRACE_RUN_ID": "size"}, check=True, timeout=patience())
    (ring,) = rings.iterdir()
    space = next(each for each in folder(rings, DEFAULT_RECORDS) if each.subject == "ring space")
    assert space.detail.endswith(f"a ring takes {units.size(ring.stat().st_size)}")


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("0.32.0", (0, 32, 0)), ("0.33.0rc1", (0, 33, 0)), ("unknown", ())],
)
def test_versions_compare_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    """A local or pre-release suffix does not move a version out of its range."""
    assert _numbers(version) == numbers
