"""How long a rank may do one thing before it counts as hung."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swtrace.ledger.facts import StepFacts

SHORTEST_NS = 1_000_000_000
"""Pauses of garbage collection, of the allocator and of a busy host stay below this."""
UNWAITED_NS = 10_000_000_000
"""If no rank is seen to wait, nothing proves that another is late. All ranks may compile a new shape, or compute a long
prompt."""
WARM_UP_NS = 30_000_000_000
"""In the first steps a model is compiled and memory is allocated, on some ranks earlier than on others."""
WARM_UP_STEPS = 16
FACTOR = 8
"""A stretch without progress counts only if it is so many times as long as the longest one of the recent steps. Of 64
steps on several ranks that is the longest of thousands, so another that is twice as long is rare."""


def silence_ns(steps: Sequence[StepFacts], *, waited: bool = True, whole_steps: bool = False) -> int:
    """Return how long a stretch without progress must be to count as a hang.

    Args:
        steps: The last finished steps.
        waited: Whether another rank waits for the one that makes no progress.
        whole_steps: Whether progress is only seen at the end of a step, as on a device.
    """
    shortest = SHORTEST_NS if waited else UNWAITED_NS
    settled = [step for step in steps if step.step >= WARM_UP_STEPS]
    if not settled:
        return max(shortest, WARM_UP_NS)
    stretches = (int(step.duration_ns.max()) if whole_steps else longest_stretch_ns(step) for step in settled)
    return max(shortest, FACTOR * max(stretches))


def longest_stretch_ns(step: StepFacts) -> int:
    """Return the longest time in which a rank reached no layer in a step, or entered it later than another rank."""
    ended = step.ended
    if not ended.any():
        return 0
    begin, end, issued = step.begin_ns[ended, None], step.end_ns[ended, None], step.issued_ns[ended]
    within = step.present[ended] & (issued > begin) & (issued < end)
    instants = np.sort(np.hstack([begin, np.where(within, issued, begin), end]), axis=1)
    entry_ns = int(step.entry_skew_ns.max()) if step.entry_known else 0
    return max(int(np.diff(instants, axis=1).max()), entry_ns)
