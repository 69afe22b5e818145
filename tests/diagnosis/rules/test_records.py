"""What is missing from the figures is said."""

from __future__ import annotations

from dataclasses import replace

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Level
from swtrace.trace.identity import UntracedRank
from tests.support.feeding import feed, ledger
from tests.support.schedules import simulate
from tests.support.verdicts import even, finding, kinds


def test_a_rank_without_records_is_named_with_its_reason() -> None:
    """With one rank untraced, the verdict names it and why, and claims nothing that its records would have to show."""
    schedule = simulate(ranks=3, layers=12, k=1, steps=24, occupancy=900_000, compute=even(300_000))
    untraced = (UntracedRank(2, "No space left on device"),)
    infos = [replace(info, untraced=untraced) for info in schedule.infos]
    made = ledger(replace(schedule, infos=infos), ranks=[0, 1])
    made.add_rank(schedule.identity(2))  # it records another series
    feed(made, schedule, ranks=[0, 1])
    (facts,) = made.facts().series
    said = verdict(facts, made.history(facts.key))

    assert (facts.pending_steps, facts.steps) == (0, 24)
    assert finding(said, "untraced").sentence.startswith("Rank 2 runs untraced: No space left on device. ")
    assert finding(said, "untraced").level is Level.WARNING
    assert "not every rank of the group is traced" in finding(said, "unattributed").sentence
    assert not kinds(said) & {"late_issue", "straggler", "prefetch_step", "channel_bound", "entry_skew"}
