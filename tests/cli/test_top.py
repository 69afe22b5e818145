"""``swtrace top`` as a user runs it: in a terminal, in a pipe, as text and as JSON."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.commands import clean_environment
from tests.support.patience import eventually, patience
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
