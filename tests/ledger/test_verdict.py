"""The verdict says what the facts show, names the right rank, and claims nothing that is unknown."""

from __future__ import annotations

import random

import pytest

from swtrace.ledger.finding import Level
from swtrace.ledger.verdict import verdict
from swtrace.trace.identity import RankKey
from tests.support.feeding import feed, ledger
from tests.support.schedules import simulate
from tests.support.verdicts import even, finding, judged, kinds


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
