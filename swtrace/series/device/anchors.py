"""Maps a device's clock to the host's: pure arithmetic over anchors.

An anchor is one instant read on both clocks: the device showed ``device_ns`` while the host's
CLOCK_MONOTONIC was within ``error_ns`` of ``host_ns``. Drift is assumed to change by at most :data:`WANDER`.
Then a new anchor and the prediction from earlier ones each bound the true instant, and the map keeps the
intersection. So an imprecise anchor never widens a bound, and every bound holds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

DRIFT_LIMIT = 200e-6
"""Largest drift of a device before any is measured; 10 to 100 us per second are usual."""
WANDER = 0.5e-6 * 1e-9
"""Largest change of drift per ns: half a microsecond per second, each second."""

_POINTS = 16
_HORIZON_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Point:
    """An instant on both clocks, narrowed by the earlier anchors."""

    device_ns: int
    host_ns: int
    error_ns: int


class HostMap:
    """Maps a device's instants to host time."""

    def __init__(self) -> None:
        self.drift = 0.0
        """Seconds that the host's clock gains on the device's per device second."""
        self.passed_over = 0
        """Number of anchors that were skipped because they contradict the others."""
        self._drift_error = DRIFT_LIMIT
        self._doubted = False
        self._points: deque[_Point] = deque(maxlen=_POINTS)

    @property
    def ready(self) -> bool:
        """Whether there is an anchor."""
        return bool(self._points)

    @property
    def error_ns(self) -> int:
        """Largest error of :meth:`to_host` until one second after the newest anchor."""
        return self._newest().error_ns + self._growth(_HORIZON_NS)

    def add(self, device_ns: int, host_ns: int, error_ns: int) -> None:
        """Add an anchor that is newer than the others.

        An anchor that contradicts the others is skipped. If the next one does too, the clocks have changed (a
        suspended machine, a host clock that is being slewed), and the map restarts from it.
        """
        if self._points:
            newest = self._points[-1]
            age_ns = device_ns - newest.device_ns
            expected_ns = self.to_host(device_ns)
            slack_ns = newest.error_ns + self._growth(age_ns)
            low_ns = max(host_ns - error_ns, expected_ns - slack_ns)
            high_ns = min(host_ns + error_ns, expected_ns + slack_ns)
            if age_ns <= 0 or low_ns > high_ns:
                if not self._doubted:
                    self._doubted = True
                    self.passed_over += 1
                    return
                self.restart()
            else:
                host_ns, error_ns = (low_ns + high_ns) // 2, (high_ns - low_ns + 1) // 2
                self._learn(_Point(device_ns, host_ns, error_ns), age_ns)
        self._doubted = False
        self._points.append(_Point(device_ns, host_ns, error_ns))

    def restart(self) -> None:
        """Forget all anchors. The drift is kept as an estimate."""
        self._points.clear()
        self._drift_error = DRIFT_LIMIT

    def to_host(self, device_ns: int) -> int:
        """Return the host's CLOCK_MONOTONIC at a device instant, even between or before the anchors.

        Raises:
            ValueError: there is no anchor yet.
        """
        after = self._newest()
        for point in reversed(self._points):
            if point.device_ns <= device_ns:
                if point is after:
                    break
                span_ns = after.device_ns - point.device_ns
                gained_ns = after.host_ns - point.host_ns - span_ns
                since_ns = device_ns - point.device_ns
                return point.host_ns + since_ns + gained_ns * since_ns // span_ns
            after = point
        # Whole instants exceed a float's precision, so only the drift's part is computed in one.
        since_ns = device_ns - after.device_ns
        return after.host_ns + since_ns + round(since_ns * self.drift)

    def _newest(self) -> _Point:
        if not self._points:
            raise ValueError("no anchor yet: nothing is known about the device's clock")
        return self._points[-1]

    def _growth(self, age_ns: int) -> int:
        """Return by how much the map's error grows in ``age_ns`` after the newest anchor."""
        return math.ceil(age_ns * self._drift_error + WANDER * age_ns * age_ns / 2)

    def _learn(self, point: _Point, age_ns: int) -> None:
        """Estimate the drift over the span with the best bound: errors spoil short spans, and wander long ones."""
        drift, drift_error = self.drift, self._drift_error + WANDER * age_ns
        for old in self._points:
            span_ns = point.device_ns - old.device_ns
            error = (point.error_ns + old.error_ns) / span_ns + WANDER * span_ns / 2
            if error < drift_error:
                drift = (point.host_ns - old.host_ns - span_ns) / span_ns
                drift_error = error
        self.drift, self._drift_error = drift, drift_error


FIRST_NS = 10_000_000
"""Time from the first anchor to the second."""
USUAL_NS = 1_000_000_000
"""Time between anchors, once the drift is known."""
RETRY_NS = 100_000_000
"""Time until the next try, after one without an anchor."""
FORGET_NS = 8_000_000_000
"""After so long without an anchor, the drift must be measured again."""


class Renewals:
    """Decides when to take the next anchor.

    Spans double up to :data:`USUAL_NS`: until the drift is known, the map is accurate only shortly after
    its newest anchor.
    """

    def __init__(self) -> None:
        self._span_ns = FIRST_NS
        self._due_ns = 0
        self._taken_ns = 0

    def due(self, host_ns: int) -> bool:
        """Return whether the next anchor is due."""
        return host_ns >= self._due_ns

    def lapsed(self, host_ns: int) -> bool:
        """Return whether the last anchor is too old to measure the drift since."""
        return host_ns - self._taken_ns > FORGET_NS

    def taken(self, host_ns: int) -> None:
        """Note that an anchor was taken."""
        if self.lapsed(host_ns):
            self._span_ns = FIRST_NS
        self._taken_ns = host_ns
        self._due_ns = host_ns + self._span_ns
        self._span_ns = min(2 * self._span_ns, USUAL_NS)

    def failed(self, host_ns: int) -> None:
        """Note that taking an anchor failed."""
        self._due_ns = host_ns + min(RETRY_NS, self._span_ns)


class Tightness:
    """Tracks how narrow a try for an anchor can be, so that a try that is about as good as the best ends the search."""

    def __init__(self) -> None:
        self._best_ns = 0

    def good_enough(self, width_ns: int) -> bool:
        """Return whether a better try is unlikely; False for the first ones, which have nothing to compare with."""
        return 4 * width_ns <= 5 * self._best_ns

    def taken(self, width_ns: int) -> None:
        """Record the width of the best of several tries. The overall best fades, because machines change speed."""
        faded_ns = self._best_ns + self._best_ns // 64
        self._best_ns = min(width_ns, faded_ns) if faded_ns else width_ns


class AnchoredClock(ABC):
    """A device's clock in host time, by anchors that are renewed about once a second."""

    def __init__(self, reading_error_ns: int) -> None:
        """Begin without an anchor.

        Args:
            reading_error_ns: largest error of the device's own instants.
        """
        self._reading_error_ns = reading_error_ns
        self._renewals = Renewals()
        self._map = HostMap()
        self._tightness = Tightness()

    @property
    def ready(self) -> bool:
        """Whether instants can be mapped."""
        return self._map.ready

    @property
    def error_ns(self) -> int:
        """Largest error of ``to_host``, for instants until one second after the newest anchor."""
        return self._map.error_ns + self._reading_error_ns

    @property
    def passed_over(self) -> int:
        """Number of anchors that were skipped because they contradict the others."""
        return self._map.passed_over

    def renew_if_due(self, host_ns: int) -> None:
        """Renew the anchor if it is about a second old. Call this once per step, before mapping instants."""
        if self._renewals.due(host_ns):
            self.renew()

    @abstractmethod
    def renew(self) -> bool:
        """Take a new anchor; return whether that worked. Never while a graph is being captured."""
