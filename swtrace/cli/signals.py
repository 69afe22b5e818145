"""Signals, for commands that have children: they end in order, and pass on what was meant for the child."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import subprocess
    from types import FrameType

PASSED_ON = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT}
)
_SHELL_OFFSET = 128
_SI_KERNEL = 0x80
"""``si_code`` of a signal that a terminal sent: its whole foreground group has it already."""


def heeded(*numbers: signal.Signals) -> tuple[signal.Signals, ...]:
    """Return those signals that this process was not told to ignore, as ``nohup`` tells it of SIGHUP."""
    return tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)


def exit_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process through every ``finally``, as Ctrl-C does; ignored ones stay ignored."""
    for number in heeded(signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)


def exit_status(returncode: int) -> int:
    """Return the status a shell would show: 128 + n for a child that signal n ended."""
    return returncode if returncode >= 0 else _SHELL_OFFSET - returncode


class PassOn:
    """Collects the signals of :data:`PASSED_ON` from its ``with`` on, and sends them on to a process.

    First by handlers, because a blocked signal would stay blocked in every process that is started
    meanwhile; from :meth:`attach` on by blocking and waiting for them, because only then the kernel
    says where a signal came from. What a terminal sent is not sent on: the process, of the same
    foreground group, got it itself, and for many programs a second Ctrl-C means to give up cleaning up.
    What this process was started to ignore stays ignored, for the process as well.
    """

    def __init__(self) -> None:
        """Do nothing yet."""
        self._early: list[int] = []
        self._heeded = heeded(*PASSED_ON)
        self._handlers: dict[signal.Signals, Any] = {}
        self._mask: set[int | signal.Signals] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Begin to collect."""
        for number in self._heeded:
            self._handlers[number] = signal.signal(number, lambda received, _frame: self._early.append(received))
        return self

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        """Send what came so far to ``process``, and from now on what comes. No process is started after this."""
        self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, self._heeded))
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def wait(self, timeout_s: float) -> None:
        """Wait for one signal for at most ``timeout_s``, and send it on."""
        received = signal.sigtimedwait(self._heeded, timeout_s)
        if received is not None and received.si_code != _SI_KERNEL and self._process is not None:
            self._process.send_signal(received.si_signo)

    def __exit__(self, *_error: object) -> None:
        """Let signals do what they did before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(_SHELL_OFFSET + number)
