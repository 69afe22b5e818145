"""Host memory that is not pinned is named whether or not anything stalls, with its cost if records show it."""

from __future__ import annotations

import pytest

from swtrace.diagnosis.finding import Level
from tests.support.offloaded import offloaded
from tests.support.verdicts import even, finding, kinds


@pytest.mark.parametrize("k", [0, 1, 2])
def test_it_is_named_whatever_stalls(k: int) -> None:
    found = finding(offloaded(pinned=False, k=k), "unpinned_memory")
    assert found.level is Level.WARNING
    assert "VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY" in found.advice
    assert "VLLM_WSL2_ENABLE_PIN_MEMORY" in found.advice


def test_copies_during_which_the_device_had_work_cost_nothing() -> None:
    """A wait begins during each copy, so no host was blocked by it."""
    found = finding(offloaded(pinned=False, compute=even(100_000), copy=even(200_000)), "unpinned_memory")
    assert not found.numbers
    assert found.sentence.endswith("so steps take longer without a stall.")


def test_copies_during_which_it_had_none_cost_their_time() -> None:
    """The next wait begins one compute after the issue: after the copy. Of 12 layers, 8 are copied."""
    found = finding(offloaded(pinned=False, compute=even(1_000_000), copy=even(300_000)), "unpinned_memory")
    assert found.numbers["share"] == pytest.approx(8 * 300_000 / (12 * 1_000_000))
    assert "% of step time" in found.sentence


def test_without_steps_it_is_named_without_a_cost() -> None:
    found = finding(offloaded(pinned=False, steps=(2, 2, 2)), "unpinned_memory")
    assert not found.numbers


def test_pinned_memory_is_no_finding() -> None:
    assert "unpinned_memory" not in kinds(offloaded())
