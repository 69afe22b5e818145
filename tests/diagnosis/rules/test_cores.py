"""CPU time that was taken from ranks is reported per rank and per host."""

from __future__ import annotations

from typing import Any

import pytest

from swtrace.diagnosis.diagnosis import Verdict
from swtrace.ledger.planning.repair import Part, Repair
from tests.support.schedules import simulate, without_core
from tests.support.verdicts import finding, judge, kinds


def said_of(column: str, lost_us: dict[int, int], *, since: int = 0, every: int = 1) -> Verdict:
    """Return the verdict on ranks that lose time in steps of about 12 ms, and compute longer by it."""

    def lost(rank: int, step: int) -> int:
        return lost_us.get(rank, 0) * (step >= since and step % every == 0)

    shape: dict[str, Any] = {"ranks": 4, "layers": 12, "k": 1, "steps": 40, "occupancy": 300_000, "queue": "receiver"}
    schedule = simulate(**shape, compute=lambda rank, step, _position: 1_000_000 + lost(rank, step) * 1000 // 12)
    return judge(without_core(schedule, column, lost))


def test_a_rank_that_waits_for_a_cpu_is_named() -> None:
    """With its share of step time, and what cores of its own would save."""
    said = finding(said_of("run_delay_us", {2: 2_000}), "cores_taken")

    assert said.ranks == (2,)
    assert said.numbers["run_delay_share"] == pytest.approx(2 / 14, abs=0.01)
    assert said.sentence == "Rank 2 waits for a CPU 14.3 % of step time while ready to run (2.00 ms per step)."
    assert said.repair == Repair(Part.DELAY, (2,))
    assert said.saving.share == pytest.approx(2 / 14, abs=0.02)


def test_it_says_since_when() -> None:
    """The step in which it began."""
    said = finding(said_of("run_delay_us", {2: 2_000}, since=24), "cores_taken")

    assert said.since_step == 24


def test_a_loss_that_has_just_begun_is_named() -> None:
    """After eight steps, however many healthy ones were before."""
    assert finding(said_of("run_delay_us", {2: 8_000}, since=32), "cores_taken").since_step == 32


def test_all_ranks_that_wait_are_named_the_worst_first() -> None:
    """One finding is about all of them."""
    said = finding(said_of("run_delay_us", {0: 2_000, 3: 3_000}), "cores_taken")

    assert said.ranks == (3, 0)
    assert said.sentence.startswith("Ranks 3, 0 wait for a CPU up to ")


def test_a_single_long_wait_is_no_pattern() -> None:
    """Not even if it is a tenth of all step time."""
    assert "cores_taken" not in kinds(said_of("run_delay_us", {2: 60_000}, every=39))


def test_steal_is_of_a_host() -> None:
    """All its ranks are named, because none of them can do anything about it."""
    said = finding(said_of("steal_us", dict.fromkeys(range(4), 2_000)), "steal")

    assert sorted(said.ranks) == [0, 1, 2, 3]
    assert said.sentence == "The hypervisor takes 14.3 % of step time from the processors of this host."
