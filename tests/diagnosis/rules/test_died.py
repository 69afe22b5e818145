"""A death comes first."""

from __future__ import annotations

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Level
from swtrace.trace.identity import RankKey
from tests.support.feeding import feed, ledger
from tests.support.host_clocks import HOUR_NS, HostClock, Hosts
from tests.support.schedules import key, simulate
from tests.support.simulated_pull import simulate_pull
from tests.support.verdicts import dead, even, known

HOSTS = (HostClock(), HostClock(HOUR_NS))


def test_a_death_comes_before_all_other_findings() -> None:
    """If a rank died, that is the headline, at level bad, even if its steps hid their broadcasts."""
    schedule = simulate(ranks=3, layers=12, k=1, steps=24, occupancy=300_000, compute=even(1_000_000))
    made = ledger(schedule)
    feed(made, schedule)
    facts = made.facts().series[0]
    said = verdict(facts, made.history(facts.key), dead(RankKey(facts.key.run_id, 1), RankKey("another run", 2)))

    assert said.headline.kind == "died"
    assert said.headline.level is said.level is Level.BAD
    assert said.headline.sentence.startswith("Rank 1 died")
    assert [finding.kind for finding in said.findings[:2]] == ["died", "hidden"]
    assert verdict(facts, ranks=dead(RankKey("another run", 2))).headline.kind == "hidden"


def test_a_rank_that_died_is_named_with_its_host() -> None:
    """The headline about a death says on which host it was."""
    made = simulate(ranks=2, layers=4, k=0, steps=4, compute=even(1000))
    facts, steps = known(Hosts(made, (0, 1), HOSTS))

    assert verdict(facts, steps, dead(RankKey("run", 1))).headline.sentence.startswith("Rank 1 (host-1) died.")


def test_the_death_of_a_rank_that_pulls_dates_only_its_own_figures() -> None:
    """The other ranks of a pull series go on, and so do their figures."""
    schedule = simulate_pull(layers=6, k=1, steps=(9, 3), compute=even(1_000_000))
    made = ledger(schedule)
    feed(made, schedule)
    facts = made.facts().series[0]
    said = verdict(facts, made.history(facts.key), dead(key(1)))
    assert said.headline.sentence == "Rank 1 died. The figures of that rank are from the steps before."
