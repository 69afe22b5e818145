"""No advice leads a vLLM whose slots collide to a prefetch step with which it gives wrong output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import offloading_verdict

STALLED = Plan(layers=26, steps=12), Durations(copy_ns=1_500_000)
"""13 layers: no larger prefetch step divides them, so none is proposed where slots collide."""
JITTER = Plan(group_size=1, prefetch_step=2, steps=12), Durations(copy_ns=980_000)
SYNCHRONOUS = Plan(group_size=4, num_in_group=3, steps=12), Durations(compute_ns=10_000)


@pytest.mark.parametrize(
    ("plan", "durations", "collides"),
    [(*STALLED, True), (*JITTER, True), (*JITTER, False), (*SYNCHRONOUS, True), (*SYNCHRONOUS, False)],
)
def test_a_larger_prefetch_step_is_qualified_where_slots_collide(
    tmp_path: Path, plan: Plan, durations: Durations, *, collides: bool
) -> None:
    said = offloading_verdict(tmp_path, replace(plan, colliding=collides), durations)
    advice = [text for text in (found.advice for found in said.findings) if "offload-prefetch-step" in text]
    divides = f"a number that divides the {len(plan.offloaded())} offloaded layers (vllm#54975)"
    general = [text for text in advice if "a larger `--offload-prefetch-step`" in text or "` or more" in text]
    assert general
    assert all((divides in text) == collides for text in general)
