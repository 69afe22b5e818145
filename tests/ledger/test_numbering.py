"""Step numbers wrap, jump and go wild without harm."""

from __future__ import annotations

import random

import numpy as np
import pytest

from swtrace.trace.records import STEP
from tests.support import feeding
from tests.support.random_steps import random_schedule
from tests.support.schedules import Schedule, key, transfer_record


def test_a_step_jump_costs_no_time() -> None:
    """Step numbers that leap ahead finish what was pending and do not walk the steps between."""
    ledger = feeding.ledger(random_schedule(steps=1))
    ledger.add(key(0), transfer_record(step=0, position=0, wait_begin_ns=5))
    leap = [transfer_record(step=2_000_000_000, position=position, wait_begin_ns=5) for position in range(2)]
    ledger.add(key(0), np.concatenate(leap))
    ledger.flush()
    assert [facts.step for facts in ledger.take_steps()] == [0, 2_000_000_000]


@pytest.mark.parametrize("number", [(1 << 32) - 16, 1_000_000, 300])
@pytest.mark.parametrize("at", [0, 96])
def test_a_wild_step_number_is_ignored_and_counted(number: int, at: int) -> None:
    """One record with an impossible step number, at any place, changes only the count of such records."""
    schedule = random_schedule(steps=20)
    wild = transfer_record(step=number, position=1, wait_begin_ns=5)
    for largest in (7, 50):
        expected, ledger = feeding.ledger(schedule), feeding.ledger(schedule)
        feeding.feed(expected, schedule)
        records = [np.concatenate((schedule.records[0][:at], wild, schedule.records[0][at:])), *schedule.records[1:]]
        feeding.feed_interleaved(
            ledger,
            Schedule(schedule.infos, records, schedule.operations),
            random.Random(number),  # noqa: S311
            largest,
        )
        assert ledger.facts().series == expected.facts().series
        assert [rank.oddities.wild for rank in ledger.facts().ranks] == [1, 0, 0]
        assert [rank.oddities.late for rank in ledger.facts().ranks] == [0, 0, 0]


@pytest.mark.parametrize("largest", [7, 30])
def test_step_numbers_wrap(largest: int) -> None:
    """Steps whose numbers wrap at 2^32 follow one another as any others: the same facts, under numbers that go on."""
    schedule = random_schedule(steps=40)
    moved = []
    for records in schedule.records:
        moved.append(records.copy())
        moved[-1]["step"] += np.uint32((1 << 32) - 20)  # both kinds of record have it in one place
        steps = moved[-1]["kind"] == 2
        moved[-1].view(STEP)["step"][steps] = records.view(STEP)["step"][steps] + np.uint32((1 << 32) - 20)
    ledger, expected = feeding.ledger(schedule), feeding.ledger(schedule)
    feeding.feed(expected, schedule)
    chance = random.Random(largest)  # noqa: S311
    for rank in range(3):
        ledger.add(key(rank), moved[rank][:30])
    feeding.feed_interleaved(
        ledger, Schedule(schedule.infos, [each[30:] for each in moved], schedule.operations), chance, largest
    )
    got = ledger.take_steps()
    assert [facts.step for facts in got] == list(range((1 << 32) - 20, (1 << 32) + 20))
    assert [rank.oddities.late for rank in ledger.facts().ranks] == [0, 0, 0]
    assert ledger.facts().series[0].ranks[0].totals == expected.facts().series[0].ranks[0].totals
