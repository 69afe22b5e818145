"""Every command where its surroundings are bad: folders, streams, terminals, selections, signals that are ignored."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from swtrace.cli.exit_codes import ExitCode
from tests.cli.conftest import StartSwtrace, clean_environment, run_swtrace
from tests.cli.test_demo_terminal import read_until
from tests.support.patience import eventually, patience
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings

ENDLESS = (sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(600)")
READERS = (("top", "--once", "--wait", "0"), ("record", "-o", "x.swrec"), ("daemon",), ("doctor", "--quick"))
WRITERS = (("demo", "--no-daemon", "--no-tui", "--steps", "1"), ("run", "--no-daemon", "--", sys.executable, "-V"))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording; the rings it was made of lie beside it."""
    folder = tmp_path_factory.mktemp("surroundings")
    run = RecordedRun(folder / "rings")
    run.write(5)
    run.close()
    record_rings(folder / "rings", folder / "run.swrec")
    return folder / "run.swrec"


def printing(recording: Path) -> tuple[tuple[str, ...], ...]:
    """Return one command for each way to print data."""
    return (
        ("stats", str(recording)),
        ("stats", "--json", str(recording)),
        ("export", "-f", "csv", "-o", "-", str(recording)),
        ("top", "--once", "--dir", str(recording.parent / "rings")),
        ("doctor", "--quick"),
        ("--help",),
    )


def one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert that a command ended with one sentence on stderr and the status."""
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("command", [*READERS, *WRITERS], ids=lambda command: command[0])
def test_a_file_in_place_of_the_folder_is_one_line(
    command: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that reads or writes rings says that SWTRACE_DIR is no folder, and begins nothing."""
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    done = run_swtrace(command, clean_environment(tmp_path / "file"))
    if command[0] == "doctor":
        assert done.returncode == ExitCode.FAILED
        assert "is not a folder" in " ".join(done.stdout.split())
        assert not done.stderr
    else:
        one_line(done, ExitCode.USAGE, f"{tmp_path}/file is not a folder", "SWTRACE_DIR")
    assert not (tmp_path / "x.swrec").exists()


@pytest.mark.parametrize("folder", ["/proc/x", "/dev/null/x"])
@pytest.mark.parametrize("command", WRITERS, ids=lambda command: command[0])
def test_a_folder_that_cannot_be_made_is_one_line(command: Sequence[str], folder: str) -> None:
    """Ranks could not write there: the command ends before it starts any."""
    one_line(run_swtrace(command, clean_environment(Path(folder))), ExitCode.USAGE, folder, "SWTRACE_DIR")


@pytest.mark.parametrize("command", [*READERS, *WRITERS], ids=lambda command: command[0])
def test_the_home_of_nobody_is_refused_by_all(command: Sequence[str]) -> None:
    """Readers and ranks agree on what is no folder."""
    done = run_swtrace(command, {**clean_environment(Path()), "SWTRACE_DIR": "~nobody-of-this-name/rings"})
    assert "SWTRACE_DIR='~nobody-of-this-name/rings': must be the path of a folder" in done.stdout + done.stderr
    assert done.returncode == (ExitCode.FAILED if command[0] == "doctor" else ExitCode.USAGE)


def test_stdout_that_cannot_be_written_to_is_one_line(recording: Path) -> None:
    """On a full device, or closed, every command that prints says so; a reader that left is not told anything."""
    environment = clean_environment(recording.parent / "rings")
    faults = ((">/dev/full", 1, 1), (">&-", 1, 1), ("| true", ExitCode.PIPE_CLOSED, 0))
    for arguments in printing(recording):
        command = [sys.executable, "-m", "swtrace", *arguments]
        for redirect, code, lines in faults:
            script = f'sleep_then() {{ "$@"; echo $? >&3; }}; sleep_then "$@" {redirect}'
            done = subprocess.run(
                ["/bin/bash", "-c", f"exec 3>&1; {script}", "bash", *command],
                capture_output=True,
                text=True,
                env=environment,
                timeout=patience(),
                check=False,
            )
            said = done.stderr.replace("Wrote", "").splitlines()
            assert "Traceback" not in done.stderr, (arguments, redirect)
            assert int(done.stdout.strip() or -1) == code, (arguments, redirect, done)
            assert len(said) == lines, (arguments, redirect, done.stderr)


def test_a_terminal_without_utf_8_shows_everything(recording: Path) -> None:
    """What the encoding lacks is replaced, and no command fails for it."""
    encoding = "ascii"
    environment = clean_environment(recording.parent / "rings") | {"PYTHONIOENCODING": encoding}
    for arguments in printing(recording):
        done = run_swtrace(arguments, environment, encoding=encoding)
        assert "Traceback" not in done.stderr
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "-f", "csv", "-o", "t.csv", "--series", "nope", "FILE"), ("--series='nope'", "self_attn.o_proj")),
        (("top", "--once", "--dir", "RINGS", "--series", "nope"), ("no series 'nope'", "self_attn.o_proj")),
        (("top", "--once", "--dir", "RINGS", "--run", "bogus"), ("no run 'bogus'", "run-1")),
        (("top", "--once", "--dir", "RINGS", "--rank", "7"), ("Rank 7", "0, 1")),
        (("top", "--json", "--dir", "RINGS", "--phase", "prefill"), ("phase prefill", "decode")),
        (("run", "--series", "", "--", sys.executable, "-V"), ("--series=''",)),
        (("run", "--listen", "127.0.0.1:99999", "--", sys.executable, "-V"), ("--listen='127.0.0.1:99999'",)),
        (("daemon", "--listen", "bogus"), ("--listen='bogus'",)),
        (("record", "--connect", "foo:bar", "-o", "y.swrec"), ("--connect='foo:bar'",)),
        (("record", "-o", "-"), ("stdout",)),
        (("export", "-f", "parquet", "-o", "-", "FILE"), ("parquet", "stdout")),
        (("export", "-f", "csv", "-o", "t.csv", "--sample", "0.5", "FILE"), ("--sample", "--format csv")),
        (("export", "-f", "perfetto", "-o", "t.pb", "--table", "steps", "FILE"), ("--table", "--format perfetto")),
        (("export", "-f", "otlp", "-o", "t.csv", "FILE"), ("--output", "--format otlp")),
        (("record", "-o", "y.swrec", "--dir", "RINGS", "--connect", "localhost:1"), ("--dir and --connect",)),
        (("top", "--once", "--dir", "RINGS", "--connect", "localhost:1"), ("--dir and --connect",)),
        (("export", "-f", "otlp", "FILE"), ("--endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT")),
        (("export", "-f", "otlp", "--endpoint", "nowhere", "FILE"), ("--endpoint='nowhere'",)),
        (("record", "--connect", ",", "-o", "y.swrec"), ("--connect=','",)),
        (("top", "--once", "--connect", ","), ("--connect=','",)),
        (("record", "--run", "", "--until-end", "-o", "y.swrec"), ("--run=''",)),
        (("daemon", "--run", " "), ("--run=' '",)),
        (("top", "--once", "--run", ""), ("--run=''",)),
        (("record", "--dir", "", "--until-end", "-o", "y.swrec"), ("--dir=''",)),
        (("daemon", "--dir", ""), ("--dir=''",)),
        (("top", "--once", "--dir", ""), ("--dir=''",)),
        (("top", "--once", "--replay", ""), ("--replay=''",)),
        (("record", "-o", ""), ("--output=''",)),
        (("export", "-f", "csv", "-o", "", "FILE"), ("--output=''",)),
        (("report", "-o", "", "FILE"), ("--output=''",)),
        (("stats", ""), ("FILE=''",)),
        (("diff", "FILE", ""), ("B=''",)),
        (("top", "--once", "--dir", "RINGS", "--theme", "nope"), ("no theme 'nope'", "swtrace-dark")),
        (("run", "--json", "RINGS", "--", sys.executable, "-c", "open('x', 'w')"), ("--json", "/rings", "folder")),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], words: Sequence[str]
) -> None:
    """A selection or an address that cannot be meant ends in one line and status 2, and no file is made."""
    monkeypatch.chdir(tmp_path)
    places = {"FILE": str(recording), "RINGS": str(recording.parent / "rings")}
    done = run_swtrace([places.get(each, each) for each in arguments], clean_environment(tmp_path / "rings"))
    one_line(done, ExitCode.USAGE, *words)
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("arguments", [("run", "--no-daemon", "--", *ENDLESS), ("record", "-o", "x.swrec")])
def test_ignored_hang_up_stays_ignored(
    start_swtrace: StartSwtrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> None:
    """Under nohup a command outlives its terminal; another signal still ends it in order."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start_swtrace(*arguments)
    finally:
        signal.signal(signal.SIGHUP, before)
    said = process.stdout if arguments[0] == "run" else process.stderr
    assert said is not None
    assert said.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=patience())
    # A recording that saw no rank has failed.
    assert process.returncode == (128 + signal.SIGTERM if arguments[0] == "run" else ExitCode.FAILED)


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
