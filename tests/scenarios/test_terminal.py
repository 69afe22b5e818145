"""``swtrace top`` and the terminal that it runs in: job control, and terminals that cannot show it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.patience import patience
from tests.support.simulated_rings import write

_SHELL = """
import os, signal, subprocess, sys
job = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], process_group=0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.tcsetpgrp(0, job.pid)
_, status = os.waitpid(job.pid, os.WUNTRACED)
os.tcsetpgrp(0, os.getpgrp())
print("The job stopped." if os.WIFSTOPPED(status) else "The job ended.", flush=True)
sys.stdin.readline()
os.tcsetpgrp(0, job.pid)
os.killpg(job.pid, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(job.pid, 0)[1]))
"""
"""What a shell does with a job that stops, and then with `fg`."""
_PARENT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-m', 'swtrace', *sys.argv[1:]]))"
"""A command that runs the terminal view as its child, as the demo does."""
_ENTER, _LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *arguments: str, term: str = "xterm-256color") -> None:
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            os.environ.update(TERM=term, COLUMNS="100", LINES="30")
            os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own programs
        self._unread = b""

    def wait_for(self, awaited: bytes) -> None:
        """Read until the program has written something, and forget it and what was before it."""
        deadline = time.monotonic() + patience()
        while awaited not in self._unread:
            assert time.monotonic() < deadline, self._unread[-2000:]
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self._unread += os.read(self._descriptor, 1 << 16)
        self._unread = self._unread.partition(awaited)[2]

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._descriptor, keys)

    def status(self) -> int:
        """Wait for the end, and return the exit status."""
        deadline = time.monotonic() + patience()
        with suppress(OSError):  # the program closed its side
            while True:
                assert time.monotonic() < deadline, "the program does not end"
                if select.select([self._descriptor], [], [], 0.1)[0] and not os.read(self._descriptor, 1 << 16):
                    break
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


@pytest.fixture
def rings(tmp_path: Path) -> Iterator[Path]:
    """Write rings, and return their folder."""
    with write(tmp_path, "stalled", ranks=2, layers=4, steps=20):
        yield tmp_path


def test_ctrl_z_returns_to_the_shell_and_fg_to_the_screen(rings: Path) -> None:
    """The screen is restored before the command and its parent stop; continued, they draw it again."""
    terminal = Terminal("-c", _SHELL, _PARENT, "top", "--dir", str(rings))
    terminal.wait_for(b"NOT HIDDEN")
    terminal.press(b"\x1a")
    terminal.wait_for(_LEAVE)
    terminal.wait_for(b"The job stopped.")
    terminal.press(b"\n")
    terminal.wait_for(_ENTER)
    terminal.wait_for(b"NOT HIDDEN")
    terminal.press(b"q")
    assert terminal.status() == 0


def test_ctrl_z_without_a_shell_stops_nothing(rings: Path) -> None:
    """A terminal that runs the command directly would stay frozen, so a notice says that there is no shell."""
    terminal = Terminal("-m", "swtrace", "top", "--dir", str(rings))
    terminal.wait_for(b"NOT HIDDEN")
    terminal.press(b"\x1a")
    terminal.wait_for(b"no shell to return to")
    terminal.press(b"\x03")
    assert terminal.status() == 0


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_is_refused(rings: Path, term: str) -> None:
    """The message names TERM and what to use instead, and nothing is drawn."""
    terminal = Terminal("-m", "swtrace", "top", "--dir", str(rings), term=term)
    terminal.wait_for(f"TERM={term}".encode())
    terminal.wait_for(b"--once")
    assert terminal.status() == 1


def test_no_terminal_is_refused_with_what_to_use_instead(rings: Path) -> None:
    """In a pipe, the command names --once and --json."""
    command = [sys.executable, "-m", "swtrace", "top", "--dir", str(rings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(), check=False)
    assert done.returncode == 1
    assert "needs a terminal; use --once" in done.stderr
    assert "--json" in done.stderr
