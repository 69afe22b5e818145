"""Verdicts over simulated runs whose layers are copied from host memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swtrace.diagnosis.diagnosis import Verdict
from swtrace.trace.identity import H2D, Offload
from tests.support.simulated_pull import simulate_pull
from tests.support.verdicts import even, judge


def offloaded(*, group_size: int = 2, num_in_group: int = 1, pinned: bool = True, **shape: Any) -> Verdict:
    """Return the verdict over a simulated pull run, as if its copies were from host memory."""
    settings = {"layers": 12, "k": 1, "steps": (24, 24, 24), "compute": even(1_000_000), "copy": even(300_000)}
    schedule = simulate_pull(**{**settings, **shape})
    offload = Offload(group_size, num_in_group, 1 << 20, pinned)
    schedule.infos = [replace(info, kind=H2D, transport=H2D, offload=offload) for info in schedule.infos]
    return judge(schedule)
