"""Child processes of a command: their output is read without blocking, and they never outlive the command.

A child runs in its own session, so Ctrl-C reaches only the command, which then ends its children in
order. It is started through ``python -m swtrace.cli.child PARENT MODULE ...``, which asks the kernel
to end it if the command dies without cleaning up.
"""

from __future__ import annotations

import ctypes
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from swtrace.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

ANY_PORT = "127.0.0.1:0"
_CHUNK = 1 << 16
_GRACE_S = 5.0
_KEPT_LINES = 20
_PR_SET_PDEATHSIG = 1
_URL = re.compile(r"https?://\S+:\d+")


class Child(Closing):
    """A running child. Leaving its ``with`` block ends it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Take over a process whose stdout is a pipe; :meth:`start` creates one."""
        if process.stdout is None:
            raise ValueError("the child's stdout must be a pipe")
        self._process = process
        self._output = process.stdout.fileno()
        self._partial = b""
        self._ended = False
        os.set_blocking(self._output, False)

    @classmethod
    def start(
        cls,
        module: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stderr_too: bool = False,
    ) -> Child:
        """Run ``python -m module arguments`` with ``environment`` added to this process's.

        Args:
            module: Dotted name of the module to run as a program.
            arguments: Its arguments.
            environment: Variables to set in addition.
            stderr_too: Read its stderr as lines instead of passing it through.
        """
        # The child ends with the thread that starts it, so call this from the main thread.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "swtrace.cli.child", str(os.getpid()), module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr_too else None,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def readable(self) -> bool:
        """Whether more lines may still come."""
        return not self._ended

    def fileno(self) -> int:
        """Return the descriptor of its output pipe, for ``select``."""
        return self._output

    def lines(self) -> list[str]:
        """Return the whole lines that have arrived since the last call."""
        while not self._ended:
            try:
                chunk = os.read(self._output, _CHUNK)
            except BlockingIOError:
                break
            self._ended = not chunk
            self._partial += chunk
        *whole, self._partial = self._partial.split(b"\n")
        if self._ended and self._partial:
            whole, self._partial = [*whole, self._partial], b""
        return [line.decode(errors="replace") for line in whole]

    def close_input(self) -> None:
        """Close its stdin, which tells children that read it to finish."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def close(self, grace_s: float = _GRACE_S) -> None:
        """Send SIGTERM, and SIGKILL after ``grace_s``. Idempotent."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self.lines()
        self.close_input()
        if self._process.stdout is not None:
            self._process.stdout.close()
            self._ended = True


def wait_for_lines(children: Iterable[Child], timeout_s: float) -> None:
    """Wait until any child has written output, at most ``timeout_s``."""
    readable = [child for child in children if child.readable]
    if readable:
        select.select(readable, [], [], timeout_s)
    else:
        time.sleep(timeout_s)


class DaemonProcess(Closing):
    """The daemon that ``demo`` and ``run`` start beside their ranks. With a run id, it watches only that run."""

    def __init__(
        self,
        directory: Path,
        run_id: str | None = None,
        *,
        listen: str = ANY_PORT,
    ) -> None:
        """Start the daemon; :attr:`url` is known once it serves."""
        self.child = Child.start(
            "swtrace",
            ["daemon", "--listen", listen, *([] if run_id is None else ["--run", run_id])],
            environment={"SWTRACE_DIR": str(directory)},
            stderr_too=True,
        )
        self.url: str | None = None
        self.said: deque[str] = deque(maxlen=_KEPT_LINES)
        """The last lines of its output."""

    def poll(self) -> bool:
        """Read its output; return True from the one call that learns the URL."""
        known = self.url is not None
        for line in self.child.lines():
            self.said.append(line)
            if self.url is None and (found := _URL.search(line)):
                self.url = found[0]
        return not known and self.url is not None

    def warnings(self) -> list[str]:
        """Return the warnings of its own among the last lines of its output."""
        return [line for line in self.said if " WARNING swtrace" in line]

    @property
    def alive(self) -> bool:
        """Whether the daemon is still running."""
        return self.child.status is None

    def close(self) -> None:
        """End the daemon, which exports its remaining data first."""
        self.child.close()


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process signal ``number`` when the thread that started it ends.

    Exit at once if the parent is already gone, because then the kernel sends no signal.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"swtrace: the parent process ({parent}) has already ended")


def _main() -> None:
    parent, module, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
