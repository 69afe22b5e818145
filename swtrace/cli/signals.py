"""Signals, for commands with children: orderly exit, and passing signals on to a child."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import subprocess
    from types import FrameType

FORWARDED = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT}
)
_SHELL_OFFSET = 128
_SI_KERNEL = 0x80
"""``si_code`` of a signal from a terminal, which the whole foreground group has already received."""


def not_ignored(*numbers: signal.Signals) -> tuple[signal.Signals, ...]:
    """Return the signals that this process does not ignore; ``nohup`` makes it ignore SIGHUP."""
    return tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)


def exit_in_order() -> None:
    """Make SIGTERM and SIGHUP unwind every ``finally``, as Ctrl-C does. Ignored signals stay ignored."""
    for number in not_ignored(signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)


def exit_status(returncode: int) -> int:
    """Return the status that a shell would show: 128 + n for a child ended by signal n."""
    return returncode if returncode >= 0 else _SHELL_OFFSET - returncode


class SignalForwarder:
    """Collects the signals of :data:`FORWARDED` while its ``with`` block runs, and sends them to a process.

    Until :meth:`attach` it uses handlers, because processes started meanwhile would inherit blocked
    signals. Afterwards it blocks the signals and waits for them, because only then does the kernel say
    where a signal came from. Signals from a terminal are not sent on: the process is in the same
    foreground group and already received them, and many programs skip cleanup on a second Ctrl-C.
    Signals that this process was started to ignore stay ignored, in the process too.
    """

    def __init__(self) -> None:
        """Prepare without changing any signal."""
        self._early: list[int] = []
        self._not_ignored = not_ignored(*FORWARDED)
        self._handlers: dict[signal.Signals, Any] = {}
        self._mask: set[int | signal.Signals] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start to collect signals."""
        for number in self._not_ignored:
            self._handlers[number] = signal.signal(number, lambda received, _frame: self._early.append(received))
        return self

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        """Send collected and later signals to ``process``. Start no other process after this."""
        self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, self._not_ignored))
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def wait(self, timeout_s: float) -> None:
        """Wait up to ``timeout_s`` for one signal, and send it on."""
        received = signal.sigtimedwait(self._not_ignored, timeout_s)
        if received is not None and received.si_code != _SI_KERNEL and self._process is not None:
            self._process.send_signal(received.si_signo)

    def __exit__(self, *_error: object) -> None:
        """Restore the previous handlers and mask."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(_SHELL_OFFSET + number)
