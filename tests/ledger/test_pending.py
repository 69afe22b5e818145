"""Unfinished steps are bounded, whatever ranks are silent, hung or ahead."""

from __future__ import annotations

from tests.support import feeding
from tests.support.random_steps import random_schedule
from tests.support.schedules import key


def test_a_hung_rank_makes_nothing_grow_without_bound() -> None:
    """While one rank is silent the oldest pending steps are finished early, counted, and the rest is kept."""
    schedule = random_schedule(steps=200, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=2 * 7 * 16)
    ledger.add(key(0), schedule.records[0])
    facts = ledger.facts()
    assert facts.series[0].pending_steps <= 16
    assert facts.ranks[1].oddities.evicted_steps == 200 - facts.series[0].pending_steps
    assert sum(facts.series[0].ranks[0].totals.waits.values()) == 7 * 200


def test_one_large_batch_of_all_ranks_evicts_nothing() -> None:
    """More steps at once than can be pending are processed step by step: no rank is behind, so none is evicted."""
    schedule = random_schedule(steps=100)
    whole, bounded = feeding.ledger(schedule), feeding.ledger(schedule, max_cells=3 * 7 * 8)
    batches = [(key(rank), schedule.records[rank]) for rank in range(3)]
    whole.add_batches(batches)
    bounded.add_batches(batches)
    assert [rank.oddities.evicted_steps for rank in bounded.facts().ranks] == [0, 0, 0]
    assert bounded.facts().series == whole.facts().series


def test_a_silent_rank_is_evicted_many_steps_at_a_time() -> None:
    """Steps that wait for a silent rank are finished in bulk, an eighth at once, because each eviction costs time."""
    schedule = random_schedule(steps=400, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=2 * 7 * 64)
    finished = []
    for step in range(400):
        ledger.add(key(0), schedule.records[0][schedule.records[0]["step"] == step])
        if taken := len(ledger.take_steps()):
            finished.append(taken)
    assert sum(finished) >= 400 - 64
    assert min(finished) == 8


def test_records_of_pending_steps_that_come_again_from_a_rank_that_came_back_are_duplicates() -> None:
    """A rank that was forgotten and joins again may record pending steps again: they count once."""
    schedule = random_schedule(steps=2, ranks=2)
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), schedule.records[0])
    ledger.forget(key(0))
    ledger.add_rank(schedule.identity(0))
    ledger.set_series(key(0), (schedule.infos[0],))
    for record in range(len(schedule.records[0])):
        ledger.add(key(0), schedule.records[0][record : record + 1])
    ledger.add(key(1), schedule.records[1])
    ledger.flush()
    assert [rank.oddities.duplicate for rank in ledger.facts().ranks] == [0, len(schedule.records[0])]
