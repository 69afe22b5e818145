"""``swtrace top`` as a user runs it: in a terminal, in a pipe, as text and as JSON."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from swtrace_tui.app import TopApp
from typer.testing import CliRunner

from swtrace.cli import commands
from swtrace.daemon.daemon_settings import Watched
from swtrace.observing import watch_rings
from tests.support.commands import clean_environment
from tests.support.daemon_threads import serving
from tests.support.patience import eventually, patience
from tests.support.simulated_recordings import record, schedule
from tests.support.simulated_rings import write
from tests.support.terminals import read_until


def start_top(rings: Path, *, ignore_hang_up: bool) -> tuple[int, subprocess.Popen[bytes]]:
    """Start `top` in a terminal of its own, and return the terminal and the process once it has drawn."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["/bin/bash", "-c", ("trap '' HUP; " if ignore_hang_up else "") + f"exec {sys.executable} -m swtrace top"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(rings) | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    read_until(ours, lambda shown: "Nothing to watch" in shown)
    return ours, process


def test_sigterm_gives_the_terminal_back(tmp_path: Path) -> None:
    """Ended by SIGTERM, `top` leaves the alternate screen and turns mouse reports off."""
    ours, process = start_top(tmp_path, ignore_hang_up=False)
    try:
        process.terminate()
        shown = read_until(ours, lambda _: process.poll() is not None)
        assert process.wait(patience()) == 128 + signal.SIGTERM
        assert "\x1b[?1049l" in shown
        assert "\x1b[?1000l" in shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_top_ends_with_its_terminal(tmp_path: Path) -> None:
    """With SIGHUP ignored nothing tells `top` that its terminal is gone: it sees for itself, and ends."""
    ours, process = start_top(tmp_path, ignore_hang_up=True)
    try:
        os.close(ours)
        eventually(lambda: process.poll() is not None, "top ends after its terminal")
    finally:
        process.kill()
        process.wait()


def top(*arguments: str | Path, code: int) -> subprocess.CompletedProcess[str]:
    """Run ``swtrace top``."""
    command = [sys.executable, "-m", "swtrace", "top", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(), check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_once_fails_over_a_choice_that_nothing_matches(tmp_path: Path) -> None:
    """``--once`` and ``--json`` then print no figures and exit with 2."""
    with write(tmp_path, "stalled", ranks=2, layers=4, steps=20, run_id="the-run"):
        for choice, message in ((["--run", "bogus"], "Runs: the-run."), (["--series", "nope"], "Series: o_proj.")):
            done = top("--dir", tmp_path, "--json", "--wait", "0", *choice, code=2)
            assert message in done.stderr
            assert done.stdout == ""


def test_a_daemon_that_does_not_answer_fails_the_command_by_name(tmp_path: Path) -> None:
    """With one of two daemons missing, ``--once`` prints no partial picture, names the missing one, and fails."""
    with write(tmp_path, "stalled", ranks=2, layers=4, steps=20), serving(tmp_path) as client:
        address = f"127.0.0.1:{client.base_url.port}"
        done = top("--connect", f"{address},127.0.0.1:1", "--once", "--wait", "0.5", code=1)
    assert "no answer within 0.5 s from 127.0.0.1:1 (" in done.stderr
    assert address not in done.stderr.partition("from")[2]
    assert done.stdout == ""


@pytest.mark.parametrize("output", ["--once", "--json"])
def test_a_watching_daemon_that_waits_for_a_source_is_not_said_to_have_no_ranks(tmp_path: Path, output: str) -> None:
    """While the daemon does not know all ranks, the command fails over that, instead of showing that there is none."""
    with ExitStack() as stack:
        stack.enter_context(write(tmp_path, "stalled", ranks=2, layers=4, steps=20))
        host = stack.enter_context(serving(tmp_path))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sources = (f"127.0.0.1:{host.base_url.port}", f"127.0.0.1:{silent.getsockname()[1]}")
        watching = stack.enter_context(serving(Watched(sources, 1)))
        address = f"127.0.0.1:{watching.base_url.port}"
        done = top("--connect", address, output, "--wait", "0.5", code=1)
    assert f"no answer within 0.5 s from {address} (" in done.stderr
    assert "--connect" not in done.stderr
    assert "Nothing to watch" not in done.stderr
    assert done.stdout == ""


def test_json_carries_the_ledgers_numbers_exactly(tmp_path: Path) -> None:
    """``swtrace top --json`` prints the facts of the same rings to the last digit, verdict included."""
    with write(tmp_path, "straggler"), watch_rings(tmp_path) as watch:
        watch.drain()
        done = subprocess.run(
            [sys.executable, "-m", "swtrace", "top", "--dir", str(tmp_path), "--json"],
            capture_output=True,
            text=True,
            timeout=patience(),
            check=True,
        )
    series = json.loads(done.stdout)["summary"]["series"][0]

    facts = watch.ledger.facts().series[0]
    for said, rank in zip(series["ranks"], facts.ranks, strict=True):
        assert said["stall_ratio"] == rank.recent.stall_ratio
        assert said["efficiency"] == rank.recent.efficiency
    assert [[rank.rank for rank in each.ranks] for each in facts.stragglers] == [[3]]
    assert [each["ranks"] for each in series["stragglers"]] == [[3]]
    advice = {finding["kind"]: finding["advice"] for finding in series["findings"]}
    assert advice["straggler"].startswith("Check that rank's host")


def test_once_without_rings_says_what_to_do_next(tmp_path: Path) -> None:
    """With nothing to watch, ``--once`` prints no table, names the next commands on stderr, and fails."""
    done = subprocess.run(
        [sys.executable, "-m", "swtrace", "top", "--dir", str(tmp_path), "--once", "--wait", "0"],
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert "swtrace demo --scenario stalled" in done.stderr


def test_without_a_terminal_top_says_how_to_go_on(tmp_path: Path) -> None:
    """In a pipe, ``swtrace top`` draws nothing and exits with one line that names ``--once``."""
    done = subprocess.run(
        [sys.executable, "-m", "swtrace", "top", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 1
    assert "--once" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a recording of some 30 s: steps of 0.5 s."""
    record(tmp_path / "run.swrec", schedule(steps=60, compute=80_000))
    return tmp_path / "run.swrec"


def test_top_replay_opens_a_recording_that_plays(path: Path) -> None:
    """``swtrace top --replay FILE`` in a terminal plays the file and ends with q, leaving nothing behind."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "swtrace", "top", "--replay", str(path), "--view", "heatmap"],
        stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + patience()
    try:
        while b"x1 " not in seen and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 1 << 16)
        assert b"x1 " in seen
        os.write(ours, b"q")
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    seen += os.read(ours, 1 << 16)
                except OSError:
                    break
        assert process.wait(patience()) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)
    assert b"Heat map" in seen
    assert b"\x1b[?1049l" in seen


@pytest.mark.parametrize("source", [["--dir", "RINGS"], ["--replay", "FILE"]], ids=["rings", "recording"])
def test_interval_sets_the_time_between_pictures(
    source: list[str], recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen is drawn at most once per ``--interval``, ten times per second without it."""
    monkeypatch.setenv("TEXTUAL_DRIVER", "a browser")
    drawn: list[float] = []
    monkeypatch.setattr(TopApp, "run", lambda app: drawn.append(app._frame_s))
    arguments = ["top", source[0], str(tmp_path if source[1] == "RINGS" else recording)]
    for more in ([], ["--interval", "2"]):
        assert CliRunner().invoke(commands.app, [*arguments, *more]).exit_code == 0
    assert drawn == [0.1, 2.0]
