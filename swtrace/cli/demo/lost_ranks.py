"""What the launcher of the demo knows, and its ranks learn only in an error, if at all: which ranks were lost.

A rank that waits for a dead one in torch's rendezvous waits until the timeout, because no connection to it exists yet.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swtrace.cli.demo.report_lines import RankReport, What
from swtrace.cli.exit_codes import ExitCode
from swtrace.units import listed

if TYPE_CHECKING:
    import mmap

_DIED, _FAILED = 1, 2
_POLL_S = 0.05
OWN_ERROR_S = 1.0
"""How long a rank has to report an error of its own, which says more."""
START_UP_S = 15.0
"""How long a rank that pulls has to finish its start-up. It may be able to: the lost rank may have been ready."""


class LostRanks:
    """The ranks that were lost. The launcher writes it, and the ranks read it; they share its memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        """Begin with no rank lost; ``memory`` has a byte per rank."""
        self._memory = memory

    def add(self, rank: int, *, died: bool) -> None:
        """Note that a rank was killed by a signal, or ended with an error."""
        self._memory[rank] = _DIED if died else _FAILED

    def __bool__(self) -> bool:
        """Return whether any rank was lost."""
        return any(self._memory[:])

    def __str__(self) -> str:
        """Return in words which ranks died; if none has, which ended with an error."""
        for how, what in ((_DIED, "died"), (_FAILED, "failed")):
            ranks = [rank for rank, state in enumerate(self._memory[:]) if state == how]
            if ranks:
                return f"{listed('rank', ranks)} {what}"
        return "no rank was lost"

    def wait(self, timeout_s: float) -> bool:
        """Wait until a rank is lost, or a timeout; return whether one is."""
        deadline = time.monotonic() + timeout_s
        while not self and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return bool(self)

    @contextmanager
    def ending_if_stuck(self, rank: int, give_up: Callable[[], str], patience_s: float) -> Iterator[None]:
        """End this process, some time after a rank was lost, if it is still within this block.

        Args:
            rank: this one.
            give_up: tells the others that this rank ends, and returns series, rank and layer, for the error; empty if
                this rank does not need the others.
            patience_s: after which time.
        """
        left = threading.Event()

        def watch() -> None:
            while not self:
                if left.wait(_POLL_S):
                    return
            if not left.wait(patience_s) and (where := give_up()):
                RankReport(What.FAILED, rank, text=f"{where}: {self}; this rank would still wait for it").write()
                os._exit(ExitCode.RANK_LOST)

        threading.Thread(target=watch, name="demo-lost", daemon=True).start()
        try:
            yield
        finally:
            left.set()
