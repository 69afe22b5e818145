"""Ratios of recent steps leave out what would falsify them."""

from __future__ import annotations

import numpy as np
import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.selection import Selection, sum_up_by_rank
from tests.support import feeding
from tests.support.schedules import key, simulate


@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_lost_records_do_not_lower_the_stall_ratio(kept: float) -> None:
    """Ratios use whole steps only: a part of the stall over the whole duration would look too good."""
    chance = np.random.default_rng(7)
    schedule = simulate(ranks=2, layers=9, k=1, steps=60, compute=lambda _r, _s, _p: 1_000_000, occupancy=5_000_000)
    ledger = feeding.ledger(schedule)
    for rank, records in enumerate(schedule.records):
        lost = chance.random(len(records)) > kept
        lost[records["step"] > 57] = False  # the last steps are whole again
        lost[records["step"] % 3 == 0] = False
        ledger.add(key(rank), records[~lost])
    ledger.flush()
    steps = ledger.take_steps()
    (series,) = ledger.facts().series
    truth = [step for step in steps if step.complete and step.step > 0]
    for number, its in enumerate(series.ranks):
        assert 10 < its.recent.steps < 58
        assert its.recent.stall_ratio == pytest.approx(0.8, abs=0.02)
        assert its.last_stall_ns == truth[-1].stall_ns[number].sum()
    said = {finding.kind: finding for finding in verdict(series, steps).findings}
    assert said["missing_records"].numbers["partial_steps"] == sum(step.partial for step in steps) > 0
    everything = sum_up_by_rank(steps, Selection())
    assert [sums.steps for sums in everything.values()] == [its.recent.steps for its in series.ranks]
