"""A plan is compared with the same figures, over the steps that it is about, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Level
from swtrace.diagnosis.rules.plan import beside_plan
from swtrace.ledger.comparison import Comparison, compare
from swtrace.ledger.facts import SeriesFacts
from swtrace.plan_file import Interval
from swtrace.trace.identity import Planned
from swtrace.trace.records import STEP
from swtrace.trace.schema import Kind, Phase
from tests.support.feeding import feed, ledger
from tests.support.schedules import Schedule, simulate

WIDE = Planned("digest", Interval(1e6, 0, 1e12), Interval(0.0, 0.0, 1.0))
"""A plan that every run keeps to."""
SLOW_STEPS = 8


def schedule(planned: Planned | None, steps: int = 24) -> Schedule:
    """Return steps of four layers. Rank 1 computes longest, and the others stall on it. The first steps are prefill."""

    def compute(rank: int, step: int, _position: int) -> int:
        return (1_000_000 + 400_000 * (rank == 1)) * (5 if step < SLOW_STEPS else 1)

    made = simulate(ranks=3, layers=4, k=1, steps=steps, occupancy=100_000, compute=compute)
    made.infos = [replace(info, planned=planned) for info in made.infos]
    for records in made.records:
        is_step = records["kind"] == Kind.STEP
        step_records = records[is_step].view(STEP)
        prefill = step_records["step"] < SLOW_STEPS
        step_records["phase"] = [Phase.PREFILL if early else Phase.DECODE for early in prefill]
        step_records["tokens"] = [100 if early else 10 for early in prefill]
        records[is_step] = step_records.view(records.dtype)
    return made


def facts(planned: Planned | None, **shape: Any) -> SeriesFacts:
    """Return the facts of such a run."""
    made = ledger(run := schedule(planned, **shape))
    feed(made, run)
    return made.facts().series[0]


def compared(planned: Planned, **shape: Any) -> Comparison:
    """Return such a run, compared with a plan."""
    comparison = compare(facts(planned, **shape))
    assert comparison is not None
    return comparison


def test_the_figures_are_those_of_the_longest_step_and_of_the_most_stalled_rank() -> None:
    """Without a phase, all recent steps count, and each figure is that of the rank where it is highest."""
    seen = facts(WIDE)
    comparison = compare(seen)
    assert comparison is not None
    recents = [rank.recent for rank in seen.ranks]
    assert comparison.step_ns == max(recent.step_ns / recent.steps for recent in recents)
    assert comparison.stall_ratio == max(recent.stall_ratio or 0.0 for recent in recents)
    assert comparison.steps == 24
    assert compare(facts(None)) is None


def test_a_plan_of_one_phase_is_compared_with_steps_of_that_phase() -> None:
    """A plan for decode steps leaves the prefill steps out: their length, their tokens and their number."""
    decode, everything = compared(replace(WIDE, phase="decode")), compared(WIDE)
    assert (decode.steps, decode.tokens) == (16, 10)
    assert decode.step_ns is not None
    assert everything.step_ns is not None
    assert everything.step_ns > 2 * decode.step_ns


FINDINGS: dict[str, dict[str, Any]] = {
    "as_planned": {},
    "better_than_planned": {"step_ns": Interval(1e9, 1e9, 1e9)},
    "plan_missed": {"step_ns": Interval(1e6, 1e6, 1e6)},
    "plan_differs": {"differs": "prefetch step 1, not 2"},
}


@pytest.mark.parametrize("kind", FINDINGS)
def test_the_verdict_says_whether_the_run_is_as_planned(kind: str) -> None:
    """The sentence after the headline has both figures. It warns if one is worse, or if the settings are others."""
    said = verdict(facts(replace(WIDE, **FINDINGS[kind]))).findings[1]
    assert said.kind == kind
    assert (said.level is Level.WARNING) == (kind in {"plan_missed", "plan_differs"})
    assert said.rank == (1 if kind == "plan_missed" else None)
    assert ("planned 1.00 ms (1.00 to 1.00), measured " in said.sentence) == (kind == "plan_missed")
    assert ("prefetch step 1, not 2" in said.sentence) == (kind == "plan_differs")


def test_a_few_steps_miss_no_plan() -> None:
    """Below 16 steps of the plan's phase, the figures are shown and not judged."""
    missed = replace(WIDE, step_ns=Interval(1, 1, 1), phase="decode")
    assert beside_plan(compared(missed, steps=SLOW_STEPS + 15)).kind == "plan_untested"
    assert beside_plan(compared(missed, steps=SLOW_STEPS + 16)).kind == "plan_missed"


@pytest.mark.parametrize(("tokens", "differs"), [(8.0, ""), (12.5, ""), (7.9, "10.0"), (12.6, "10.0"), (None, "")])
def test_batches_of_another_size_are_not_compared(tokens: float | None, differs: str) -> None:
    """If the mean number of tokens differs by more than a quarter, the plan is for other batches, which is no miss."""
    comparison = compared(replace(WIDE, step_ns=Interval(1, 1, 1), phase="decode", tokens=tokens))
    assert bool(comparison.differs) == bool(differs)
    assert differs in comparison.differs
    assert bool(comparison.worse) != bool(differs)
