"""Signals, for commands that have children: they end in order, and pass on what was meant for the child."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from types import FrameType

PASSED_ON = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT}
)
_SHELL_OFFSET = 128
_SI_KERNEL = 0x80
"""``si_code`` of a signal that a terminal sent: its whole foreground group has it already."""


def exit_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process through every ``finally``, as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)


def exit_status(returncode: int) -> int:
    """Return the status a shell would show: 128 + n for a child that signal n ended."""
    return returncode if returncode >= 0 else _SHELL_OFFSET - returncode


def pass_on_next(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait for at most ``timeout_s`` for a signal of :data:`PASSED_ON`, and send it on to ``process``.

    They must be blocked (``pthread_sigmask``). What a terminal sent is not sent on: the process got it
    itself, and for many programs a second Ctrl-C means to give up cleaning up.
    """
    received = signal.sigtimedwait(PASSED_ON, timeout_s)
    if received is not None and received.si_code != _SI_KERNEL:
        process.send_signal(received.si_signo)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(_SHELL_OFFSET + number)
