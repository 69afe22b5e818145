"""The headline says whether transfers hide, and judges nothing that is unknown."""

from __future__ import annotations

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Level
from tests.support.feeding import ledger
from tests.support.schedules import simulate
from tests.support.verdicts import even, judged, kinds


def test_hidden_broadcasts_are_called_hidden_and_no_rank_is_blamed() -> None:
    """With compute longer than transfer, the headline is good and no sentence is worse than a note."""
    said = judged()

    assert said.headline.kind == "hidden"
    assert said.level <= Level.NOTE


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
