"""Recording through daemons on one or several hosts yields what the daemons see."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swtrace.cli.child import DaemonProcess
from swtrace.errors import RecordingError
from swtrace.observing import Roster, watch_rings
from swtrace.observing.merged import Merged
from swtrace.recording import Recording
from swtrace.recording.remote import DaemonStream
from swtrace.recording.tee import Tee
from swtrace.recording.writer import RecordingWriter
from tests.recording.test_commands import SWTRACE, swtrace
from tests.support.daemon_threads import serving
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import replayed


def until(condition: Callable[[], bool], step: Callable[[], object]) -> None:
    """Repeat a step until a condition holds."""
    deadline = time.monotonic() + patience()
    while not condition():
        assert time.monotonic() < deadline
        step()


def test_two_daemons_become_one_recording(tmp_path: Path) -> None:
    """Ranks of two hosts, read through their daemons, are recorded in one file, every record once."""
    runs = [RecordedRun(tmp_path / host, run_id=host) for host in ("a", "b")]
    path = tmp_path / "run.swrec"
    with serving(tmp_path / "a") as a, serving(tmp_path / "b") as b, serving(tmp_path / "a") as again:
        addresses = [str(client.base_url) for client in (a, b, again)]
        with RecordingWriter(path, flush_s=0.0) as writer:
            tee = Tee(Merged([DaemonStream(address, again=False) for address in addresses]), writer)
            for run in runs:
                run.write(30)
            expected = sum(2 * run.written for run in runs)
            until(lambda: writer.statistics().records >= expected, tee.poll)
            for run in runs:
                run.close()
            until(lambda: sum(ring.closed for ring in tee.look().rings) == 4, tee.poll)
            tee.finish()
            tee.close()
    facts = {series.key.run_id: series for series in replayed(path).facts.series}
    for host in ("a", "b"):
        with watch_rings(tmp_path / host) as watch:
            watch.drain()
            watch.drain()
            watch.ledger.flush()
            (live,) = watch.ledger.facts().series
        assert facts[host] == live
    with Recording.open(path) as recording:
        assert recording.records == expected
        assert recording.missing().finished


def test_a_run_can_be_asked_for_before_it_begins(tmp_path: Path) -> None:
    """Of several runs only the requested one is recorded, even if it begins later."""
    RecordedRun(tmp_path, run_id="other").write(10)
    with serving(tmp_path) as client, RecordingWriter(tmp_path / "run.swrec", flush_s=0.0) as writer:
        roster = Roster(Tee(DaemonStream(str(client.base_url), run_id="later"), writer))
        run = RecordedRun(tmp_path, run_id="later")
        run.write(10)
        until(lambda: writer.statistics().records >= 2 * run.written, roster.poll)
        run.close()
        roster.close()
        assert {rank.run_id for rank in roster.identities} == {"later"}


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
    done = swtrace("record", "--connect", "127.0.0.1:1", "-o", tmp_path / "x.swrec", code=1)
    assert "127.0.0.1:1: " in done.stderr
    with pytest.raises(RecordingError, match="Connection refused"):
        DaemonStream("127.0.0.1:1").connect()
