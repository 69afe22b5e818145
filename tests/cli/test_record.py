"""``swtrace record``, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from swtrace.cli.child import DaemonProcess
from swtrace.errors import RecordingError
from swtrace.recording import Recording
from swtrace.recording.remote import DaemonStream
from tests.support.commands import SWTRACE, checked, clean_environment, run_swtrace
from tests.support.daemon_threads import serving
from tests.support.damaged_answers import DAMAGED, answering, silent
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun
from tests.support.settling import until


def test_records_that_were_overwritten_are_told_at_the_end(tmp_path: Path) -> None:
    """What is missing from a recording is in the last lines of the output, and in that of `--json`."""
    run = RecordedRun(tmp_path / "rings", records=1024)
    run.write(300)
    run.close()
    done = checked("record", "--dir", tmp_path / "rings", "-o", tmp_path / "run.swrec", "--until-end", "--json")
    said = json.loads(done.stdout)
    assert said["records"] + said["lost"] == 2 * run.written
    assert said["lost"] >= 2 * (run.written - 1024)
    assert f"Lost {said['lost']} records, overwritten" in done.stderr


@pytest.mark.parametrize("source", [("--dir", "EMPTY"), ("--connect", "127.0.0.1:1")], ids=["no rank", "no daemon"])
def test_a_recording_is_replaced_only_by_another(tmp_path: Path, source: tuple[str, str]) -> None:
    """If nothing can be recorded, `--force` keeps the existing file, and without it no file is left."""
    (tmp_path / "empty").mkdir()
    arguments = [each.replace("EMPTY", str(tmp_path / "empty")) for each in source]
    old, new = tmp_path / "old.swrec", tmp_path / "new.swrec"
    old.write_bytes(b"a recording")
    for path, force in ((old, ["--force"]), (new, [])):
        checked("record", *arguments, "-o", path, "--duration", "0.3", *force, code=1)
    assert old.read_bytes() == b"a recording"
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "old.swrec"}
    RecordedRun(tmp_path / "rings").write(3)
    checked("record", "--dir", tmp_path / "rings", "-o", old, "--duration", "0.3", "--force")
    assert Recording.open(old).records == 2 * 18
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "old.swrec", "rings"}


def test_a_ring_is_not_replaced_by_a_recording(tmp_path: Path) -> None:
    """`--force` replaces only recordings, never the ring of a rank."""
    run = RecordedRun(tmp_path)
    run.write(3)
    ring = run.recorders[0].path
    before = ring.stat().st_ino, ring.read_bytes()
    done = checked("record", "--dir", tmp_path, "-o", ring, "--duration", "0", "--force", code=2)
    assert f"{ring} is a ring" in done.stderr
    assert (ring.stat().st_ino, ring.read_bytes()) == before
    run.close()


def test_ctrl_c_ends_a_recording_in_good_order(tmp_path: Path) -> None:
    """Interrupted, the command writes what it has, closes the file, and exits with 0."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    run = RecordedRun(rings)
    process = subprocess.Popen(
        [*SWTRACE, "record", "--dir", str(rings), "-o", str(path)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + patience()
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > 500):
        run.write()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=patience())
    assert process.returncode == 0, said
    assert "Interrupted." in said
    with Recording.open(path) as recording:
        assert recording.missing().finished
        assert recording.records == 2 * run.written
    run.close()


def test_a_recording_has_a_default_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --output the file is in the working directory, named by its time, and by the run that was asked for."""
    monkeypatch.chdir(tmp_path)
    run = RecordedRun(tmp_path / "rings", run_id="run/1")
    run.write(3)
    for extra, pattern in (
        ((), r"swtrace-\d{8}-\d{6}\.swrec"),
        (("--run", "run/1"), r"swtrace-run-1-\d{8}-\d{6}\.swrec"),
    ):
        done = checked("record", "--dir", tmp_path / "rings", "--duration", "0", "--json", *extra)
        path = json.loads(done.stdout)["path"]
        assert re.fullmatch(pattern, path)
        assert (tmp_path / path).is_file()
    run.close()


def test_a_size_limit_ends_a_recording(tmp_path: Path) -> None:
    """`--max-size` ends the recording below that size while a backlog is drained, and leaves a complete file."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    run = RecordedRun(rings, records=1 << 16)
    run.write(6000)
    said = json.loads(checked("record", "--dir", rings, "-o", path, "--max-size", "64K", "--json").stdout)
    assert said["reason"] == "size reached"
    assert path.stat().st_size <= 64 << 10
    assert said["records"] + said["left_out"] <= 2 * run.written
    assert said["left_out"] > 0
    with Recording.open(path) as recording:
        assert recording.missing().finished
    run.close()


def test_without_ranks_nothing_is_left_behind(tmp_path: Path) -> None:
    """A recording of an empty folder fails, says so, and leaves no file, so that a retry can succeed."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    for _ in range(2):
        done = checked("record", "--dir", rings, "-o", path, "--duration", "0", "--json", code=1)
        assert "time is up, but no rank was seen and nothing was recorded" in done.stderr
        assert done.stdout == ""
        assert not path.exists()
    run = RecordedRun(rings)
    run.write(3)
    checked("record", "--dir", rings, "-o", path, "--duration", "0")
    run.close()
    with Recording.open(path) as recording:
        assert recording.records == 2 * run.written


def test_rings_that_cannot_be_read_are_named_and_nothing_recorded_is_a_failure(tmp_path: Path) -> None:
    """`record` over a folder with unreadable rings names them with the reason, and does not end as if it were empty."""
    rings = tmp_path / "rings"
    run = RecordedRun(rings)
    run.write(3)
    run.close()
    for recorder in run.recorders:
        os.truncate(recorder.path, 4096)
    done = checked("record", "--dir", rings, "-o", tmp_path / "x.swrec", "--duration", "0.5", code=1)
    for recorder in run.recorders:
        assert recorder.path.name in done.stderr
    assert "nothing was recorded" in done.stderr
    assert "No rank wrote" not in done.stderr


def test_the_command_ends_when_its_daemon_goes(tmp_path: Path) -> None:
    """`record --connect` reports the loss of the last daemon and leaves a complete file; the daemon stops at once."""
    run = RecordedRun(tmp_path / "rings")
    run.write(10)
    daemon = DaemonProcess(tmp_path / "rings")
    path = tmp_path / "run.swrec"
    try:
        until(daemon.poll, lambda: time.sleep(0.02))
        url = daemon.url or ""
        process = subprocess.Popen(
            [*SWTRACE, "record", "--connect", url, "-o", str(path)], stderr=subprocess.PIPE, text=True
        )
        until(lambda: path.exists() and path.stat().st_size > 1000, lambda: time.sleep(0.02))
    finally:
        daemon.close()
    _, said = process.communicate(timeout=patience())
    assert process.returncode == 0, said
    assert "Every daemon has gone" in said
    with Recording.open(path) as recording:
        assert recording.missing().finished
        assert recording.records == 2 * run.written
    run.close()


def test_no_daemon_is_one_line(tmp_path: Path) -> None:
    """If no daemon answers, the error names the address."""
    done = checked("record", "--connect", "127.0.0.1:1", "-o", tmp_path / "x.swrec", code=1)
    assert "127.0.0.1:1: " in done.stderr
    with pytest.raises(RecordingError, match="Connection refused"):
        DaemonStream("127.0.0.1:1").connect()


@pytest.mark.parametrize("until_when", [("--duration", "1"), ("--until-end",)], ids=["time is up", "ranks ended"])
def test_a_daemon_that_is_silent_costs_no_record_of_the_others(tmp_path: Path, until_when: tuple[str, ...]) -> None:
    """Whatever ends the recording, it has all that the other daemon sent, and the silent one is named."""
    run = RecordedRun(tmp_path / "rings")
    run.write(10)
    run.close()
    with serving(tmp_path / "rings") as client, silent(b"HTTP/1.1 200 OK\r\n\r\n") as address:
        both = f"127.0.0.1:{client.base_url.port},{address}"
        done = checked("record", "--connect", both, "-o", tmp_path / "run.swrec", *until_when, "--json")
    assert json.loads(done.stdout)["records"] == 2 * run.written
    assert re.search(rf"^{address}: \S", done.stderr, re.MULTILINE)
    with Recording.open(tmp_path / "run.swrec") as recording:
        assert recording.missing().finished
        assert recording.records == 2 * run.written


@pytest.mark.parametrize("damage", ["cut gzip", "a list", "no text"])
def test_record_from_a_damaged_stream_fails_with_its_reason(tmp_path: Path, damage: str) -> None:
    """A stream that is not a recording is named on one line, and the command fails."""
    with answering(DAMAGED[damage]) as address:
        command = ("record", "--connect", address, "-o", str(tmp_path / "x.swrec"), "--duration", "20")
        done = run_swtrace(command, clean_environment(tmp_path))
    assert done.returncode == 1, done.stderr
    assert f"{address}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "Aborted" not in done.stderr
