"""Copies into a buffer whose layer has not run are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from swtrace.diagnosis.finding import Level
from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import offloading_verdict
from tests.support.simulated_pull import simulate_pull
from tests.support.verdicts import even, finding, judge, kinds

COLLIDING = Plan(layers=26, prefetch_step=2, steps=24, colliding=True)
"""13 layers in 2 buffers, and the next copy as vLLM chose it before vllm#54975."""


def test_a_ring_that_the_prefetch_step_does_not_divide_collides_where_it_wraps_around(tmp_path: Path) -> None:
    """The last layer runs with the weights of the first, and the advice names a prefetch step that divides."""
    found = finding(offloading_verdict(tmp_path, COLLIDING, Durations()), "slot_collision")
    assert found.level is Level.BAD
    assert found.layer == 25
    assert "layer 1 is copied into the buffer of layer 25 before layer 25 has run" in found.sentence
    assert "the output is wrong" in found.sentence
    assert found.evidence[0].startswith(
        "Buffer 0: layer 1 was copied between the copy of layer 25 and its forward, in "
    )
    assert "vllm#54975" in found.advice
    assert "`--offload-prefetch-step 1`" in found.advice
    assert found.numbers["steps"] == found.numbers["looked_steps"] > 16


def test_other_rings_do_not_collide(tmp_path: Path) -> None:
    """Neither a ring that is divided, nor one that wraps around as vLLM does now, nor a series that is no offload."""
    divided, mended = replace(COLLIDING, layers=24), replace(COLLIDING, colliding=False)
    for name, plan in (("divided", divided), ("mended", mended)):
        assert "slot_collision" not in kinds(offloading_verdict(tmp_path / name, plan, Durations()))
    schedule = simulate_pull(layers=13, k=2, steps=(24, 24, 24), compute=even(1_000_000), copy=even(300_000))
    assert schedule.infos[0] == replace(schedule.infos[0], kind="pull")
    assert "slot_collision" not in kinds(judge(schedule))
