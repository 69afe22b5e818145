"""``swtrace demo --max-stall``: plan from the demo's own records, and compare a second run with the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from swtrace import units
from swtrace.cli.demo.scenarios import Dials, Windows
from swtrace.cli.plan import answer
from swtrace.cli.plan.asked import Values
from swtrace.cli.plan.planning import Question, plans
from swtrace.cli.plan.series_plan import shares
from swtrace.cli.plan.source import from_live
from swtrace.cli.recorded import WARMUP
from swtrace.ledger.planning.candidates import SHARES
from swtrace.observing import HostRings
from swtrace.selection import Selection
from swtrace.share import Share

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swtrace.cli.plan.series_plan import SeriesPlan
    from swtrace.cli.plan.source import Source
    from swtrace.cli.summary import Summary
    from swtrace.ledger.planning.pareto import Budget
    from swtrace.ledger.planning.prediction import Prediction

_SMALL_SHARES = tuple(map(Share, ("1/6", "1/8", "1/12")))
"""The demo's layers are so short that a transfer may need many of them to hide behind."""


def question(budget: Budget) -> Question:
    """Return what the demo asks: which share fits, with which prefetch step, by the run's own transport."""
    return Question(budget, Values((*SHARES, *_SMALL_SHARES), None, None, None))


def plan_of(
    directory: Path, run_id: str, asked: Question, progress: Callable[[str], None]
) -> tuple[Source, SeriesPlan]:
    """Plan the one series of a demo from its rings.

    Raises:
        CommandError: the run has no finished step.
        EmptySelectionError: it has too few.
    """
    source = from_live(HostRings(directory), f"the rings in {directory}", Selection(warmup=WARMUP), run_id)
    (plan,) = plans(source, asked, progress=progress)
    return source, plan


def chosen_dials(dials: Dials, plan: SeriesPlan) -> Dials | None:
    """Return the dials of the chosen settings; None if the plan chooses to share nothing, or has no choice."""
    chosen = plan.chosen
    if chosen is None or not shares(chosen.candidate):
        return None
    candidate = chosen.candidate
    return replace(
        dials,
        share=str(candidate.share),
        prefetch_step=candidate.prefetch_step,
        windows=Windows(candidate.windows),
    )


def conclude(plan: SeriesPlan, first: Summary, second: Summary | None) -> tuple[str, ...]:
    """Return in sentences what the first run stalled, what the plan chose, and what the second run measured."""
    stall, limit = _stall_ratio(first), plan.budget.stall_ratio
    began = f"The first run stalled for {units.ratio(stall)} of its step time."
    chosen = plan.chosen
    if chosen is None or chosen.stall_ratio is None or not shares(chosen.candidate):
        return (began, _no_choice(plan))
    said = [f"{began} To stall for at most {units.ratio(limit)}, the plan shares {_settings(chosen)}."]
    measured = None if second is None else _stall_ratio(second)
    if measured is not None and limit is not None:
        found = f"{units.ratio(measured)}, {'within' if measured <= limit else 'above'} the limit"
        said.append(f"It predicted a stall of {answer.stall(chosen)}; the second run measured {found}.")
    return (*said, *_larger(plan, chosen))


def _no_choice(plan: SeriesPlan) -> str:
    closest = plan.closest
    if not plan.predicted or closest is None:
        return f"{answer.answer(plan)} So there is no second run."
    return (
        f"No share that saves memory is sure to stall for at most {units.ratio(plan.budget.stall_ratio)}, so there is "
        f"no second run. What comes nearest is {_settings(closest)}, predicted {answer.stall(closest)}."
    )


def _larger(plan: SeriesPlan, chosen: Prediction) -> tuple[str, ...]:
    """Say why no larger share was chosen: the next one that saves more memory, with its least stalled settings."""
    larger = [
        (each.selected_layers, each.stall_ratio.high, each)
        for each in plan.predictions
        if each.stall_ratio is not None
        and each.selected_layers > chosen.selected_layers
        and each.saved_bytes > chosen.saved_bytes
    ]
    if not larger:
        return ()
    following = min(larger, key=lambda each: each[:2])[-1]
    said = f"{_settings(following)}, predicted {answer.stall(following)}"
    return (f"The next larger share that saves more is not sure to stay within the limit: {said}.",)


def _settings(prediction: Prediction) -> str:
    return f"{answer.layers(prediction)} layers with prefetch step {prediction.candidate.prefetch_step}"


def _stall_ratio(summary: Summary) -> float | None:
    """Return the stall ratio of the most stalled rank."""
    return max(
        (rank.stall_ratio for series in summary.series for rank in series.ranks if rank.stall_ratio is not None),
        default=None,
    )
