"""If clocks differ or peers' instants are unknown, facts that depend on them are not stated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from swtrace.ledger import Ledger
from swtrace.ledger.caveats import unattributed
from swtrace.ledger.facts import Cause
from swtrace.ledger.verdict import verdict
from swtrace.trace.identity import RankIdentity
from swtrace.trace.records import STEP
from swtrace.trace.schema import Kind, Observed, TransferFlag
from tests.support import feeding
from tests.support.schedules import Schedule, key, simulate

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


def fed(schedule: Schedule, identities: list[RankIdentity]) -> Ledger:
    ledger = Ledger(keep_untaken=100)
    for rank, identity in enumerate(identities):
        ledger.add_rank(identity)
        ledger.set_series(key(rank), (schedule.infos[rank],))
    feeding.feed(ledger, schedule)
    return ledger


def says_nothing_across_ranks(ledger: Ledger) -> None:
    (series,) = ledger.facts().series
    for step in ledger.take_steps():
        assert not step.entry_known
        assert not step.entry_skew_ns.any()
        assert not step.attributed.any()
        assert step.path is None
    for rank in series.ranks:
        assert rank.totals.cause_ns[Cause.UNATTRIBUTED] == rank.totals.stall_ns > 0
        assert rank.recent.efficiency is None
    assert "entry_skew" not in {finding.kind for finding in verdict(series, ledger.history(series.key)).findings}


def test_ranks_of_different_time_namespaces_are_not_compared() -> None:
    """Ranks of one boot whose time namespaces differ have clocks of their own, and the verdict says so."""
    schedule = shifted(make(), 1, AHEAD)
    identities = [schedule.identity(0), replace(schedule.identity(1), clock_offset="1000.000000000")]
    ledger = fed(schedule, identities)
    says_nothing_across_ranks(ledger)
    finding = unattributed(ledger.facts().series[0])
    assert finding is not None
    assert "2 clocks" in finding.sentence


def test_a_complete_run_of_two_hosts_misses_no_records() -> None:
    """On two hosts the cause is unknown because of their clocks; no records are said to be missing."""
    schedule = make()
    ledger = fed(schedule, [schedule.identity(0), replace(schedule.identity(1), boot_id="other", host="other")])
    says_nothing_across_ranks(ledger)
    finding = unattributed(ledger.facts().series[0])
    assert finding is not None
    assert "missing" not in finding.sentence
    assert "2 clocks (several hosts" in finding.sentence


def test_instants_that_cannot_be_are_distrusted() -> None:
    """Ranks that claim one clock and receive before the source issued are not compared, which is counted and said."""
    for rank, by in ((1, AHEAD), (0, AHEAD), (1, 50 * MS)):
        schedule = shifted(make(), rank, by)
        ledger = fed(schedule, [schedule.identity(0), schedule.identity(1)])
        facts = ledger.facts()
        assert facts.series[0].impossible_steps == 8
        assert sum(each.oddities.impossible for each in facts.ranks) >= 8
        finding = unattributed(facts.series[0])
        assert finding is not None
        assert "before its source issued it" in finding.sentence
        says_nothing_across_ranks(ledger)


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
