"""Ranks are compared as far as their clocks can be aligned; facts that depend on unknown instants are not stated."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.ledger import Ledger
from swtrace.ledger.facts import Cause
from swtrace.trace.identity import RankIdentity
from swtrace.trace.records import STEP
from swtrace.trace.schema import Kind, Observed, TransferFlag
from swtrace.units import milliseconds
from tests.support import feeding
from tests.support.host_clocks import true_steps
from tests.support.schedules import Schedule, key, simulate
from tests.support.verdicts import finding, kinds

MS = 1_000_000


AHEAD = 1_000_000 * MS


def make() -> Schedule:
    return simulate(ranks=2, layers=6, k=1, steps=8, compute=lambda _r, _s, _p: MS, occupancy=3 * MS)


def shifted(schedule: Schedule, rank: int, by: int) -> Schedule:
    """Return the schedule with one rank's instants on a clock that is ahead."""
    records = [each.copy() for each in schedule.records]
    mine = records[rank]
    steps = mine["kind"] == Kind.STEP
    for column in ("issued_ns", "ready_ns", "wait_begin_ns", "wait_end_ns"):
        mine[column][~steps] += by
    for column in ("begin_ns", "arrival_ns", "end_ns"):
        mine.view(STEP)[column][steps] += by
    return Schedule(schedule.infos, records, schedule.operations)


def fed(schedule: Schedule, identities: list[RankIdentity], *, at_once: bool = True) -> Ledger:
    """Return a ledger with all records, which come at once or step by step."""
    ledger = Ledger(keep_untaken=100)
    for rank, identity in enumerate(identities):
        ledger.add_rank(identity)
        ledger.set_series(key(rank), (schedule.infos[rank],))
    if at_once:
        feeding.feed(ledger, schedule)
        return ledger
    ends = [np.flatnonzero(mine["kind"] == Kind.STEP) + 1 for mine in schedule.records]
    for step in range(len(ends[0])):
        for rank, mine in enumerate(schedule.records):
            ledger.add(key(rank), mine[(ends[rank][step - 1] if step else 0) : ends[rank][step]])
        ledger.process_added()
    return ledger


def says_nothing_across_ranks(ledger: Ledger) -> str:
    """Check that no fact compares ranks, and return the verdict's reason."""
    (series,) = ledger.facts().series
    for step in ledger.take_steps():
        assert not step.comparable
        assert not step.entry_known
        assert not step.entry_skew_ns.any()
        assert not step.attributed.any()
        assert step.path is None
    for rank in series.ranks:
        assert rank.totals.cause_ns[Cause.UNATTRIBUTED] == rank.totals.stall_ns > 0
        assert rank.recent.efficiency is None
    said = verdict(series, ledger.history(series.key))
    assert not kinds(said) & {"entry_skew", "late_issue", "aligned_clocks"}
    return str(finding(said, "unattributed").sentence)


@pytest.mark.parametrize(
    ("boot_id", "host", "clock_offset"),
    [("boot", "host", "1000.000000000"), ("other", "other", "0")],
    ids=["namespace", "host"],
)
def test_ranks_with_clocks_of_their_own_are_compared(boot_id: str, host: str, clock_offset: str) -> None:
    """Ranks of two time namespaces or two hosts get the values that one clock would show, within the stated bound."""
    chance = random.Random(5)  # noqa: S311 - a reproducible schedule
    schedule = simulate(
        ranks=2, layers=6, k=0, steps=8, compute=lambda _r, _s, _p: chance.randrange(5 * MS), occupancy=MS // 5
    )
    other = replace(schedule.identity(1), boot_id=boot_id, host=host, clock_offset=clock_offset)
    ledger = fed(shifted(schedule, 1, AHEAD), [schedule.identity(0), other])
    (series,) = ledger.facts().series
    skewed = 0
    for step, truth in zip(ledger.take_steps(), true_steps(schedule), strict=True):
        bound = int(step.clock_bound_ns[1])
        assert step.comparable
        assert 0 < bound < MS // 4  # about the fastest broadcast
        assert abs(step.clock_shift_ns[1] + AHEAD) <= bound
        assert np.array_equal(step.attributed, truth.attributed)
        assert np.abs(step.transfer_ns - truth.transfer_ns).max() <= bound
        assert np.abs(step.entry_skew_ns - truth.entry_skew_ns).max() <= bound
        understated = truth.cause_ns[:4] - step.cause_ns[:4]
        assert 0 <= understated.min() <= understated.max() <= 2 * bound
        skewed += int((truth.cause_ns[1] > 4 * bound).sum())
    assert skewed > 5
    assert series.clocks == 2
    said = verdict(series, ledger.history(series.key))
    assert finding(said, "aligned_clocks").numbers["clock_bound_ns"] == series.clock_bound_ns
    assert ("of 2 hosts" in finding(said, "aligned_clocks").sentence) == (host == "other")


def test_a_host_whose_clock_is_unknown_is_not_compared() -> None:
    """If a rank on another host is never a source, nothing is compared, and the verdict names rank, host and reason."""
    schedule = simulate(ranks=3, layers=2, k=0, steps=8, compute=lambda _r, _s, _p: MS, occupancy=3 * MS)
    other = replace(schedule.identity(2), boot_id="other", host="gpu-b")
    ledger = fed(shifted(schedule, 2, AHEAD), [schedule.identity(0), schedule.identity(1), other])
    because = says_nothing_across_ranks(ledger)
    assert "the clock of rank 2 (gpu-b)" in because
    assert "no broadcasts run in both directions" in because


def test_a_complete_run_of_two_hosts_misses_no_records() -> None:
    """What the bound of two hosts' clocks leaves open has no known cause for this reason; no record is missing."""
    chance = random.Random(5)  # noqa: S311 - a reproducible schedule
    schedule = simulate(
        ranks=2, layers=6, k=0, steps=30, compute=lambda _r, _s, _p: chance.randrange(2 * MS), latency=3 * MS
    )
    other = replace(schedule.identity(1), boot_id="other", host="other")
    ledger = fed(shifted(schedule, 1, AHEAD), [schedule.identity(0), other])
    (series,) = ledger.facts().series
    because = finding(verdict(series, ledger.history(series.key)), "unattributed").sentence
    assert f"the bound of the ranks' clocks (±{milliseconds(series.clock_bound_ns)}) leaves it open" in because
    assert "missing" not in because
    assert "missing, or the bound of the ranks' clocks" in finding(verdict(series), "unattributed").sentence


def test_instants_that_cannot_be_are_distrusted() -> None:
    """Ranks that claim one clock and receive before the source issued are not compared, which is counted and said."""
    for rank, by in ((1, AHEAD), (0, AHEAD), (1, 50 * MS)):
        schedule = shifted(make(), rank, by)
        ledger = fed(schedule, [schedule.identity(0), schedule.identity(1)])
        facts = ledger.facts()
        assert facts.series[0].impossible_steps == 8
        assert sum(each.oddities.impossible for each in facts.ranks) >= 8
        assert "before its source issued it" in says_nothing_across_ranks(ledger)


def test_ranks_that_claim_one_clock_are_aligned_after_some_contradictions() -> None:
    """The first steps are counted as impossible and distrusted, which the verdict says; the others are compared."""
    schedule = shifted(make(), 1, AHEAD)
    ledger = fed(schedule, [schedule.identity(0), schedule.identity(1)], at_once=False)
    steps = ledger.take_steps()
    (series,) = ledger.facts().series
    assert [step.comparable for step in steps] == [False] * 3 + [True] * 5
    assert (series.impossible_steps, series.clocks) == (3, 2)
    said = verdict(series, steps)
    assert "before its source issued it" in finding(said, "unattributed").sentence
    assert "2 sets of ranks" in finding(said, "aligned_clocks").sentence


def test_one_clock_stays_one() -> None:
    """Possible instants are trusted."""
    schedule = make()
    facts = fed(schedule, [schedule.identity(0), schedule.identity(1)]).facts()
    assert (facts.series[0].clocks, facts.series[0].impossible_steps) == (1, 0)


def test_what_follows_an_unknown_ready_is_unknown() -> None:
    """A delivery after one whose completion was not observed has no transfer, not even from the peers' instants."""
    for queue in ("serial", "receiver"):
        schedule = simulate(
            ranks=4, layers=6, k=1, steps=4, compute=lambda _r, _s, _p: MS, occupancy=3 * MS, queue=queue
        )
        records = schedule.records[1]
        at = np.flatnonzero((records["kind"] == Kind.TRANSFER) & (records["step"] == 2) & (records["position"] == 3))
        records["ready_ns"][at] = records["wait_begin_ns"][at] = records["wait_end_ns"][at] = 0
        records["flags"][at] |= np.uint8(TransferFlag.UNWAITED | TransferFlag.OPEN)
        records["observed_clock"][at] = Observed.NEVER
        ledger = feeding.ledger(schedule)
        feeding.feed(ledger, schedule)
        step = ledger.take_steps()[2]
        # Position 4 is rank 0's: all others receive it, behind position 3.
        after = {"serial": [False] * 4, "receiver": [False, False, True, True]}[queue]
        assert step.attributed[:, 4].tolist() == after
        assert not step.transfer_ns[1, 4]
        assert step.attributed[[0, 2, 3], 5].all() or queue == "receiver"
