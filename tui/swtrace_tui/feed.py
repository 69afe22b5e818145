"""The thread between a source and the screen: it polls, and hands over frozen snapshots."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from swtrace_tui.snapshot import Snapshot
from swtrace_tui.sources import Source

_REST = 2
"""Times as long as a poll took, the feed rests: reading takes a third of a core at most, once it has read up."""
_LONGEST_REST_S = 0.25
_IDLE_S = 0.02
"""While the last frame is still being drawn, so often is looked whether it is."""


class Feed:
    """Polls a source in a thread of its own.

    At most one snapshot waits for the screen at a time: a slow terminal sees fewer frames, not older ones.

    Args:
        make: Makes the source; called in the feed's thread, which owns it.
        deliver: Called in the feed's thread with each snapshot; the receiver calls :meth:`taken` when it is done.
        failed: Called there if the source raises, which it must not.
        frame_s: Shortest time between two snapshots.
    """

    def __init__(
        self,
        make: Callable[[], Source],
        deliver: Callable[[Snapshot], object],
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
        """Say that the last snapshot was drawn: the next one may come."""
        self._free.set()

    def stop(self, timeout_s: float = 0.5) -> None:
        """End the thread, and with it the source: at once, or when the source answers."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            source = self._make()
            try:
                self._poll(source)
            finally:
                source.close()
        except Exception as error:  # noqa: BLE001 - whatever it was, the screen must say so instead of standing still
            if not self._stop.is_set():
                self._failed(error)

    def _poll(self, source: Source) -> None:
        poll_at = frame_at = 0.0
        while not self._stop.is_set():
            if time.monotonic() >= poll_at:
                began, before = time.monotonic(), time.thread_time()
                more = source.poll()
                rested = time.monotonic() + min(_LONGEST_REST_S, _REST * (time.thread_time() - before))
                # More often than once a frame nobody sees, and small batches cost the ledger more.
                poll_at = 0.0 if more else max(began + self._frame_s, rested)
            now = time.monotonic()
            if now >= frame_at and self._free.is_set() and not self._stop.is_set():
                self._free.clear()
                # In step with the clock, not with how late this one is; but frames that were missed stay missed.
                frame_at = max(frame_at, now - self._frame_s) + self._frame_s
                self._deliver(source.snapshot())
            wait_until = min(poll_at, max(frame_at, now + _IDLE_S))
            if wait_until > time.monotonic():
                self._stop.wait(wait_until - time.monotonic())
            elif not self._free.is_set():
                # There is more to read, and a frame is being drawn: it goes first, both need the interpreter.
                self._free.wait(self._frame_s)
