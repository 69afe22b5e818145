"""Maps timing events to host time, without blocking on the device.

Events give only the time elapsed between two of them, in float32 ms. So the clock keeps an event of
its own, the anchor, whose host instant it knows, and measures from there. Anchors are renewed about
once a second, because elapsed times over 8 s are coarser than half a microsecond.
"""

from __future__ import annotations

from swtrace.series.device.accelerator import Device, Event
from swtrace.series.device.anchors import FORGET_NS, AnchoredClock

TRIES = 16
"""Tries for an anchor, of which the best is used."""
PATIENCE_NS = 50_000
"""Longest wait for an event on an idle stream. Usually it takes a tenth of that, unless the device is stuck."""
VISIBLE_NS = 2_000
"""Longest delay until the host sees that an event was passed. A write over the bus takes about 1 us."""
ELAPSED_ERROR_NS = 750
"""Error of an elapsed time: CUDA documents a resolution of 0.5 us; float32 ms round by 0.25 us at 8 s."""

_FAR_MS = FORGET_NS / 1e6


class _Anchor:
    """An event that the clock recorded itself."""

    __slots__ = ("device_ns", "event", "host_ns")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.device_ns = 0
        """Sum of the elapsed times since the first anchor."""
        self.host_ns = 0


class EventClock(AnchoredClock):
    """Maps timed events of one device to host time. Belongs to the launching thread; never waits for long."""

    def __init__(self, device: Device) -> None:
        super().__init__(ELAPSED_ERROR_NS)
        self._device = device
        self._stream = device.prefetch_stream()
        self._newest: _Anchor | None = None
        self._older: _Anchor | None = None
        # For the two anchors that are kept, the best try so far, and the current try.
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
        self._map.add(best.device_ns, low_ns - ELAPSED_ERROR_NS, high_ns + ELAPSED_ERROR_NS)
        best.host_ns = self._map.there(best.device_ns)
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
            # The event is from before a pause, as is the older anchor.
            from_older_ms = older.event.elapsed_time(event)
            if abs(from_older_ms) < abs(elapsed_ms):
                anchor, elapsed_ms = older, from_older_ms
        elapsed_ns = round(elapsed_ms * 1e6)
        return anchor.host_ns + elapsed_ns + round(elapsed_ns * self._map.drift)

    def _best(self) -> tuple[_Anchor | None, int, int]:
        """Return the try with the narrowest bounds, and the host instants that bound it."""
        best, best_low_ns, best_high_ns = None, 0, 0
        for _ in range(TRIES):
            trial = self._free.pop()
            low_ns, high_ns = self._try(trial.event)
            if not high_ns:
                self._stuck = trial  # recording it again before it is passed would only queue behind
                break
            if best is not None and high_ns - low_ns >= best_high_ns - best_low_ns:
                self._free.append(trial)
                continue
            if best is not None:
                self._free.append(best)
            best, best_low_ns, best_high_ns = trial, low_ns, high_ns
            if self._tightness.good_enough(high_ns - low_ns):
                break  # a better one is unlikely, and the launching thread must not spend more time
        if best is not None:
            self._tightness.taken(best_high_ns - best_low_ns)
        return best, best_low_ns, best_high_ns

    def _try(self, event: Event) -> tuple[int, int]:
        """Record and poll an event; return the host instants that bound it, or (0, 0) if it was not passed in time."""
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
