"""The thread between a roster and the screen: it polls, and hands over frozen observations."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from swtrace.observing import Observation, Roster

_REST = 2
"""Times as long as a poll took, the feed rests: reading takes a third of a core at most, once it has read up."""
_LONGEST_REST_S = 0.25
POLL_S = 0.05
"""A poll takes in as many records as it can in about this time: between two of them a frame can be drawn."""
_FEWEST, _MOST = 1 << 13, 1 << 17
"""Records per poll."""
FACTS_EVERY_S = 0.25
"""Sums over the last steps change slower than the eye sees; windows and steps are taken anew each time."""
_IDLE_S = 0.02
"""While the last frame is still being drawn, so often is looked whether it is."""


class Feed:
    """Polls a roster in a thread of its own.

    At most one observation waits for the screen at a time: a slow terminal sees fewer frames, not older ones.

    Args:
        make: Makes the roster; called in the feed's thread, which owns it.
        deliver: Called in the feed's thread with each observation; the receiver calls :meth:`taken` when it is done.
        failed: Called there if reading raises, which it must not.
        frame_s: Shortest time between two observations.
    """

    def __init__(
        self,
        make: Callable[[], Roster],
        deliver: Callable[[Observation], object],
        failed: Callable[[Exception], object],
        *,
        frame_s: float = 0.1,
    ) -> None:
        self._make, self._deliver, self._failed = make, deliver, failed
        self._frame_s = frame_s
        self._stop = threading.Event()
        self._free = threading.Event()
        self._free.set()
        self._thread = threading.Thread(target=self._run, name="swtrace-feed", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def taken(self) -> None:
        """Say that the last observation was drawn: the next one may come."""
        self._free.set()

    def stop(self, timeout_s: float = 0.5) -> None:
        """End the thread, and with it the roster: at once, or when what it reads answers."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with self._make() as roster:
                self._poll(roster)
        except Exception as error:  # noqa: BLE001 - whatever it was, the screen must say so instead of standing still
            if not self._stop.is_set():
                self._failed(error)

    def _poll(self, roster: Roster) -> None:
        poll_at = frame_at = 0.0
        limit = _MOST // 4
        while not self._stop.is_set():
            if time.monotonic() >= poll_at:
                began, before = time.monotonic(), time.thread_time()
                more = roster.poll(limit)
                took = time.monotonic() - began
                if took > POLL_S:
                    limit = max(_FEWEST, limit // 2)
                elif more and took < POLL_S / 2:
                    limit = min(_MOST, limit * 2)
                rested = time.monotonic() + min(_LONGEST_REST_S, _REST * (time.thread_time() - before))
                # More often than once a frame nobody sees, and small batches cost the ledger more.
                poll_at = 0.0 if more else max(began + self._frame_s, rested)
            now = time.monotonic()
            if now >= frame_at and self._free.is_set() and not self._stop.is_set():
                self._free.clear()
                # In step with the clock, not with how late this one is; but frames that were missed stay missed.
                frame_at = max(frame_at, now - self._frame_s) + self._frame_s
                self._deliver(roster.observe(facts_every_s=FACTS_EVERY_S))
            wait_until = min(poll_at, max(frame_at, now + _IDLE_S))
            if wait_until > time.monotonic():
                self._stop.wait(wait_until - time.monotonic())
            elif not self._free.is_set():
                # There is more to read, and a frame is being drawn: it goes first, both need the interpreter.
                self._free.wait(self._frame_s)
