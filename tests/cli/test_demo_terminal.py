"""``swtrace demo`` in a terminal: `swtrace top` opens on it, and the summary follows when it is quit."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import clean_environment
from tests.support.patience import patience


def read_until(descriptor: int, seen: Callable[[str], bool]) -> str:
    """Read what a terminal shows until it has been seen, or the program is gone."""
    shown, deadline = "", time.monotonic() + patience()
    while not seen(shown):
        assert time.monotonic() < deadline, shown[-3000:]
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                data = os.read(descriptor, 1 << 16)
            except OSError:  # the program closed its end
                break
            shown += data.decode(errors="replace")
    return shown


def test_a_terminal_shows_the_run_live_and_then_its_summary(tmp_path: Path) -> None:
    """On a terminal the demo opens the viewer; `q` leaves it, the summary follows, and the status is 0."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "swtrace",
            "demo",
            "--layers",
            "6",
            "--mib",
            "0.1",
            "--steps",
            "30",
            "--no-daemon",
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(tmp_path) | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    try:
        read_until(ours, lambda shown: "Heat map" in shown and "rank" in shown)
        os.write(ours, b"q")
        shown = read_until(ours, lambda shown: "bit-identical" in shown)
        assert "bit-identical" in shown
        assert "saved" in shown
        read_until(ours, lambda _: process.poll() is not None)
        assert process.wait(patience()) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
