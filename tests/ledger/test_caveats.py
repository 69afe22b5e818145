"""Caveats say what the figures leave out."""

from __future__ import annotations

from dataclasses import replace

from swtrace.ledger.finding import Level
from swtrace.ledger.verdict import verdict
from swtrace.trace.identity import UntracedRank
from tests.support.feeding import feed, ledger
from tests.support.schedules import simulate
from tests.support.verdicts import even, finding, judged, kinds


def test_a_stall_of_unknown_cause_is_called_that() -> None:
    """With one rank of three available, the verdict says that causes are unknown instead of naming one."""
    said = judged(ranks=[0], compute=even(300_000), occupancy=900_000)

    assert "only 1 of the group's 3 ranks" in finding(said, "unattributed").sentence
    assert not kinds(said) & {"late_issue", "straggler", "prefetch_step", "channel_bound"}


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
