"""Lazy work changes no fact: records are collected first, and facts are computed on access."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from swtrace.errors import IntakeError
from swtrace.ledger import Ledger
from swtrace.ledger.facts import StepFacts
from swtrace.ledger.ledger import _TOGETHER
from swtrace.ledger.pending import PendingSteps
from swtrace.ledger.recent import sums_of
from swtrace.trace.identity import RankKey
from tests.ledger.test_interleaving import same
from tests.support import feeding
from tests.support.schedules import Schedule, key, simulate


def make(steps: int = 12, ranks: int = 3, seed: int = 1, queue: str = "serial") -> Schedule:
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    return simulate(
        ranks=ranks,
        layers=7,
        k=2,
        steps=steps,
        queue=queue,
        compute=lambda _r, _s, _p: chance.randrange(100_000, 900_000),
        occupancy=500_000,
    )


def step_by_step(ledger: Ledger, schedule: Schedule) -> None:
    for step in range(int(schedule.records[0]["step"].max()) + 1):
        ledger.add_batches([(key(r), each[each["step"] == step]) for r, each in enumerate(schedule.records)])


@pytest.mark.parametrize("queue", ["serial", "receiver", "none"])
def test_steps_finished_together_are_those_finished_one_by_one(queue: str) -> None:
    """Steps, paths and facts are the same if they are read after each step or only at the end."""
    schedule = make(steps=40, queue=queue)
    asked, unasked = feeding.ledger(schedule), feeding.ledger(schedule)
    one_by_one: list[StepFacts] = []
    for step in range(40):
        asked.add_batches([(key(r), each[each["step"] == step]) for r, each in enumerate(schedule.records)])
        one_by_one += asked.take_steps()
    step_by_step(unasked, schedule)
    together = unasked.take_steps()
    assert len(one_by_one) == len(together) == 40
    assert all(same(a, b) for a, b in zip(one_by_one, together, strict=True))
    assert all(step.path is not None for step in together)
    assert asked.facts() == unasked.facts()


def test_a_step_made_of_values_is_as_good_as_one_that_computes_them() -> None:
    """Facts that are read in any order equal those of a step constructed from them, and so do their sums."""
    ledger = feeding.ledger(make())
    feeding.feed(ledger, make())
    for step in ledger.take_steps():
        backwards = {field.name: getattr(step, field.name) for field in reversed(fields(step))}
        made = StepFacts(**backwards)
        assert same(made, step)
        assert np.array_equal(sums_of(made), sums_of(step))
        assert np.array_equal(made.duration_ns, step.duration_ns)
        assert (made.whole == step.whole).all()
        later = replace(step, end_ns=step.end_ns + 5)
        assert (later.duration_ns == step.duration_ns + 5).all()
        assert later.path is step.path


def test_a_step_has_no_other_attributes() -> None:
    """A misspelt name is an error, not a column."""
    ledger = feeding.ledger(make())
    feeding.feed(ledger, make())
    with pytest.raises(AttributeError, match="stal_ns"):
        _ = ledger.take_steps()[0].stal_ns  # type: ignore[attr-defined]


def test_what_is_collected_is_bounded() -> None:
    """Between reads, a ledger holds only a bounded number of unprocessed records, and it counts them all."""
    schedule = make(steps=2500, ranks=2)
    ledger = feeding.ledger(schedule)
    most = 0
    for first in range(0, len(schedule.records[0]), 8):
        ledger.add_batches([(key(r), each[first : first + 8]) for r, each in enumerate(schedule.records)])
        held = sum(len(records) for each in ledger._collected for records in each.values())
        assert held == ledger._collected_records
        most = max(most, held)
    assert _TOGETHER / 2 < most < _TOGETHER
    assert [rank.records for rank in ledger.facts().ranks] == [20_000, 20_000]
    assert ledger.facts().series[0].ranks[0].totals.steps == 2500
    assert ledger._collected == []


def test_whose_records_raise_is_named_when_they_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names exactly the ranks whose records raise, at the call that processes them; the others' are kept."""
    schedule, other = make(), make(ranks=2)
    ledger, expected = feeding.ledger(schedule), feeding.ledger(schedule)
    for rank in range(2):
        ledger.add_rank(replace(schedule.identity(rank), run_id="bad"))
        ledger.set_series(of_bad_run(rank), (replace(other.infos[rank], name="bad"),))
    bad = {id(series.pending) for series in ledger._by_number.values() if series.constants.series.name == "bad"}
    room = PendingSteps.room

    def no_room(pending: PendingSteps, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        if id(pending) in bad:
            raise MemoryError
        return room(pending, steps)

    monkeypatch.setattr(PendingSteps, "room", no_room)
    step_by_step(ledger, schedule)
    ledger.add(of_bad_run(1), other.records[1])
    with pytest.raises(IntakeError) as raised:
        ledger.facts()
    assert list(raised.value.reasons) == [("bad", 1)]
    feeding.feed(expected, schedule)
    assert ledger.facts().series[0] == expected.facts().series[0]


def of_bad_run(rank: int) -> RankKey:
    return key(rank)._replace(run_id="bad")
