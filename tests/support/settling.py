"""Waiting until a roster knows what a test wrote."""

from __future__ import annotations

import time
from collections.abc import Callable

from swtrace.observing import Observation, Roster
from tests.support.patience import patience


def settled(roster: Roster, steps: int, *, ended: bool = False) -> Observation:
    """Poll until so many finished steps are known; if ``ended``, also until everything of closed rings was read."""
    deadline = time.monotonic() + patience()
    while time.monotonic() < deadline:
        more = roster.poll()
        seen = roster.observe()
        known = any(len(each) >= steps for each in seen.history.values())
        if known and not (ended and (more or not all(rank.ring.closed for rank in seen.ranks))):
            return seen
        time.sleep(0.02)
    raise AssertionError(f"never knew {steps} steps: {roster.observe().origins}")


def until(condition: Callable[[], bool], step: Callable[[], object]) -> None:
    """Repeat a step until a condition holds."""
    deadline = time.monotonic() + patience()
    while not condition():
        assert time.monotonic() < deadline
        step()
