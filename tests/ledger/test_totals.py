"""Counters only grow, and count every wait once."""

from __future__ import annotations

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
