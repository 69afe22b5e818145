"""Maps stamps to host time: the host asks a running kernel for the time, and reads its own clock meanwhile.

The device's answer was read between the question and the instant at which the host saw the answer. This bounds
it on both sides, to about one round trip on the bus. Every wait has a limit, on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from swtrace.series.device.anchors import AnchoredClock

EXCHANGES = 16
"""Questions per renewal; the one that is answered fastest is used."""
PATIENCE_NS = 200_000
"""Limit for all questions together, and for the kernel's wait for them."""


class Words(Protocol):
    """64-bit words that host and device share."""

    def __getitem__(self, index: int, /) -> int:
        """Return the present value of a word."""

    def __setitem__(self, index: int, word: int, /) -> None:
        """Set a word."""


class Correspondent(Protocol):
    """A device that can be asked for the time."""

    tick_ns: int
    """The smallest observed step of its clock."""
    question: Words
    """One word: the number of the present question, from 1."""
    answers: Words
    """:data:`EXCHANGES` words: 0 until answered, then the device's time; negative if the device gave up."""

    def listen(self) -> bool:
        """Clear all words and let the device listen; return False if it cannot now. Never waits."""


class StampClock(AnchoredClock):
    """Maps stamps of one device to host time. Belongs to the launching thread; never waits for long."""

    def __init__(self, correspondent: Correspondent, host_ns: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__(correspondent.tick_ns // 2)
        self.tick_ns = correspondent.tick_ns
        """The smallest observed step of the device's clock."""
        self._correspondent = correspondent
        self._host_ns = host_ns

    def to_host(self, device_ns: int) -> int:
        """Return the host's CLOCK_MONOTONIC at a stamp.

        Raises:
            ValueError: there is no anchor yet.
        """
        return self._map.there(device_ns)

    def renew(self) -> bool:
        """Take a new anchor; return whether that worked. Never while a graph is being captured."""
        answered = self._ask() if self._correspondent.listen() else None
        if answered is None:
            self._renewals.failed(self._host_ns())
            return False
        low_ns, high_ns, device_ns = answered
        # A reading is up to one tick old, here and in stamps: half a tick either way.
        self._map.add(device_ns, low_ns - self.tick_ns // 2, high_ns + self.tick_ns // 2)
        self._renewals.taken(high_ns)
        return True

    def _ask(self) -> tuple[int, int, int] | None:
        """Return the narrowest host bounds and the device time between them: low, high, device."""
        now, question, answers = self._host_ns, self._correspondent.question, self._correspondent.answers
        best = None
        narrowest_ns = 0
        deadline_ns = now() + PATIENCE_NS
        for number in range(EXCHANGES):
            low_ns = high_ns = now()
            question[0] = number + 1
            while not (device_ns := answers[number]):
                high_ns = now()
                if high_ns > deadline_ns:
                    break
            high_ns = now()
            if device_ns <= 0:
                break
            if best is None or high_ns - low_ns < narrowest_ns:
                best, narrowest_ns = (low_ns, high_ns, device_ns), high_ns - low_ns
                if self._tightness.good_enough(narrowest_ns):
                    break
        question[0] = EXCHANGES  # no more questions: the kernel may end
        if best is not None:
            self._tightness.taken(narrowest_ns)
        return best
