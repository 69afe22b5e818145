"""The rank that issues last is named, with the bound of the clocks."""

from __future__ import annotations

from swtrace.diagnosis.diagnosis import Verdict, verdict
from tests.support.host_clocks import HOUR_NS, HostClock, Hosts
from tests.support.schedules import simulate
from tests.support.verdicts import even, finding, kinds, known

HOSTS = (HostClock(), HostClock(HOUR_NS))


def late_for_some_layers(late_ns: int, *, compute_ns: int = 1_000_000, latency_ns: int = 50_000) -> Verdict:
    """Return the verdict over two hosts, where rank 3 on the second one is late for every second layer."""
    made = simulate(
        ranks=4,
        layers=12,
        k=0,
        steps=24,
        queue="receiver",
        occupancy=10_000,
        latency=latency_ns,
        compute=lambda rank, _s, position: compute_ns + late_ns * (rank == 3 and position % 2 == 1),
    )
    return verdict(*known(Hosts(made, (0, 0, 1, 1), HOSTS)))


def test_sentences_about_ranks_on_several_hosts_name_the_host_and_the_bound() -> None:
    """Where ranks are on two hosts, each rank is named with its host, and a figure that compares two with its bound."""
    said = late_for_some_layers(2_000_000)

    late = finding(said, "late_issue")
    assert late.sentence.startswith(
        "Rank 3 (host-1) issues last and causes 100.0 % of the skew: at least 2.90 ms per delayed wait ("
    )
    assert 0 < late.numbers["clock_bound_ns"] < 100_000
    assert f"(clock bound {late.numbers['clock_bound_ns'] / 1000:.1f} us)" in late.sentence
    assert finding(said, "straggler").sentence.startswith("Rank 3 (host-1) is the straggler")
    assert "(0, host-0)" in said.headline.sentence or "(1, host-0)" in said.headline.sentence
    assert "(source: rank 3 on host-1)" in finding(said, "worst_layer").sentence
    assert "2 hosts are aligned by broadcasts" in finding(said, "aligned_clocks").sentence
    alone = verdict(*known(Hosts(simulate(ranks=2, layers=4, k=0, steps=4, compute=even(1000)), (0, 0), HOSTS)))
    assert "host-0" not in "".join(each.sentence for each in alone.findings)


def test_no_rank_is_blamed_for_less_than_the_bound() -> None:
    """A rank that is late by less than the bound of the clocks is never named, nor is the channel judged."""
    said = late_for_some_layers(150_000, compute_ns=20_000, latency_ns=500_000)

    assert not kinds(said) & {"late_issue", "entry_skew"}
    assert not kinds(said) & {"channel_bound", "channel_tight", "channel_share", "prefetch_step"}
    assert "the bound of the ranks' clocks" in finding(said, "unattributed").sentence
