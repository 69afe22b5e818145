"""The verdict says what the facts show, names the right rank, and claims nothing that is unknown."""

from __future__ import annotations

import random
from typing import Any

import pytest

from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.ledger.finding import Level
from swtrace.ledger.verdict import Verdict, verdict
from swtrace.trace.identity import RankKey
from tests.support.feeding import feed, ledger
from tests.support.host_clocks import HOUR_NS, HostClock, Hosts
from tests.support.schedules import key, simulate
from tests.support.simulated_pull import simulate_pull
from tests.support.verdicts import even, finding, judged, kinds

HOSTS = (HostClock(), HostClock(HOUR_NS))


def test_hidden_broadcasts_are_called_hidden_and_no_rank_is_blamed() -> None:
    """With compute longer than transfer, the headline is good and no sentence is worse than a note."""
    said = judged()

    assert said.headline.kind == "hidden"
    assert said.level <= Level.NOTE


def test_a_channel_slower_than_compute_cannot_be_hidden() -> None:
    """Transfer 2.1 ms over compute 0.9 ms: no prefetch step can hide it, and the difference stays exposed."""
    said = judged(compute=even(900_000), occupancy=2_100_000)

    assert said.headline.kind == "stalled"
    bound = finding(said, "channel_bound")
    assert bound.numbers["transfer_ns_per_layer"] == pytest.approx(2_100_000, rel=0.01)
    assert bound.numbers["compute_ns_per_layer"] == pytest.approx(900_000, rel=0.01)
    assert "no prefetch step can hide this. About 14.4 ms per step" in bound.sentence
    assert "prefetch_step" not in kinds(said)


def test_the_rank_that_computes_longer_is_the_straggler() -> None:
    """One rank with 0.4 ms more per layer is named, with the ledger's own excess."""
    said = judged(compute=lambda rank, _step, _position: 1_000_000 + 400_000 * (rank == 2))

    assert finding(said, "straggler").rank == 2
    assert finding(said, "straggler").numbers["excess_ns"] == pytest.approx(12 * 400_000, rel=0.05)


def test_a_late_entry_is_distinguished_from_a_slow_rank() -> None:
    """A rank that begins 4 ms later and computes like the others has entry skew and is not a straggler."""
    said = judged(gap=lambda rank, _step: 1_000_000 + 4_000_000 * (rank == 1))

    assert finding(said, "entry_skew").rank == 1
    assert "straggler" not in kinds(said)


def test_a_larger_prefetch_step_is_proposed_where_it_helps() -> None:
    """Uneven compute at k=0: the proposed prefetch step leaves the stall that a run with it really has."""

    def compute(rank: int, step: int, position: int) -> int:
        return random.Random(f"{rank} {step} {position}").randint(200_000, 1_800_000)  # noqa: S311 - reproducible

    said = judged(k=0, compute=compute, occupancy=500_000)
    proposed = finding(said, "prefetch_step")
    k = int(proposed.numbers["prefetch_step"])
    truth = judged(k=k, compute=compute, occupancy=500_000).headline.numbers["stall_ratio"]

    assert k > 0
    assert proposed.numbers["stall_ratio"] == pytest.approx(truth, abs=0.02)
    assert f"Set SWTRACE_PREFETCH_STEP={k};" in proposed.advice


def test_without_steps_findings_are_about_sums_only() -> None:
    """Nothing about layers, causes or other prefetch steps is said without the steps themselves."""
    said = judged(compute=even(300_000), occupancy=900_000, steps_known=False)

    assert kinds(said) <= {"stalled", "straggler", "unattributed"}


def test_no_finished_step_judges_nothing() -> None:
    """Before the first step there is no verdict."""
    schedule = simulate(ranks=2, layers=4, k=1, steps=1, compute=even(1_000))

    assert verdict(ledger(schedule).facts().series[0]).headline.kind == "nothing"


def test_steps_without_a_stall_and_without_length_are_no_error() -> None:
    """Steps that took no time cause no division by zero."""
    said = judged(occupancy=0, compute=even(0))
    assert "launch_bound" not in kinds(said)
    assert said.headline.kind in {"nothing", "hidden"}


def test_a_death_comes_before_all_other_findings() -> None:
    """If a rank died, that is the headline, at level bad, even if its steps hid their broadcasts."""
    schedule = simulate(ranks=3, layers=12, k=1, steps=24, occupancy=300_000, compute=even(1_000_000))
    made = ledger(schedule)
    feed(made, schedule)
    facts = made.facts().series[0]
    said = verdict(facts, made.history(facts.key), {RankKey(facts.key.run_id, 1), RankKey("another run", 2)})

    assert said.headline.kind == "died"
    assert said.headline.level is said.level is Level.BAD
    assert said.headline.sentence.startswith("Rank 1 died")
    assert [finding.kind for finding in said.findings[:2]] == ["died", "hidden"]
    assert verdict(facts, died={RankKey("another run", 2)}).headline.kind == "hidden"


def known(hosts: Hosts) -> tuple[SeriesFacts, tuple[StepFacts, ...]]:
    """Return the facts and the last steps of a series."""
    fed = hosts.fed()
    (facts,) = fed.facts().series
    return facts, fed.history(facts.key)


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


def test_a_rank_that_died_is_named_with_its_host() -> None:
    """The headline about a death says on which host it was."""
    made = simulate(ranks=2, layers=4, k=0, steps=4, compute=even(1000))
    facts, steps = known(Hosts(made, (0, 1), HOSTS))

    assert verdict(facts, steps, {RankKey("run", 1)}).headline.sentence.startswith("Rank 1 (host-1) died.")


def pulled(**shape: Any) -> Verdict:
    """Return the verdict over a simulated pull run of three ranks."""
    settings = {"layers": 12, "k": 1, "steps": (24, 24, 24), "compute": even(1_000_000), "copy": even(300_000)}
    schedule = simulate_pull(**{**settings, **shape})
    made = ledger(schedule)
    feed(made, schedule)
    facts = made.facts().series[0]
    return verdict(facts, made.history(facts.key))


def slow_second(rank: int, _step: int, _position: int) -> int:
    """Return computes of which rank 1's are much shorter than a copy."""
    return 200_000 if rank == 1 else 1_000_000


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"compute": slow_second, "steps": (20, 90, 20), "copy": even(500_000)},
        {"compute": lambda rank, *_: 1_000_000 * (1 + rank), "start": (0, 0, 9_000_000)},
        {"compute": even(250_000), "copy": even(400_000), "crowding": 1.0},
    ],
)
def test_no_sentence_about_a_pull_series_compares_ranks(shape: dict[str, Any]) -> None:
    """Nothing speaks of broadcasts, skew, entry or a straggler, whatever the ranks do."""
    said = pulled(**shape)
    text = " ".join(f"{finding.sentence} {finding.advice}" for finding in said.findings).lower()
    assert not [word for word in ("broadcast", "skew", "straggler", "enters", "peer", "issues last") if word in text]


def test_what_is_said_of_a_pull_series_is_about_its_most_stalled_rank() -> None:
    """Transfer, compute and prefetch step are those of the rank that stalls most, which is named."""
    said = pulled(compute=slow_second, steps=(20, 90, 20), copy=even(500_000))
    bound = finding(said, "channel_bound")
    assert (said.headline.rank, bound.rank) == (1, 1)
    assert bound.numbers["compute_ns_per_layer"] == pytest.approx(200_000, rel=0.01)
    assert bound.numbers["transfer_ns_per_layer"] == pytest.approx(500_000 * 2 / 3, rel=0.01)
    assert bound.sentence.startswith("On rank 1, transfer 0.33 ms > compute 0.20 ms per layer")
    worst = finding(said, "worst_layer")
    assert worst.rank == 1
    assert "from rank" in worst.sentence
    assert "source" not in worst.sentence


def test_copies_from_one_owner_at_once_explain_a_long_transfer() -> None:
    """Copies that take longer while others read from the same owner are said to; those that do not, are not."""
    chance = random.Random(1)  # noqa: S311 - reproducible
    shape: dict[str, Any] = {
        "steps": (40, 40, 40),
        "compute": lambda *_: chance.randrange(300_000, 600_000),
        "gap": lambda *_: chance.randrange(9_000_000),
    }
    crowded = finding(pulled(**shape, crowding=1.0), "crowded")
    assert crowded.numbers["readers"] == 2
    assert crowded.numbers["fewest_transfer_ns"] == pytest.approx(300_000, rel=0.1)
    assert crowded.numbers["transfer_ns"] > 1.25 * crowded.numbers["fewest_transfer_ns"]
    assert "while 2 ranks read from one owner at once" in crowded.sentence
    assert "crowded" not in kinds(pulled(**shape))


def test_the_death_of_a_rank_that_pulls_dates_only_its_own_figures() -> None:
    """The other ranks of a pull series go on, and so do their figures."""
    schedule = simulate_pull(layers=6, k=1, steps=(9, 3), compute=even(1_000_000))
    made = ledger(schedule)
    feed(made, schedule)
    facts = made.facts().series[0]
    said = verdict(facts, made.history(facts.key), {key(1)})
    assert said.headline.sentence == "Rank 1 died. The figures of that rank are from the steps before."
