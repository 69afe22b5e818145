"""The simulated campaign of ``make bench-diagnose``: its simulation is right, and a small one reaches its floors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import diagnose
from benchmarks.diagnosis_cases import KINDS, group, group_shape
from swtrace.ledger.facts import CAUSES
from swtrace.observing import Roster
from tests.support.faulty_origin import FaultyOrigin, numbers
from tests.support.faulty_series import FINAL, Fault, Kind, Noise, Run, Shape, afflicted, drawn, run

DEVICE = Shape(ranks=4, layers=8, steps=24, prefetch_step=2, rendezvous="group", queue="serial", device=True)
HOST = Shape(ranks=4, layers=8, steps=24, hosts=2, barrier=False, transfer_share=1.3)


def history(done: Run, fault: Fault) -> Roster:
    """Return a roster that has read all records of a run."""
    origin = FaultyOrigin(done, fault, np.random.default_rng(3))
    roster = Roster(origin)
    origin.now_ns = np.inf
    origin.now_ns = origin.ends_ns
    roster.drain()
    return roster


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_without_strength_changes_nothing(kind: Kind) -> None:
    """The ranks record the same bytes as without it."""
    recorded = []
    for fault in (Fault(), Fault(kind, ranks=(1,), begin=4, strength=0.0)):
        load = drawn(DEVICE, Noise(), np.random.default_rng(1))
        (done,) = run([afflicted(load, fault, np.random.default_rng(2))])
        origin = FaultyOrigin(done, fault, np.random.default_rng(3))
        origin.now_ns = origin.ends_ns
        recorded.append(
            [batch.tobytes() for event in origin.poll().events for _, batch in getattr(event, "batches", ())]
        )
    assert recorded[0] == recorded[1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FINAL | {Kind.LOST, Kind.DIVERGED}])
def test_a_strong_fault_costs_time(kind: Kind) -> None:
    """Without it, the same random numbers give shorter steps."""
    shape, fault = DEVICE, Fault(kind, ranks=(1,), begin=4, strength=2.0 if kind is Kind.PREFETCH else 9.0, every=2)
    load = drawn(shape, Noise(), np.random.default_rng(1))
    if kind is Kind.PHASE:
        load.phase[:] = fault.phase
    (sound,), (faulty,) = run([load]), run([afflicted(load, fault, np.random.default_rng(2))])
    assert faulty.gain(sound, since=4) > 0.02


@pytest.mark.parametrize("shape", [replace(DEVICE, transfer_share=1.3), HOST], ids=["device", "hosts"])
def test_the_ledger_sees_the_stalls_of_the_simulation(shape: Shape) -> None:
    """Its stalls are the simulated ones, plus what a host's callback is late by, and its causes sum to them."""
    load = drawn(shape, Noise(), np.random.default_rng(1))
    (done,) = run([load])
    with history(done, Fault()) as roster:
        observation = roster.observe()
    (steps,) = observation.history.values()
    assert [step.step for step in steps] == numbers(done).tolist()
    stalled = 0
    for step, ready, begin in zip(steps, done.ready, done.wait_begin, strict=True):
        true = np.maximum(0, ready - begin).T
        late = step.stall_ns - np.where(step.receiver, true, 0)
        drift = 2 + 1e-4 * true
        assert (late > -drift).all()
        assert (late < drift + (0 if shape.device else 1_000_000)).all()
        assert (step.cause_ns.sum(axis=CAUSES.index(CAUSES[0])) == step.stall_ns).all()
        stalled += int((step.stall_ns > 0).sum())
    assert stalled > 20
    assert observation.facts.series[0].impossible_steps == 0


def test_sampled_steps_have_the_numbers_and_records_that_ranks_write() -> None:
    """With one timed step in eight, the untimed ones are counted, and nothing is late, lost or odd."""
    shape = Shape(ranks=2, layers=8, steps=80, time_every=8)
    (done,) = run([drawn(shape, Noise(), np.random.default_rng(1))])
    with history(done, Fault()) as roster:
        facts = roster.observe().facts
    (series,), untimed = facts.series, 4 * 28
    assert [rank.totals.steps for rank in series.ranks] == [80 + untimed] * 2
    assert [sum(rank.totals.untimed_steps.values()) for rank in series.ranks] == [untimed] * 2
    assert all(rank.oddities == type(rank.oddities)(*[0] * 7) for rank in facts.ranks)


def test_a_campaign_reaches_its_floors() -> None:
    """Of 64 faults on small groups, most that matter are named, and few names are wrong."""
    small = [number for number in range(64) if group_shape(5, number).ranks <= 4][:8]
    found = list(diagnose.campaign([diagnose.Job(5, number, KINDS) for number in small]))
    matter = [judged for judged in found if judged.matters]
    named = [judged for judged in matter if judged.named]
    wrong = [judged for judged in found if judged.wrong]
    assert len(found) == 64
    assert len(named) >= 0.85 * len(matter), "\n".join(diagnose.mistakes(found))
    assert len(wrong) <= 0.1 * len(found), "\n".join(diagnose.mistakes(found))


def test_a_case_can_be_repeated() -> None:
    """The same seed and group give the same case, whatever ran before."""
    one, other = (group(9, 3, KINDS)[2] for _ in range(2))
    assert (one.fault, one.shape) == (other.fault, other.shape)
    assert np.array_equal(one.run.end, other.run.end)
