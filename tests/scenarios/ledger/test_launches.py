"""Launch instants of stalled broadcasts are kept beside the transfer and reported where they explain the stall."""

from __future__ import annotations

import random

import numpy as np
import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.rules.launch import DRY_BELOW_NS
from swtrace.ledger import Ledger
from swtrace.trace.records import Records
from swtrace.trace.schema import NO_WINDOW, Kind
from tests.support.feeding import feed, feed_interleaved, ledger
from tests.support.schedules import Schedule, key, simulate, transfer_record

LAYERS, STEPS = 8, 24
SLOW = 1
"""The rank with LAUNCH records."""


def with_launches(lag_ns: int) -> Schedule:
    """Return a run that stalls, with a LAUNCH record behind each transfer of one rank whose wait was held."""
    schedule = simulate(
        ranks=2, layers=LAYERS, k=1, steps=STEPS, occupancy=900_000, compute=lambda _rank, _step, _position: 300_000
    )
    told = []
    for record in schedule.records[SLOW]:
        told.append(record)
        if record["kind"] == Kind.TRANSFER and record["wait_end_ns"] > record["wait_begin_ns"]:
            told.append(launch(record, lag_ns))
    records = list(schedule.records)
    records[SLOW] = np.array(told)
    return Schedule(schedule.infos, records, schedule.operations)


def launch(transfer: np.void, lag_ns: int) -> np.void:
    """Return the LAUNCH record of a transfer."""
    made = transfer_record(
        kind=Kind.LAUNCH,
        issued_ns=int(transfer["issued_ns"]) - lag_ns,
        wait_begin_ns=int(transfer["wait_begin_ns"]) - lag_ns,
        step=int(transfer["step"]),
        operation=int(transfer["operation"]),
        position=int(transfer["position"]),
        source=int(transfer["source"]),
        window=NO_WINDOW,
    )
    record: np.void = made[0]
    return record


def fed(schedule: Schedule) -> Ledger:
    made = ledger(schedule)
    feed(made, schedule)
    return made


@pytest.mark.parametrize("largest", [1, 2, 40])
def test_launches_stand_beside_the_waits_that_were_held(largest: int) -> None:
    """In whatever pieces the records come, every held wait has its launch, no other has, and nothing is odd."""
    schedule = with_launches(7_000)
    made = ledger(schedule)
    feed_interleaved(made, schedule, random.Random(largest), largest)  # noqa: S311 - reproducible
    facts = made.facts()
    held = 0
    for step in made.history(facts.series[0].key):
        expected = np.where(step.stall_ns > 0, step.issued_ns - 7_000, 0)
        expected[1 - SLOW] = 0
        assert (step.launched_ns == expected).all()
        held += int((expected > 0).sum())
    assert held > STEPS
    for rank in facts.ranks:
        assert rank.oddities.unknown == rank.oddities.duplicate == rank.oddities.missing == 0


def test_a_launch_without_its_transfer_says_nothing() -> None:
    """Launches of unknown or long finished steps change no fact and raise no error."""
    schedule = with_launches(7_000)
    plain, strewn = fed(schedule), ledger(schedule)
    stray: Records = np.concatenate(
        [transfer_record(kind=Kind.LAUNCH, issued_ns=5, step=step) for step in (0, 3, 9999)]
    )
    strewn.add(key(SLOW), stray)
    feed(strewn, schedule)
    strewn.add(key(SLOW), stray)
    of = plain.facts().series[0].key
    for one, other in zip(plain.history(of), strewn.history(of), strict=True):
        assert (one.launched_ns == other.launched_ns).all()
        assert (one.stall_ns == other.stall_ns).all()


@pytest.mark.parametrize(("lag_ns", "bound"), [(7_000, True), (DRY_BELOW_NS, False), (4_000_000, False)])
def test_a_rank_whose_device_runs_out_of_work_is_bound_by_its_host(lag_ns: int, *, bound: bool) -> None:
    """The verdict says launch-bound if the device starts issues right after their launch, and not if it is behind."""
    made = fed(with_launches(lag_ns))
    facts = made.facts().series[0]
    said = {finding.kind: finding for finding in verdict(facts, made.history(facts.key)).findings}
    assert ("launch_bound" in said) == bound
    if bound:
        assert said["launch_bound"].rank == SLOW
        assert said["launch_bound"].numbers["share"] > 0.6  # the first layers of a step do not count
        assert "7.00 us (median) after launch" in said["launch_bound"].sentence
