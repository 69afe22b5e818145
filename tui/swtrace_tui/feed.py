"""The thread between a roster and the screen: it polls the roster and delivers frozen observations."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from swtrace.observing import Observation, Roster

_REST = 2
"""Rest per poll, in multiples of its CPU time: once caught up, reading takes at most a third of a core."""
_LONGEST_REST_S = 0.25
POLL_S = 0.05
"""Target duration of a poll, by its limit of records: a frame can be drawn between two polls."""
_FEWEST, _MOST = 1 << 13, 1 << 17
"""Bounds of a poll's limit, in records."""
FACTS_EVERY_S = 0.25
"""Recompute sums over the last steps this often: they change slowly. Windows and steps are read for each frame."""
_IDLE_S = 0.02
"""How often to check whether the last frame has been drawn."""


class Feed:
    """Poll a roster in a separate thread.

    At most one observation waits for the screen, so a slow terminal shows fewer frames, not older ones.

    Args:
        make: Makes the roster; called in the feed's thread, which owns it.
        deliver: Called in the feed's thread with each observation; the receiver calls :meth:`taken` once it is drawn.
        failed: Called in the feed's thread if reading raises, which it must not.
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
        """Start the thread."""
        self._thread.start()

    def taken(self) -> None:
        """Report that the last observation was drawn, so that the next one may be delivered."""
        self._free.set()

    def stop(self, timeout_s: float = 0.5) -> None:
        """Stop the thread and close its roster, waiting up to ``timeout_s`` for a pending read."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            with self._make() as roster:
                self._poll(roster)
        except Exception as error:  # noqa: BLE001 - the screen must report any error instead of freezing
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
                # Polls between frames would show nothing, and small batches cost the ledger more.
                poll_at = 0.0 if more else max(began + self._frame_s, rested)
            now = time.monotonic()
            if now >= frame_at and self._free.is_set() and not self._stop.is_set():
                self._free.clear()
                # Frames follow the clock, whatever the delay of this one; missed frames are skipped.
                frame_at = max(frame_at, now - self._frame_s) + self._frame_s
                self._deliver(roster.observe(facts_every_s=FACTS_EVERY_S))
            wait_until = min(poll_at, max(frame_at, now + _IDLE_S))
            if wait_until > time.monotonic():
                self._stop.wait(wait_until - time.monotonic())
            elif not self._free.is_set():
                # Drawing and reading share the interpreter; the frame goes first.
                self._free.wait(self._frame_s)
