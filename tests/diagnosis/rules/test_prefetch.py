"""Another prefetch step is proposed only where it helps."""

from __future__ import annotations

import random

import pytest

from tests.support.verdicts import finding, judged


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
