"""Host time of timing events, without waiting for the device.

Events tell nothing but time elapsed between two of them, and that in float32 ms. So the clock keeps an
event of its own, the anchor, whose host instant it knows, and measures from there. Anchors are renewed
about once a second: over more than 8 s, elapsed times are coarser than half a microsecond.
"""

from __future__ import annotations

from swtrace.series.device.accelerator import Device, Event
from swtrace.series.device.anchors import FORGET_NS, AnchoredClock

TRIES = 16
"""Attempts at an anchor, of which the best is taken."""
PATIENCE_NS = 50_000
"""For the device to pass an event on an idle stream. It takes about a tenth of that unless the device is stuck."""
VISIBLE_NS = 2_000
"""From a point's instant until the host can see that it was passed, at most: a write over the bus takes about one."""
ELAPSED_ERROR_NS = 750
"""Of an elapsed time: events have a resolution of 0.5 us (CUDA's documentation), float32 ms round by 0.25 us at 8 s."""

_FAR_MS = FORGET_NS / 1e6


class _Anchor:
    """An event of the clock's own."""

    __slots__ = ("device_ns", "event", "host_ns")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.device_ns = 0
        """On a clock that starts with the first anchor: elapsed times, added up."""
        self.host_ns = 0


class EventClock(AnchoredClock):
    """Maps timed events of one device to host time. Belongs to the launching thread; never waits for long."""

    def __init__(self, device: Device) -> None:
        super().__init__(ELAPSED_ERROR_NS)
        self._device = device
        self._stream = device.prefetch_stream()
        self._newest: _Anchor | None = None
        self._older: _Anchor | None = None
        # The two anchors that are kept, the best try so far, and the one under way.
        self._free = [_Anchor(device.event(timed=True)) for _ in range(4)]
        self._stuck: _Anchor | None = None

    def renew(self) -> bool:
        """Take a new anchor; return whether that worked. Never while a graph is being captured."""
        if self._device.capturing():
            return False
        stuck = self._stuck
        if stuck is not None:
            if not stuck.event.query():
                self._renewals.failed(self._device.host_ns())
                return False
            self._free.append(stuck)
            self._stuck = None
        best, low_ns, high_ns = self._best()
        if best is None:
            self._renewals.failed(self._device.host_ns())
            return False
        newest = self._newest
        if newest is not None:
            elapsed_ms = newest.event.elapsed_time(best.event)
            best.device_ns = newest.device_ns + round(elapsed_ms * 1e6)
            if self._renewals.lapsed(high_ns):
                self._map.restart()
        self._map.add(best.device_ns, (low_ns + high_ns) // 2, (high_ns - low_ns + 1) // 2 + ELAPSED_ERROR_NS)
        best.host_ns = self._map.to_host(best.device_ns)
        if self._older is not None:
            self._free.append(self._older)
        self._older, self._newest = newest, best
        self._renewals.taken(high_ns)
        return True

    def to_host(self, event: Event) -> int:
        """Return the host's CLOCK_MONOTONIC at a timed event that has been passed.

        Raises:
            ValueError: there is no anchor yet.
        """
        anchor = self._newest
        if anchor is None:
            raise ValueError("no anchor yet: the clock is not ready")
        elapsed_ms = anchor.event.elapsed_time(event)
        older = self._older
        if abs(elapsed_ms) > _FAR_MS and older is not None:
            # The event is from before a pause, and so is the older anchor.
            from_older_ms = older.event.elapsed_time(event)
            if abs(from_older_ms) < abs(elapsed_ms):
                anchor, elapsed_ms = older, from_older_ms
        elapsed_ns = round(elapsed_ms * 1e6)
        return anchor.host_ns + elapsed_ns + round(elapsed_ns * self._map.drift)

    def _best(self) -> tuple[_Anchor | None, int, int]:
        """Return the try whose instant is known best, and the host instants that it lies between."""
        best, best_low_ns, best_high_ns = None, 0, 0
        for _ in range(TRIES):
            trial = self._free.pop()
            low_ns, high_ns = self._try(trial.event)
            if not high_ns:
                self._stuck = trial  # a new record before it is passed would only queue behind
                break
            if best is not None and high_ns - low_ns >= best_high_ns - best_low_ns:
                self._free.append(trial)
                continue
            if best is not None:
                self._free.append(best)
            best, best_low_ns, best_high_ns = trial, low_ns, high_ns
            if self._tightness.good_enough(high_ns - low_ns):
                break  # as good as they come here: the launching thread has better things to do
        if best is not None:
            self._tightness.taken(best_high_ns - best_low_ns)
        return best, best_low_ns, best_high_ns

    def _try(self, event: Event) -> tuple[int, int]:
        """Record and watch an event; return the host instants that it lies between, (0, 0) if it did not come."""
        now = self._device.host_ns
        low_ns = began_ns = now()
        event.record(self._stream)
        deadline_ns = began_ns + PATIENCE_NS
        while True:
            asked_ns = now()
            if event.query():
                return low_ns, now()
            if asked_ns > deadline_ns:
                return 0, 0
            low_ns = max(began_ns, asked_ns - VISIBLE_NS)
