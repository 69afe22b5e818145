"""How long a test waits for what must happen: one limit for all tests, stretched by what the machine is busy with.

Such a limit only ends a test whose condition will never hold. A test that passes never waits for it, so it may be
generous; a test that needs a time wants a condition instead (:func:`eventually`). No test sleeps in the hope that
something has happened by then. The limit of a whole test (``timeout`` in pyproject.toml) is longer than any of these.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache

_QUIET_S = 120.0
"""On a quiet machine of the speed that the project was written on."""
_LOOP_S = 0.05
"""CPU time of :func:`_slowness`'s loop on that machine."""
_MOST = 5.0
"""A machine that is slower, or busier, than this many times is given up."""


def patience(seconds: float = _QUIET_S) -> float:
    """Return the seconds to wait for what takes far less than ``seconds`` on a quiet machine."""
    waiting_for_a_core = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return seconds * min(_MOST, _slowness() * max(1.0, waiting_for_a_core))


@cache
def _slowness() -> float:
    """Return how many times slower this machine computes, 1 where it is faster."""
    began = time.process_time()
    for _ in range(1_000_000):
        pass
    return max(1.0, (time.process_time() - began) / _LOOP_S)


def eventually(condition: Callable[[], object], what: str, *, between_s: float = 0.01) -> None:
    """Return as soon as ``condition`` holds; fail with what was waited for if it never does."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < _QUIET_S or waited < patience(), f"waited {waited:.0f} s in vain for {what}"
        time.sleep(between_s)
