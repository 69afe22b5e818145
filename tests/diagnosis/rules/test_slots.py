"""Copies into a buffer whose layer has not run are found."""

from __future__ import annotations

from dataclasses import replace

from swtrace.diagnosis.finding import Level
from tests.support.offloaded import offloaded
from tests.support.simulated_pull import simulate_pull
from tests.support.verdicts import even, finding, judge, kinds


def test_a_ring_that_the_prefetch_step_does_not_divide_collides_where_it_wraps_around() -> None:
    """The last layer runs with the weights of the first, and the advice names a prefetch step that divides."""
    found = finding(offloaded(layers=13, k=2), "slot_collision")
    assert found.level is Level.BAD
    assert found.layer == 12
    assert "layer 0 is copied into the buffer of layer 12 before layer 12 has run" in found.sentence
    assert "the output is wrong" in found.sentence
    assert found.evidence[0].startswith(
        "Buffer 0: layer 0 was copied between the copy of layer 12 and its forward, in "
    )
    assert "vllm#54975" in found.advice
    assert "`--offload-prefetch-step 1`" in found.advice
    assert found.numbers["steps"] == found.numbers["looked_steps"] > 16


def test_other_rings_do_not_collide() -> None:
    """Neither a ring that is divided, nor a series that is no offload."""
    assert "slot_collision" not in kinds(offloaded(layers=12, k=2))
    schedule = simulate_pull(layers=13, k=2, steps=(24, 24, 24), compute=even(1_000_000), copy=even(300_000))
    assert schedule.infos[0] == replace(schedule.infos[0], kind="pull")
    assert "slot_collision" not in kinds(judge(schedule))
