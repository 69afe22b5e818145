"""The replay on a channel that it describes exactly: the ideal one, which can be run with any prefetch step."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.contention import Contention
from swtrace.ledger.planning.prediction import Replayed
from swtrace.ledger.planning.replay import WARM_UP, Settings, replay
from swtrace.ledger.planning.workload import consecutive, measure
from tests.support.feeding import feed, ledger
from tests.support.schedules import simulate
from tests.support.simulated_pull import simulate_pull

LAYERS, STEPS = 12, 20


def history(k: int, *, rendezvous: str = "source", queue: str = "serial", ranks: int = 3) -> tuple[StepFacts, ...]:
    """Return the steps of a group with uneven computes and gaps; the same ones for every ``k``."""

    def compute(rank: int, step: int, position: int) -> int:
        return random.Random(f"{rank} {step} {position}").randint(100_000, 2_000_000)  # noqa: S311 - reproducible

    def gap(rank: int, step: int) -> int:
        return random.Random(f"{rank} {step}").randint(0, 3_000_000)  # noqa: S311 - reproducible

    schedule = simulate(
        ranks=ranks,
        layers=LAYERS,
        k=k,
        steps=STEPS,
        compute=compute,
        gap=gap,
        occupancy=900_000,
        rendezvous=rendezvous,
        queue=queue,
    )
    made = ledger(schedule)
    feed(made, schedule)
    return made.history(made.facts().series[0].key)


def pulled(k: int) -> tuple[StepFacts, ...]:
    """Return the steps of two ranks that pull, each with its own computes."""

    def compute(rank: int, step: int, position: int) -> int:
        return random.Random(f"{rank} {step} {position}").randint(100_000, 2_000_000) * (1 + rank)  # noqa: S311

    schedule = simulate_pull(layers=LAYERS, k=k, steps=(STEPS, STEPS), compute=compute, copy=lambda *_: 1_500_000)
    made = ledger(schedule)
    feed(made, schedule)
    return made.history(made.facts().series[0].key)


def replayed(steps: tuple[StepFacts, ...], k: int) -> tuple[Replayed, list[StepFacts]]:
    """Replay steps with another prefetch step; return the steps that were replayed, too."""
    run = consecutive(steps)
    info = next(info for info in run[0].infos if info is not None)
    workload = measure(run, info, overhead_ns=0.0, contention=0.0)
    source = np.asarray(run[0].source, np.int64)
    settings = Settings(
        shared=workload.shared,
        source=source,
        prefetch_step=k,
        rendezvous=info.rendezvous,
        queue=info.queue,
        moving=workload.moving,
        overhead_ns=0.0,
        contention=Contention(np.zeros(len(workload.ranks)), 0.0, 0.0),
    )
    return replay(workload, settings), run[WARM_UP:-1]


def ratio(found: Replayed) -> npt.NDArray[np.float64]:
    """Return each rank's stall ratio over the newest steps, which are the same ones whatever the prefetch step is."""
    newest = slice(-12, None)
    return np.asarray(found.stall_ns[newest].sum(axis=0) / found.step_ns[newest].sum(axis=0))


@pytest.mark.parametrize("queue", ["serial", "receiver"])
@pytest.mark.parametrize("rendezvous", ["source", "group"])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_real_prefetch_step_gives_what_was_measured(k: int, rendezvous: str, queue: str) -> None:
    """Every rank's stall and time of every step, to the nanosecond, although steps are replayed in sections."""
    found, steps = replayed(history(k, rendezvous=rendezvous, queue=queue), k)

    assert found.stall_ns == pytest.approx(np.array([step.stall_ns.sum(axis=1) for step in steps]), abs=1)
    assert found.step_ns == pytest.approx(np.array([step.duration_ns for step in steps]), abs=1)
    assert found.slack_ns == pytest.approx(np.array([step.slack_ns.sum(axis=1) for step in steps]), abs=1)


@pytest.mark.parametrize("queue", ["serial", "receiver"])
@pytest.mark.parametrize("rendezvous", ["source", "group"])
@pytest.mark.parametrize(("real", "other"), [(0, 1), (0, 3), (1, 2), (2, 0), (3, 1)])
def test_another_prefetch_step_gives_what_it_would_have_given(
    real: int, other: int, rendezvous: str, queue: str
) -> None:
    """The mean stall is that of a run with the other prefetch step, within 1 % of step time."""
    found, _ = replayed(history(real, rendezvous=rendezvous, queue=queue), other)
    truth, _ = replayed(history(other, rendezvous=rendezvous, queue=queue), other)

    assert ratio(found) == pytest.approx(ratio(truth), abs=0.01)


@pytest.mark.parametrize(("real", "other"), [(0, 0), (1, 1), (3, 3), (0, 1), (1, 3), (2, 0)])
def test_a_rank_of_a_pull_series_is_replayed_on_its_own(real: int, other: int) -> None:
    """Its stall is that of a run with the other prefetch step."""
    found, _ = replayed(pulled(real), other)
    truth, _ = replayed(pulled(other), other)

    assert ratio(found) == pytest.approx(ratio(truth), abs=1e-9 if real == other else 0.01)
