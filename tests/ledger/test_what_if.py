"""The replay against the simulation that can be run with any prefetch step: the ideal channel knows the truth."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.what_if import what_if
from tests.support.feeding import feed, ledger
from tests.support.schedules import simulate
from tests.support.simulated_pull import simulate_pull

LAYERS, STEPS = 12, 16


def history(k: int, *, rendezvous: str = "source", queue: str = "serial", seed: int = 1) -> tuple[StepFacts, ...]:
    """Return the steps of a group with uneven computes and gaps; the same ones for every ``k``."""

    def compute(rank: int, step: int, position: int) -> int:
        return random.Random(f"{seed} {rank} {step} {position}").randint(100_000, 2_000_000)  # noqa: S311 - reproducible

    def gap(rank: int, step: int) -> int:
        return random.Random(f"{seed} {rank} {step}").randint(0, 3_000_000)  # noqa: S311 - reproducible

    schedule = simulate(
        ranks=3,
        layers=LAYERS,
        k=k,
        steps=STEPS,
        compute=compute,
        gap=gap,
        occupancy=900_000,
        wake=5_000,
        rendezvous=rendezvous,
        queue=queue,
    )
    made = ledger(schedule)
    feed(made, schedule)
    return made.history(made.facts().series[0].key)


@pytest.mark.parametrize("queue", ["serial", "receiver"])
@pytest.mark.parametrize("rendezvous", ["source", "group"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_real_prefetch_step_gives_the_measured_stall_exactly(k: int, rendezvous: str, queue: str) -> None:
    """Replayed with the prefetch step that was used, every rank's stall of every step is the measured one."""
    steps = history(k, rendezvous=rendezvous, queue=queue)

    replayed = what_if(steps, k)

    assert replayed is not None
    measured = np.array([step.stall_ns.sum(axis=1) for step in steps])[-len(replayed.real.stall_ns) - 1 : -1]
    assert (replayed.real.stall_ns == measured).all()
    assert replayed.fits


@pytest.mark.parametrize("queue", ["serial", "receiver"])
@pytest.mark.parametrize("rendezvous", ["source", "group"])
@pytest.mark.parametrize(("real", "other"), [(0, 1), (0, 3), (1, 2), (2, 0), (3, 1)])
def test_another_prefetch_step_gives_what_it_would_have_given(
    real: int, other: int, rendezvous: str, queue: str
) -> None:
    """Replayed with another prefetch step, the stall ratio is that of a run with it, within 1 % of step time."""
    replayed = what_if(history(real, rendezvous=rendezvous, queue=queue), other)
    truth = what_if(history(other, rendezvous=rendezvous, queue=queue), other)

    assert replayed is not None
    assert truth is not None
    assert replayed.other.stall_ratio == pytest.approx(truth.measured_stall_ratio, abs=0.01)


def test_a_share_of_step_time_is_of_the_whole_step() -> None:
    """What a step does after its last wait, such as sampling, is part of its time, as it is for every other figure."""
    after = 7_000_000
    steps = [replace(step, end_ns=step.end_ns + after) for step in history(1)]

    replayed = what_if(steps, 1)

    assert replayed is not None
    durations = np.array([step.duration_ns for step in steps])[-len(replayed.real.step_ns) - 1 : -1]
    assert (durations > after).all()
    assert (replayed.real.step_ns == durations).all()
    assert replayed.fits


def test_too_few_steps_are_not_replayed() -> None:
    """Three steps give no replay: two warm up, one looks ahead."""
    assert what_if(history(1)[-3:], 2) is None


def test_a_hole_in_the_steps_ends_the_replay() -> None:
    """Only consecutive steps are replayed, because the gap across a missing one is unknown."""
    steps = history(1)

    replayed = what_if((*steps[:-6], *steps[-5:]), 2)

    assert replayed is not None
    assert len(replayed.real.stall_ns) == 3


def test_prefetch_steps_beyond_the_circle_are_refused() -> None:
    """There is no prefetch step above ``L - 2``."""
    assert what_if(history(1), LAYERS - 1) is None


def pulled(k: int) -> tuple[StepFacts, ...]:
    """Return the steps of two ranks that pull, of which the slower one ends last; the same ones for every ``k``."""

    def compute(rank: int, step: int, position: int) -> int:
        return random.Random(f"{rank} {step} {position}").randint(100_000, 2_000_000) * (1 + rank)  # noqa: S311

    schedule = simulate_pull(
        layers=LAYERS, k=k, steps=(STEPS, STEPS), compute=compute, copy=lambda *_: 1_500_000, wake=5_000
    )
    made = ledger(schedule)
    feed(made, schedule)
    return made.history(made.facts().series[0].key)


@pytest.mark.parametrize(("real", "other"), [(0, 0), (1, 1), (3, 3), (0, 1), (1, 3), (2, 0)])
def test_a_rank_of_a_pull_series_is_replayed_on_its_own(real: int, other: int) -> None:
    """The replay gives the stall of a run with that prefetch step, exactly if it is the real one."""
    replayed, truth = what_if(pulled(real), other), what_if(pulled(other), other)

    assert replayed is not None
    assert truth is not None
    assert replayed.fits
    assert replayed.other.stall_ns[:, 0].sum() == 0
    assert replayed.other.stall_ratio == pytest.approx(truth.measured_stall_ratio, abs=0 if real == other else 0.01)
