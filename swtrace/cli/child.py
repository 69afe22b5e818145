"""A process that a command starts beside itself: its lines are read without blocking, and it never outlives us.

Two things make sure of that. It runs in a session of its own, so that Ctrl-C reaches only the
command, which then ends its children in order. And :mod:`swtrace.cli.attached` asks the kernel to
end it when the command dies without a chance to clean up.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

_CHUNK = 1 << 16
_GRACE_S = 5.0


class Child:
    """A running child. As a context manager it is stopped at the end, whatever happened in between."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Take over a process whose stdout is a pipe; :meth:`start` makes one."""
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
        """Run ``python -m module arguments`` with ``environment`` laid over ours.

        Args:
            module: Dotted name of the module to run as a program.
            arguments: Its arguments.
            environment: Variables to set in addition.
            stderr_too: Read its stderr as lines, too, instead of letting it through.
        """
        # The child is bound to the life of the thread that starts it: call this from the main thread.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "swtrace.cli.attached", str(os.getpid()), module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr_too else None,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process id."""
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
        """The pipe its lines come through, for ``select``."""
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
        """Close its stdin: children that read it take this as the order to finish."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def stop(self, grace_s: float = _GRACE_S) -> None:
        """End it: politely, and after ``grace_s`` by force. Idempotent."""
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

    def __enter__(self) -> Self:
        """Return the child itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()


def wait_for_lines(children: Iterable[Child], timeout_s: float) -> None:
    """Return when any of the children has something to say, or after ``timeout_s``."""
    readable = [child for child in children if child.readable]
    if readable:
        select.select(readable, [], [], timeout_s)
    else:
        time.sleep(timeout_s)
