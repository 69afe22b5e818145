"""Every command where stdout is full or closed, or cannot show every character."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import clean_environment, run_swtrace
from tests.support.patience import patience


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
