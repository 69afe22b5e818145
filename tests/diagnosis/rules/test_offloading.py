"""No advice leads a vLLM whose slots collide to a prefetch step with which it gives wrong output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import offloading_verdict

STALLED = Plan(layers=26, steps=12), Durations(copy_ns=1_500_000)
JITTER = Plan(group_size=1, prefetch_step=2, steps=12), Durations(copy_ns=980_000)
SYNCHRONOUS = Plan(group_size=4, num_in_group=3, steps=12), Durations(compute_ns=10_000)
PRIME = Plan(layers=28, group_size=4, num_in_group=1, steps=12), Durations(compute_ns=100_000)
LARGER = "a larger `--offload-prefetch-step`"


@pytest.mark.parametrize(
    ("plan", "durations", "advised"),
    [
        (*JITTER, "`--offload-prefetch-step 3`, which divides the 24 offloaded layers, as this vLLM needs"),
        (*SYNCHRONOUS, "`--offload-prefetch-step 2`, which divides the 18 offloaded layers, as this vLLM needs"),
    ],
)
def test_where_slots_collide_the_next_prefetch_step_that_divides_is_named(
    tmp_path: Path, plan: Plan, durations: Durations, advised: str
) -> None:
    assert _advises(tmp_path / "right", plan, durations, LARGER)
    collides = replace(plan, colliding=True)
    assert _advises(tmp_path / "collides", collides, durations, advised)
    assert not _advises(tmp_path / "again", collides, durations, LARGER)


@pytest.mark.parametrize(("plan", "durations"), [STALLED, PRIME])
def test_where_none_divides_none_is_named(tmp_path: Path, plan: Plan, durations: Durations) -> None:
    """13 or 7 layers, of which 1 is copied ahead."""
    assert _advises(tmp_path / "right", plan, durations, "--offload-prefetch-step")
    collides = replace(plan, colliding=True)
    assert _advises(tmp_path / "collides", collides, durations, "--offload-num-in-group")
    assert not _advises(tmp_path / "again", collides, durations, "--offload-prefetch-step")


def _advises(folder: Path, plan: Plan, durations: Durations, text: str) -> bool:
    return any(text in found.advice for found in offloading_verdict(folder, plan, durations).findings)
