"""Another prefetch step is proposed only where it helps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import offloading_verdict
from tests.support.verdicts import finding, judged, kinds


def test_a_larger_prefetch_step_is_proposed_where_it_helps() -> None:
    """Uneven compute at k=0: the proposed prefetch step leaves the stall that a run with it really has."""

    def compute(rank: int, step: int, position: int) -> int:
        return random.Random(f"{rank} {step} {position}").randint(200_000, 1_800_000)  # noqa: S311 - reproducible

    said = judged(k=0, compute=compute, occupancy=500_000)
    proposed = finding(said, "prefetch_step")
    k = int(proposed.numbers["prefetch_step"])
    truth = judged(k=k, compute=compute, occupancy=500_000).headline.numbers["stall_ratio"]

    assert k > 0
    assert proposed.numbers["stall_ratio"] == pytest.approx(truth, abs=0.02)
    assert f"Set SWTRACE_PREFETCH_STEP={k};" in proposed.advice


def test_for_offloaded_layers_vllms_prefetch_step_is_proposed(tmp_path: Path) -> None:
    """With one buffer, a copy can only begin when the layer before has run; with two, it hides."""
    one, two = (Plan(group_size=1, prefetch_step=k, steps=30) for k in (1, 2))
    proposed = finding(offloading_verdict(tmp_path / "one", one, Durations()), "prefetch_step")
    assert proposed.numbers["prefetch_step"] == 2
    assert proposed.numbers["stall_ns_per_step"] == 0
    assert "--offload-prefetch-step 2 " in proposed.advice
    assert "prefetch_step" not in kinds(offloading_verdict(tmp_path / "two", two, Durations()))


def test_a_vllm_whose_slots_collide_gets_no_advice_that_gives_wrong_output(tmp_path: Path) -> None:
    """Before vllm#54975, 2 to 4 buffers for 25 layers collide: the next number that divides is proposed."""
    plan = Plan(layers=25, group_size=1, prefetch_step=1, steps=30, colliding=True)
    assert finding(offloading_verdict(tmp_path, plan, Durations()), "prefetch_step").numbers["prefetch_step"] == 5


def test_for_offloaded_layers_a_larger_prefetch_step_may_not_help(tmp_path: Path) -> None:
    """Copies that take twice as long as compute keep the copy stream busy all the time, whenever they begin."""
    plan = Plan(group_size=1, prefetch_step=2, steps=30)
    found = finding(offloading_verdict(tmp_path, plan, Durations(copy_ns=2_000_000)), "prefetch_step_no_help")
    assert "offloading fewer layers" in found.advice


@pytest.mark.parametrize(
    "plan",
    [
        Plan(group_size=4, prefetch_step=1, steps=12),
        Plan(group_size=4, prefetch_step=6, steps=12),
        Plan(group_size=2, prefetch_step=5, steps=12),
        Plan(group_size=4, prefetch_step=7, steps=12),
        Plan(layers=8, group_size=8, prefetch_step=1, steps=12),
    ],
    ids=str,
)
def test_where_vllms_ring_wraps_copies_start_as_far_ahead_as_they_should(tmp_path: Path, plan: Plan) -> None:
    """A prefetch step that does not divide the ring, that is as long as it or longer, or one layer: no fault."""
    assert "effective_prefetch_step" not in kinds(offloading_verdict(tmp_path, plan, Durations(copy_ns=300_000)))
