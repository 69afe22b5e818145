"""The ranks that compute longer are named, with how, when, and what proves it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Level
from swtrace.ledger.facts import Pattern, Straggler
from swtrace.ledger.planning.repair import Part, Repair
from swtrace.trace.schema import Phase
from tests.support.feeding import feed, ledger
from tests.support.schedules import key, simulate
from tests.support.verdicts import finding, judged

US = 1_000


def test_the_rank_that_computes_longer_is_the_straggler() -> None:
    """One rank with 0.4 ms more per layer is named, with the ledger's own excess."""
    said = judged(compute=lambda rank, _step, _position: 1_000_000 + 400_000 * (rank == 2))

    assert finding(said, "straggler").rank == 2
    assert finding(said, "straggler").numbers["excess_ns"] == pytest.approx(12 * 400_000, rel=0.05)


def test_a_straggler_has_evidence_begin_and_repair() -> None:
    """The finding says since which step, what the ranks compute, and that their compute is to be repaired."""
    found = finding(
        judged(steps=100, compute=lambda rank, step, _p: 1000 * US + 100 * US * (rank == 1 and step >= 40)), "straggler"
    )
    assert found.sentence == (
        "Rank 1 is the straggler: it computes 1.20 ms longer per step than the others (9.1 % of step time), "
        "since step 40."
    )
    assert found.evidence == ("Median compute in the last 64 steps: rank 1 13.2 ms; the others 12.0 ms.",)
    assert (found.level, found.since_step, found.repair) == (Level.BAD, 40, Repair(Part.COMPUTE, (1,)))
    assert found.confidence > 0.99


def test_two_ranks_that_are_slow_together_are_one_finding() -> None:
    """Both are named, the worse one first."""
    extra = {1: 150 * US, 4: 200 * US}
    schedule = simulate(ranks=5, layers=12, k=1, steps=60, compute=lambda rank, _s, _p: 1000 * US + extra.get(rank, 0))
    made = ledger(schedule)
    feed(made, schedule)
    (facts,) = made.facts().series
    found = finding(verdict(facts, made.history(facts.key)), "straggler")
    assert found.ranks == (4, 1)
    assert found.sentence.startswith("Ranks 4 and 1 are stragglers: they compute up to 2.40 ms longer per step than ")
    assert found.repair == Repair(Part.COMPUTE, (1, 4))


def test_a_rank_that_is_slow_in_every_seventh_step_is_said_to_be() -> None:
    """The sentence has the period, and the evidence is about the slow steps."""
    found = finding(
        judged(steps=140, compute=lambda rank, step, _p: 1000 * US * (1 + (rank == 0 and step % 7 == 3))), "straggler"
    )
    assert found.sentence.startswith(
        "Rank 0 is the straggler in every 7th step: it computes 12.0 ms longer there than the others ("
    )
    assert found.numbers["period"] == 7
    assert found.evidence == (
        "Median compute in 9 slow ones of the last 64 steps: rank 0 24.0 ms; the others 12.0 ms.",
    )


@pytest.mark.parametrize(
    ("period", "phase", "words"),
    [
        (None, Phase.PREFILL, "in prefill steps: it computes"),
        (None, None, "in 25 % of the steps: it computes"),
        (2, None, "in every second step: it computes"),
        (23, None, "in every 23rd step: it computes"),
        (11, None, "in every 11th step: it computes"),
    ],
)
def test_the_sentence_says_which_steps_are_slow(period: int | None, phase: Phase | None, words: str) -> None:
    """Phase, period or share of the affected steps are in the sentence."""
    schedule = simulate(ranks=3, layers=4, k=1, steps=20, compute=lambda _r, _s, _p: 1000 * US)
    made = ledger(schedule)
    feed(made, schedule)
    pattern = Pattern.INTERMITTENT if phase is None else Pattern.PHASE
    straggler = Straggler((key(1),), 5_000_000, 0.04, pattern, 0.25, period, phase, 0.99, 0, None)
    facts = replace(made.facts().series[0], stragglers=(straggler,))
    found = finding(verdict(facts, made.history(facts.key)), "straggler")
    assert words in found.sentence
    assert found.sentence.endswith("5.00 ms longer there than the others (4.0 % of step time on average).")
    assert found.level is Level.WARNING
