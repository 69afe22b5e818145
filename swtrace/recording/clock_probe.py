"""Probe the clock of a daemon's host over HTTP, in a thread of its own.

A reply that comes between two readings of this process's clock bounds what the other clock showed then. The daemon says
how long it worked on the reply, and that time does not count. Each probe is the narrowest of several round trips. It
says nothing about the ranks, so it does not confuse a late rank with a clock that is ahead.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from itertools import chain, repeat

from swtrace.credentials import Credentials
from swtrace.errors import AnswerError
from swtrace.http_client import KeptConnection
from swtrace.ledger.alignment import Probe
from swtrace.trace.clock_map import DRIFT_LIMIT
from swtrace.trace.clocks import now_ns, own_clock

PATH = "/api/v1/clock"
ROUND_TRIPS = 12
"""Most round trips of a probe. On a host that is busy, few are not held up."""
_ENOUGH = 1.5
"""A round trip is narrow enough if it is at most so many times as wide as the narrowest one so far."""
_FIRST_S = (0.1, 0.2, 0.4)
"""Pauses after the first probes, which are short because the drift between the clocks is still unknown."""
_EVERY_S = 1.0
_AGAIN_S = 10.0
"""How long a daemon that does not answer is left alone."""
_TIMEOUT_S = 2.0


class ClockProbes:
    """Probes a daemon's clock about once a second, until it is closed or the daemon has this process's clock.

    Args:
        address: ``host:port`` or URL.
        credentials: What to show to the daemon, and to trust.
        take: Receives each probe, in the probing thread. It must not block.
    """

    def __init__(self, address: str, credentials: Credentials, take: Callable[[Probe], None]) -> None:
        self._connection = KeptConnection(address, timeout_s=_TIMEOUT_S, credentials=credentials)
        self._take = take
        self._own = own_clock()
        self._narrowest_ns = 0
        self._closing = threading.Event()
        threading.Thread(target=self._run, name=f"swtrace-clock-{address}", daemon=True).start()

    def close(self) -> None:
        """Stop probing."""
        self._closing.set()
        self._connection.close()

    def _run(self) -> None:
        pauses_s = chain(_FIRST_S, repeat(_EVERY_S))
        while not self._closing.is_set():
            try:
                probe = self._probe()
            except (AnswerError, ValueError, LookupError, TypeError, RecursionError):
                # Such as a daemon without this path. Broadcasts bound the offset then.
                self._closing.wait(_AGAIN_S)
                continue
            if probe.clock == self._own:
                break
            if not self._closing.is_set():
                self._take(probe)
            self._closing.wait(next(pauses_s))
        self._connection.close()

    def _probe(self) -> Probe:
        """Return the narrowest of several round trips."""
        best = self._round_trip()
        for _ in range(ROUND_TRIPS - 1):
            if _width_ns(best) <= _ENOUGH * self._narrowest_ns or best.clock == self._own:
                break
            best = min(best, self._round_trip(), key=_width_ns)
        self._narrowest_ns = min(self._narrowest_ns or _width_ns(best), _width_ns(best))
        return best

    def _round_trip(self) -> Probe:
        low_ns = now_ns()
        answer = self._connection.get(PATH)
        high_ns = now_ns()
        document = json.loads(answer)
        at_ns = document["monotonic_ns"]
        worked_ns = at_ns - document["arrived_ns"]
        least_ns = worked_ns - math.ceil(abs(worked_ns) * DRIFT_LIMIT)
        return Probe.checked(document["clock"], self._own, at_ns, low_ns + least_ns, high_ns)


def _width_ns(probe: Probe) -> int:
    return probe.high_ns - probe.low_ns
