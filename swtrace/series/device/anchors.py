"""The anchors of a device's clock: when to take them, and how good they are.

:mod:`swtrace.trace.clock_map` maps the device's clock to the host's by means of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from swtrace.trace.clock_map import ClockMap

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
        self._map = ClockMap()
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
