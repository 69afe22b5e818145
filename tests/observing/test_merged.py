"""Origins of several hosts are one run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from swtrace.observing import Roster
from swtrace.observing.events import RankEnded, RankJoined, RecordsRead, RingState, SeriesListed
from swtrace.observing.merged import Merged
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.ring_reader import RingStatistics
from tests.support.feeding import feed, ledger
from tests.support.schedules import key
from tests.support.simulated_recordings import Told
from tests.support.simulated_rings import scenario


def test_hosts_of_one_run_are_one_series() -> None:
    """Each rank's stall is what one origin says, its clock is aligned, and calendar offsets are the wall clocks'."""
    made = scenario("stalled", ranks=2)
    hosts = []
    for rank, records in enumerate(made.records):
        anchor = ClockAnchor(monotonic_ns=1_000, realtime_ns=1_000_000 * (rank + 1))
        ring = RingState(key(rank), alive=True, closed=False, statistics=RingStatistics(0, 0, 0, 0, 0), anchor=anchor)
        events = (
            RankJoined(replace(made.identity(rank), host=f"host-{rank}", boot_id=f"boot-{rank}")),
            SeriesListed(key(rank), (made.infos[rank],)),
            RecordsRead(((key(rank), records),)),
            RankEnded(key(rank)),
        )
        hosts.append(Told(events, (ring,)))
    roster = Roster(Merged(hosts))
    roster.drain()
    seen = roster.observe()
    one = ledger(made)
    feed(one, made)

    (series,), (truth,) = seen.facts.series, one.facts().series
    assert series.clocks == 2
    assert [rank.rank for rank in series.ranks] == [rank.rank for rank in truth.ranks]
    for mine, theirs in zip(seen.history[series.key], one.history(truth.key), strict=True):
        np.testing.assert_equal(mine.stall_ns, theirs.stall_ns)
        assert mine.complete
        assert mine.comparable
        assert mine.clock_bound_ns[1] > 0
    assert seen.clock_offsets == {key(0): 999_000, key(1): 1_999_000}
