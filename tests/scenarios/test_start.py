"""Start-up: the CPU time until the first table, compared with importing the libraries."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path
from statistics import median

from tests.support.patience import patience
from tests.support.simulated_rings import write

_LIBRARIES = "import numpy, textual.app, textual.widgets, typer, pydantic, rich.console, rich.progress"
_TURNS = 3


def cpu_s(arguments: list[str], awaited: bytes) -> float:
    """Run Python in a terminal until it has written something, press q, and return its total CPU seconds."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="120", LINES="40")
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own programs
    seen, asked = b"", False
    deadline = time.monotonic() + patience()
    try:
        while time.monotonic() < deadline:
            if not select.select([descriptor], [], [], 0.1)[0]:
                continue
            seen += os.read(descriptor, 1 << 16)
            if awaited in seen and not asked:
                os.write(descriptor, b"q")
                asked = True
    except OSError:  # the program ended and closed its side
        pass
    finally:
        os.close(descriptor)
        _, status, usage = os.wait4(pid, 0)
    assert asked, seen[-2000:]
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_utime + usage.ru_stime


def test_the_first_table_costs_little_more_than_the_libraries(tmp_path: Path) -> None:
    """From nothing to the verdict over 8 ranks takes less than three times the CPU of importing the libraries."""
    with write(tmp_path, "stalled", ranks=8, layers=61, steps=40):
        ours, theirs = [], []
        for _ in range(_TURNS):
            theirs.append(cpu_s(["-c", f"{_LIBRARIES}; print('imported')"], b"imported"))
            ours.append(cpu_s(["-m", "swtrace", "top", "--dir", str(tmp_path)], b"NOT HIDDEN"))
    assert median(ours) < 3 * median(theirs), (ours, theirs)
