"""Host memory that is not pinned is named although nothing stalls, with its cost if records show it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Level
from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import offloading_ledger, offloading_verdict
from tests.support.verdicts import finding, kinds


@pytest.mark.parametrize("prefetch_step", [1, 2, 3])
def test_it_is_named_although_nothing_stalls(tmp_path: Path, prefetch_step: int) -> None:
    plan = Plan(prefetch_step=prefetch_step, pinned=False, steps=12)
    said = offloading_verdict(tmp_path, plan, Durations())
    assert "hidden" in kinds(said)
    found = finding(said, "unpinned_memory")
    assert found.level is Level.WARNING
    assert "VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY" in found.advice
    assert "VLLM_WSL2_ENABLE_PIN_MEMORY" in found.advice


def test_a_copy_that_blocks_the_host_costs_its_time(tmp_path: Path) -> None:
    """The device has no work while one of 12 copies runs: of a step, 12 of 300 us beside 24 computes of 1 ms."""
    plan, durations = Plan(pinned=False, steps=12), Durations(copy_ns=300_000)
    found = finding(offloading_verdict(tmp_path, plan, durations), "unpinned_memory")
    copies, computes = 12 * 300_000, 24 * 1_000_000
    assert found.numbers["blocked_ns_per_step"] == pytest.approx(copies, rel=1e-3)
    assert found.numbers["share"] == pytest.approx(copies / (copies + computes), rel=1e-3)
    assert "% of step time" in found.sentence


def test_copies_that_did_not_block_cost_nothing(tmp_path: Path) -> None:
    """The device reaches its next wait while a copy runs: the call returned early, as CUDA's may after staging."""
    plan = Plan(group_size=1, prefetch_step=2, steps=12)
    ledger = offloading_ledger(tmp_path, plan, Durations(copy_ns=1_500_000))
    (facts,) = ledger.facts().series
    (rank,) = facts.ranks
    assert rank.info.offload is not None
    pageable = replace(rank.info, offload=replace(rank.info.offload, pinned=False))
    said = verdict(replace(facts, ranks=(replace(rank, info=pageable),)), ledger.history(facts.key))
    found = finding(said, "unpinned_memory")
    assert not found.numbers
    assert found.sentence.endswith("so steps take longer without a stall.")


def test_without_steps_it_is_named_without_a_cost(tmp_path: Path) -> None:
    plan = Plan(pinned=False, steps=2)
    assert not finding(offloading_verdict(tmp_path, plan, Durations()), "unpinned_memory").numbers


def test_pinned_memory_is_no_finding(tmp_path: Path) -> None:
    assert "unpinned_memory" not in kinds(offloading_verdict(tmp_path, Plan(steps=12), Durations()))
