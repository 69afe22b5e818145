"""Maps one clock to another: pure arithmetic over anchors.

An anchor is one instant read on both clocks: while the mapped clock showed ``at_ns``, the other one was between
``low_ns`` and ``high_ns``. Drift is assumed to change by at most :data:`WANDER`. Then a new anchor and the prediction
from earlier ones each bound the true instant, and the map keeps the intersection. So an imprecise anchor never widens
a bound, and every bound holds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

DRIFT_LIMIT = 200e-6
"""Largest drift between two clocks before any is measured; 10 to 100 us per second are usual."""
WANDER = 0.5e-6 * 1e-9
"""Largest change of drift per ns: half a microsecond per second, each second."""

_HORIZON_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Point:
    """An instant on both clocks, narrowed by the earlier anchors."""

    at_ns: int
    there_ns: int
    error_ns: int


class ClockMap:
    """Maps the instants of a clock to another clock.

    Args:
        points: How many narrowed anchors are kept to measure the drift.
        apart_ns: Least time between them. An anchor that follows sooner replaces the one before, which it includes.
    """

    def __init__(self, points: int = 16, apart_ns: int = 0) -> None:
        self.drift = 0.0
        """Seconds that the other clock gains per second of the mapped one."""
        self.passed_over = 0
        """Number of anchors that were skipped because they contradict the others."""
        self.restarts = 0
        """How often the clocks were found to have changed, so that all earlier anchors were forgotten."""
        self._apart_ns = apart_ns
        self._drift_error = DRIFT_LIMIT
        self._doubted = False
        self._points: deque[_Point] = deque(maxlen=points)

    @property
    def ready(self) -> bool:
        """Whether there is an anchor."""
        return bool(self._points)

    @property
    def error_ns(self) -> int:
        """Largest error of :meth:`there` until one second after the newest anchor."""
        return self.error_at(self._newest().at_ns + _HORIZON_NS)

    def error_at(self, at_ns: int) -> int:
        """Return the largest error of :meth:`there` at an instant, even between or before the anchors."""
        before, after = self._around(at_ns)
        if before is after:
            return after.error_ns + self._growth(at_ns - after.at_ns)
        if before is not None:
            span_ns = after.at_ns - before.at_ns
            return max(before.error_ns, after.error_ns) + math.ceil(WANDER * span_ns * span_ns / 8)
        # The drift is that at the newest anchor; at the oldest one it was different.
        age_ns = after.at_ns - at_ns
        return after.error_ns + self._growth(age_ns) + math.ceil(WANDER * (self._newest().at_ns - after.at_ns) * age_ns)

    def add(self, at_ns: int, low_ns: int | None, high_ns: int | None) -> bool:
        """Add an anchor that is newer than the others. Return whether it was used.

        An anchor that contradicts the others is skipped. If the next one does too, the clocks have changed (a
        suspended machine, a clock that is being slewed), and the map restarts from it.

        Args:
            at_ns: An instant of the mapped clock.
            low_ns: The other clock showed this or more then; None if unknown, which the first anchor must not be.
            high_ns: The other clock showed this or less then; None if unknown.
        """
        if self._points:
            newest = self._points[-1]
            age_ns = at_ns - newest.at_ns
            expected_ns = self.there(at_ns)
            slack_ns = self.error_at(at_ns)
            least_ns, most_ns = expected_ns - slack_ns, expected_ns + slack_ns
            least_ns = least_ns if low_ns is None else max(least_ns, low_ns)
            most_ns = most_ns if high_ns is None else min(most_ns, high_ns)
            if age_ns <= 0 or least_ns > most_ns:
                if not self._doubted:
                    self._doubted = True
                    self.passed_over += 1
                    return False
                self.restart()
                self.restarts += 1
            else:
                self._doubted = False
                self._put(_Point(at_ns, (least_ns + most_ns) // 2, (most_ns - least_ns + 1) // 2), age_ns)
                return True
        if low_ns is None or high_ns is None or low_ns > high_ns:
            return False
        self._doubted = False
        self._points.append(_Point(at_ns, (low_ns + high_ns) // 2, (high_ns - low_ns + 1) // 2))
        return True

    def restart(self) -> None:
        """Forget all anchors. The drift is kept as an estimate."""
        self._points.clear()
        self._drift_error = DRIFT_LIMIT

    def there(self, at_ns: int) -> int:
        """Return the other clock's instant at an instant of the mapped one, even between or before the anchors.

        Raises:
            ValueError: there is no anchor yet.
        """
        before, after = self._around(at_ns)
        if before is not None and before is not after:
            span_ns = after.at_ns - before.at_ns
            gained_ns = after.there_ns - before.there_ns - span_ns
            since_ns = at_ns - before.at_ns
            return before.there_ns + since_ns + gained_ns * since_ns // span_ns
        # Whole instants exceed a float's precision, so only the drift's part is computed in one.
        since_ns = at_ns - after.at_ns
        return after.there_ns + since_ns + round(since_ns * self.drift)

    def _around(self, at_ns: int) -> tuple[_Point | None, _Point]:
        """Return the points before and after an instant: None and the oldest, or twice the newest, if it is outside."""
        after = self._newest()
        for point in reversed(self._points):
            if point.at_ns <= at_ns:
                return point, after
            after = point
        return None, after

    def _newest(self) -> _Point:
        if not self._points:
            raise ValueError("no anchor yet: nothing is known about the clock")
        return self._points[-1]

    def _growth(self, age_ns: int) -> int:
        """Return by how much the map's error grows in ``age_ns`` after the newest anchor."""
        return math.ceil(age_ns * self._drift_error + WANDER * age_ns * age_ns / 2)

    def _put(self, point: _Point, age_ns: int) -> None:
        """Store a point that follows the newest one after ``age_ns``."""
        points = self._points
        if len(points) > 1 and points[-1].at_ns - points[-2].at_ns < self._apart_ns:
            points[-1] = point
            self._drift_error += WANDER * age_ns
            return
        self._learn(point, age_ns)
        points.append(point)

    def _learn(self, point: _Point, age_ns: int) -> None:
        """Estimate the drift over the span with the best bound: errors spoil short spans, and wander long ones."""
        drift, drift_error = self.drift, self._drift_error + WANDER * age_ns
        for old in self._points:
            span_ns = point.at_ns - old.at_ns
            error = (point.error_ns + old.error_ns) / span_ns + WANDER * span_ns / 2
            if error < drift_error:
                drift = (point.there_ns - old.there_ns - span_ns) / span_ns
                drift_error = error
        self.drift, self._drift_error = drift, drift_error
