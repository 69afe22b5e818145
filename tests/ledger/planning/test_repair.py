"""What a repair would save is what the same random numbers give without the trouble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.planner import FEWEST_STEPS
from swtrace.ledger.planning.repair import Part, Repair, Saving, saving, savings
from tests.support.feeding import feed, ledger
from tests.support.planning import LAYERS, ran, uneven
from tests.support.schedules import Schedule, simulate, without_core
from tests.support.simulated_contention import Sharing
from tests.support.simulated_pull import simulate_pull

Compute = Callable[[int, int, int], tuple[float, float]]
Slow = Callable[[int, int, int], float]


def slowed(group: Sharing, slow: Slow) -> Sharing:
    """Return a group whose computes take ``slow(rank, step, layer)`` times as long."""

    def compute(*of: int) -> tuple[float, float]:
        before, after = group.compute(*of)
        return before * slow(*of), after * slow(*of)

    return replace(group, compute=compute)


def held_up(group: Sharing, slow: Slow) -> Sharing:
    """Return a group whose transfers take ``slow(receiver, step, layer)`` times as long."""
    return replace(group, transfer=lambda *of: group.transfer(*of) * slow(*of))


def history(schedule: Schedule) -> tuple[StepFacts, ...]:
    """Return the steps of a schedule."""
    made = ledger(schedule)
    feed(made, schedule)
    return made.history(made.facts().series[0].key)


def gained(before: tuple[StepFacts, ...], after: tuple[StepFacts, ...]) -> float:
    """Return the share of the slowest rank's mean step time that the second run lacks."""
    one, other = (np.mean([step.duration_ns for step in steps[4:]], axis=0).max() for steps in (before, after))
    return float(1 - other / one)


def close(said: Saving | None, truth: float, within: float = 0.03) -> bool:
    """Return whether a saving is near the truth, which is in its interval."""
    assert said is not None
    assert 0.0 <= said.low <= said.share <= said.high <= 1.0
    return abs(said.share - truth) < within and said.low <= truth <= said.high


COMPUTES: list[tuple[Slow, tuple[int, ...]]] = [
    (lambda rank, _step, _layer: 1 + 0.4 * (rank == 1), (1,)),
    (lambda rank, step, _layer: 1 + 2.0 * (rank == 1 and step % 5 == 0), (1,)),
    (lambda rank, _step, layer: 1 + 1.5 * (rank == 2 and layer < LAYERS // 3), (2,)),
    (lambda rank, _step, _layer: 1 + 0.5 * (rank in {0, 3}), (0, 3)),
]


@pytest.mark.parametrize(("slow", "ranks"), COMPUTES, ids=["constant", "intermittent", "some layers", "two ranks"])
@pytest.mark.parametrize("transfer_ns", [300_000, 900_000])
def test_ranks_that_compute_like_the_others(slow: Slow, ranks: tuple[int, ...], transfer_ns: float) -> None:
    """Whatever the pattern, whether broadcasts hide or not, and if several ranks are slow together."""
    group = uneven(transfer_ns=transfer_ns, ranks=4)
    before, after = ran(slowed(group, slow)).steps, ran(group).steps

    truth = gained(before, after)
    assert truth > 0.05
    assert close(saving(before, Repair(Part.COMPUTE, ranks)), truth)


@pytest.mark.parametrize("prefetch_step", [1, 3])
def test_transfers_to_a_rank_that_take_what_those_to_the_others_do(prefetch_step: int) -> None:
    """A slow link of one receiver."""
    group = uneven(ranks=4, transfer_ns=700_000)
    slow = held_up(group, lambda rank, _step, _layer: 1 + 2 * (rank == 2))
    before, after = (ran(each, prefetch_step=prefetch_step).steps for each in (slow, group))

    truth = gained(before, after)
    assert truth > 0.1
    assert close(saving(before, Repair(Part.LINK, (2,))), truth, within=0.04)


def test_of_two_ranks_a_slow_direction_is_compared_with_the_other() -> None:
    """There is no other receiver of the same transfer."""
    group = uneven(ranks=2)
    slow = held_up(group, lambda rank, _step, _layer: 1 + 2 * (rank == 1))
    before, after = ran(slow).steps, ran(group).steps

    assert close(saving(before, Repair(Part.LINK, (1,))), gained(before, after))


def test_transfers_from_a_rank_that_take_what_those_from_the_others_do() -> None:
    """A slow source."""
    group = uneven(ranks=4, transfer_ns=700_000)
    slow = held_up(group, lambda _rank, _step, layer: 1 + 3 * (layer % 4 == 3))
    before, after = ran(slow).steps, ran(group).steps

    truth = gained(before, after)
    assert truth > 0.05
    assert close(saving(before, Repair(Part.SOURCE, (3,))), truth)


def test_transfers_that_take_no_time() -> None:
    """The most that a faster transport gives."""
    group = uneven(ranks=3, transfer_ns=1_500_000)
    before, after = ran(group).steps, ran(replace(group, transfer=lambda *_of: 1.0)).steps

    assert close(saving(before, Repair(Part.CHANNEL)), gained(before, after))


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("barrier", [True, False])
def test_ranks_that_enter_with_the_others(*, barrier: bool, every: int) -> None:
    """Late in each step, or only in some, with and without a barrier between steps."""
    shape = simulated(barrier=barrier)
    late = {**shape, "gap": lambda rank, step: 500_000 + 3_000_000 * every * (rank == 1 and step % every == 0)}
    before, after = (history(simulate(**each)) for each in (late, shape))

    truth = gained(before, after)
    assert truth > 0.05
    assert close(saving(before, Repair(Part.ENTRY, (1,))), truth)


@pytest.mark.parametrize("barrier", [True, False])
def test_ranks_that_never_wait_for_a_core(*, barrier: bool) -> None:
    """Their run delay is what they compute longer. At a barrier, they then wait for the others, and not in the step."""
    shape = simulated(barrier=barrier)
    lost_us = 4_000
    slow = {**shape, "compute": lambda rank, *of: shape["compute"](rank, *of) + 1000 * lost_us // LAYERS * (rank == 2)}
    before = history(without_core(simulate(**slow), "run_delay_us", lambda rank, _step: lost_us * (rank == 2)))

    truth = gained(before, history(simulate(**shape)))
    assert truth > 0.15
    assert close(saving(before, Repair(Part.DELAY, (2,))), truth)


def simulated(**shape: Any) -> dict[str, Any]:
    """Return a group of three whose ranks vary, for :func:`~tests.support.schedules.simulate`."""

    def compute(rank: int, step: int, position: int) -> int:
        return 900_000 + 2_000 * ((7 * rank + 13 * step + 29 * position) % 101)

    return {
        "ranks": 3,
        "layers": LAYERS,
        "k": 1,
        "steps": 30,
        "queue": "receiver",
        "occupancy": 300_000,
        "compute": compute,
        "gap": lambda _rank, _step: 500_000,
        **shape,
    }


@pytest.mark.parametrize("part", [Part.COMPUTE, Part.DELAY, Part.ENTRY, Part.LINK, Part.SOURCE])
def test_where_nothing_is_wrong_nothing_is_saved(part: Part) -> None:
    """Ranks that are alike gain nothing from becoming like the others."""
    steps = history(simulate(**simulated(compute=lambda *_of: 1_000_000, occupancy=1_200_000)))

    said = saving(steps, Repair(part, (1,)))
    assert said is not None
    assert said.share == pytest.approx(0.0, abs=0.002)
    assert said.low == 0.0


def test_a_slow_rank_that_a_slower_one_hides_saves_nothing() -> None:
    """Off the critical path, a repair gives nothing; together with the slower rank's, it does."""
    group = slowed(uneven(ranks=4), lambda rank, _step, _layer: {1: 1.3, 2: 2.0}.get(rank, 1.0))
    alone, worst, both = savings(ran(group).steps, [Repair(Part.COMPUTE, ranks) for ranks in ((1,), (2,), (1, 2))])

    assert alone is not None
    assert worst is not None
    assert both is not None
    assert alone.share < 0.02
    assert worst.share > 0.2
    assert both.share > worst.share + 0.05


def test_a_rank_that_pulls_gains_from_its_own_transfers() -> None:
    """Ranks of a pull series do not wait for each other: the saving is that of the rank that gains most."""
    shape: dict[str, Any] = {"layers": LAYERS, "k": 1, "steps": (30, 30, 30), "compute": lambda *_of: 400_000}
    before = history(simulate_pull(**shape, copy=lambda rank, *_of: 300_000 + 1_000_000 * (rank == 1)))
    after = history(simulate_pull(**shape, copy=lambda *_of: 1))

    def mean(steps: tuple[StepFacts, ...]) -> float:
        return float(np.mean([step.duration_ns[1] for step in steps if step.of_rank == 1][4:]))

    assert close(saving(before, Repair(Part.CHANNEL)), 1 - mean(after) / mean(before))


def test_a_saving_needs_steps_and_something_to_compare_with() -> None:
    """Otherwise it is unknown, and not zero."""
    steps = ran(uneven(ranks=2)).steps

    assert saving(steps[-FEWEST_STEPS:], Repair(Part.COMPUTE, (1,))) is None
    assert saving(steps, Repair(Part.COMPUTE)) is None
    assert saving(steps, Repair(Part.LINK, (0, 1))) is None
    assert saving(steps, Repair(Part.COMPUTE, (1,))) is not None
