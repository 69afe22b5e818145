"""Origins of several hosts are one run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from swtrace.observing import Link, OriginStatus, Roster
from swtrace.observing.events import (
    Event,
    RankEnded,
    RankForgotten,
    RankJoined,
    RecordsRead,
    RingState,
    SeriesListed,
)
from swtrace.observing.merged import Merged
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.ring_reader import RingStatistics
from tests.support.feeding import feed, ledger
from tests.support.schedules import key
from tests.support.simulated_recordings import Told
from tests.support.simulated_rings import scenario


def test_hosts_of_one_run_are_one_series_whose_clocks_are_aligned() -> None:
    """Of two hosts each rank's own stall is exact, what needs both clocks has a bound, and wall clocks are offsets."""
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
        assert mine.clock_bound_ns[1] > abs(mine.clock_shift_ns[1])  # both hosts' clocks are one here
        assert np.array_equal(mine.attributed, theirs.attributed)
    assert seen.clock_offsets == {key(0): 999_000, key(1): 1_999_000}


class Reported(Told):
    """An origin that reports what a test says next."""

    def __init__(self, name: str) -> None:
        super().__init__(())
        self._name = name

    def then(self, *events: Event) -> None:
        """Report these events with the next poll."""
        self._events = (*self._events, *events)

    def status(self) -> tuple[OriginStatus, ...]:
        """Return that it lives."""
        return (OriginStatus(self._name, Link.LIVE),)


@dataclass
class Two:
    """Two origins that are joined, and the host that each rank is on after every poll."""

    a: Reported = field(default_factory=lambda: Reported("a:9465"))
    b: Reported = field(default_factory=lambda: Reported("b:9465"))

    def __post_init__(self) -> None:
        """Join them."""
        self.merged = Merged([self.a, self.b])
        self.roster = Roster(self.merged)

    def hosts(self) -> dict[int, str]:
        """Poll, and return the host of each rank."""
        self.roster.poll()
        return {identity.rank: identity.host for identity in self.roster.identities.values()}


def rank(host: str, *, pid: int = 1) -> RankJoined:
    """Return that rank 0 joined on a host."""
    return RankJoined(replace(scenario("stalled", ranks=2).identity(0), host=host, boot_id=host, pid=pid))


def test_a_rank_that_two_hosts_report_is_a_problem() -> None:
    """Two jobs with one run id: the first one's rank is shown, and the problem names rank, run and both hosts."""
    two = Two()
    two.a.then(rank("host-a", pid=7))
    two.b.then(rank("host-b", pid=8))
    assert two.hosts() == {0: "host-a"}
    (problem,) = two.roster.observe().problems.values()
    assert problem == (
        "rank 0 of run 'run' is pid 7 on host host-a, says a:9465; not shown: it is also pid 8 on host host-b, says "
        "b:9465; give each job its own SWTRACE_RUN_ID"
    )
    two.b.then(RankForgotten(key(0)))
    two.hosts()
    assert two.roster.observe().problems == {}


def test_one_folder_that_two_daemons_watch_is_no_problem() -> None:
    """The same process reported twice is one rank. If the first daemon forgets it, the second one's counts."""
    two = Two()
    table = SeriesListed(key(0), (scenario("stalled", ranks=2).infos[0],))
    for origin in (two.a, two.b):
        origin.then(rank("host-a"), table)
    assert two.hosts() == {0: "host-a"}
    assert two.roster.observe().problems == {}
    two.a.then(RankForgotten(key(0)))
    assert two.hosts() == {0: "host-a"}
    (seen,) = two.roster.observe().ranks
    assert seen.series == table.series


@pytest.mark.parametrize("first", ["the old one", "the new one"])
def test_a_rank_that_is_restarted_on_another_host_is_shown_there(first: str) -> None:
    """A rank that ended on one host and lives on another is the living one, whichever daemon answers first."""
    two = Two()
    old, new = (two.a, two.b) if first == "the old one" else (two.b, two.a)
    old.then(rank("host-old"), RankEnded(key(0)))
    new.then(rank("host-new"))
    assert two.hosts() == {0: "host-new"}
    assert two.roster.observe().problems == {}


def test_the_ranks_of_a_removed_origin_are_forgotten() -> None:
    """An origin that is no longer joined takes its ranks with it; those of the others stay."""
    two = Two()
    two.a.then(rank("host-a"))
    assert two.hosts() == {0: "host-a"}
    two.merged.remove(two.a)
    assert two.hosts() == {}
    two.merged.add(two.a)
    two.a.then(rank("host-a"))
    assert two.hosts() == {0: "host-a"}
