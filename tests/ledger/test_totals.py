"""Counters only grow, and count every wait once."""

from __future__ import annotations

import random

import numpy as np
import pytest

from swtrace.ledger.facts import Outcome
from tests.support import feeding
from tests.support.schedules import BYTES, simulate


def test_totals_count_every_wait_once() -> None:
    """Outcomes over all waits sum to layers x steps per rank, bytes to layers x steps x bytes of a layer."""
    layers, steps, k = 7, 9, 2
    schedule = simulate(ranks=3, layers=layers, k=k, steps=steps, compute=lambda _r, _s, _p: 50, occupancy=100)
    ledger = feeding.ledger(schedule, epsilon_ns=1)
    feeding.feed(ledger, schedule)
    for facts in ledger.facts().series[0].ranks:
        totals = facts.totals
        assert sum(totals.waits.values()) == layers * steps
        assert totals.waits[Outcome.PREFILLED] == k
        assert totals.bytes == (layers * steps - k) * BYTES  # the last k are open: no wait, no record yet
        assert sum(totals.cause_ns.values()) == totals.stall_ns
        assert totals.stall.count == totals.waits[Outcome.ON_TIME] + totals.waits[Outcome.STALLED]
        assert totals.stall.sum_ns == totals.stall_ns
        assert totals.steps == totals.step_duration["decode"].count == steps
        assert facts.effective_prefetch_step == k


@pytest.mark.parametrize("largest", [1, 3, 40, 1000])
def test_totals_begin_with_the_first_step_without_history(largest: int) -> None:
    """Each rank's totals agree with each other and lack the steps that it had begun; facts of steps lack none."""
    schedule = simulate(ranks=3, layers=5, k=1, steps=12, compute=lambda rank, _s, _p: 50 + 9 * rank, occupancy=100)
    for records in schedule.records:
        records["sequence"] = np.arange(1, len(records) + 1)
    history = (2, 4 * 6, 4 * 6 + 3)  # rank 0 was in step 0, rank 1 had ended step 3, rank 2 was in step 4
    ledger = feeding.ledger(schedule, epsilon_ns=1, history=history)
    feeding.feed_interleaved(ledger, schedule, random.Random(largest), largest)  # noqa: S311
    (series,) = ledger.facts().series
    whole = feeding.ledger(schedule, epsilon_ns=1)
    feeding.feed(whole, schedule)
    for rank, first in enumerate((1, 4, 5)):
        facts, totals = series.ranks[rank], series.ranks[rank].totals
        assert totals.steps == totals.step_duration["decode"].count == 12 - first
        assert sum(totals.waits.values()) == 5 * (12 - first)
        assert totals.bytes == 5 * (12 - first) * BYTES
        assert totals.stall.count == totals.waits[Outcome.ON_TIME] + totals.waits[Outcome.STALLED]
        steps = [step for step in ledger.history(series.key) if step.step >= first]
        assert sum(totals.cause_ns.values()) == totals.stall_ns == sum(int(step.stall_ns[rank].sum()) for step in steps)
        assert facts.recent == whole.facts().series[0].ranks[rank].recent
    assert [step.step for step in ledger.take_steps() if ledger.counts(step)] == list(range(5, 12))


def test_the_stall_of_late_records_is_unattributed() -> None:
    """If a rank falls too far behind, its steps are finished without it. Its causes still sum to its stall."""
    schedule = simulate(ranks=3, layers=5, k=1, steps=40, compute=lambda rank, _s, _p: 50 + 9 * rank, occupancy=100)
    ledger = feeding.ledger(schedule, epsilon_ns=1, max_cells=3 * 5 * 8)
    feeding.feed(ledger, schedule)
    facts = ledger.facts()
    assert facts.ranks[2].oddities.late > 0
    for rank in facts.series[0].ranks:
        assert sum(rank.totals.cause_ns.values()) == rank.totals.stall_ns > 0
