"""What a demo with ``--max-stall`` runs next, and says in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.cli.demo.scenarios import Dials, Windows
from swtrace.cli.demo.within_limit import chosen_dials, conclude
from swtrace.cli.summary import Summary
from tests.support.plans import HALF, NOTHING, REFUSED, WHOLE, plan, predicted


@pytest.fixture
def stalled(summary: Summary) -> Summary:
    """Return the summary of a run whose most stalled rank stalls for 48.2 %."""
    return with_stall(summary, 0.482)


def with_stall(summary: Summary, most: float) -> Summary:
    """Return a summary whose ranks stall for this much, the first one for half as much."""
    (series, *_) = summary.series
    ranks = tuple(replace(series.ranks[0], rank=rank, stall_ratio=most / (2 - rank)) for rank in range(2))
    return replace(summary, series=(replace(series, ranks=ranks),))


def test_the_second_run_differs_only_in_what_the_plan_chose() -> None:
    """It has the chosen share, prefetch step and windows; everything else is as before."""
    dials = Dials(ranks=3, layers=61, mib=4.0, seed=7)
    expected = replace(dials, share="1/2", prefetch_step=2, windows=Windows.STATIC)
    assert chosen_dials(dials, plan(NOTHING, HALF, WHOLE)) == expected


def test_the_sentences_compare_both_runs_with_the_plan(stalled: Summary) -> None:
    """They have both stalls, each of the most stalled rank, the prediction, and the next larger share."""
    began, compared, larger = conclude(plan(NOTHING, HALF, WHOLE), stalled, with_stall(stalled, 0.013))
    assert began == (
        "The first run stalled for 48.2 % of its step time. To stall for at most 2.0 %, the plan shares 31 of 61 "
        "layers with prefetch step 2."
    )
    assert compared == "It predicted a stall of 0.8 % (0.2 to 1.9); the second run measured 1.3 %, within the limit."
    assert larger == (
        "The next larger share that saves more is not sure to stay within the limit: 61 of 61 layers with prefetch "
        "step 2, predicted 25.0 % (20.0 to 30.0)."
    )


def test_a_second_run_above_the_limit_is_said(stalled: Summary) -> None:
    """A plan that did not come true is not dressed up."""
    said = conclude(plan(NOTHING, HALF), stalled, with_stall(stalled, 0.031))
    assert said[1].endswith("the second run measured 3.1 %, above the limit.")


def test_the_next_larger_share_is_shown_with_its_best_settings(stalled: Summary) -> None:
    """Of the next larger share, the prediction with the lowest upper end counts, if it saves more than the choice."""
    worse = predicted("3/4", 30, 70.0, (0.1, 0.2, 0.3), k=1)
    best = predicted("3/4", 28, 68.0, (0.0, 0.1, 0.2), k=3)
    larger_but_saves_less = predicted("2/3", 20, 70.0, (0.05, 0.06, 0.07), k=8)
    said = conclude(plan(NOTHING, HALF, WHOLE, worse, best, larger_but_saves_less), stalled, stalled)
    assert "46 of 61 layers with prefetch step 3" in said[2]


def test_if_nothing_fits_the_nearest_is_named_and_not_run(stalled: Summary) -> None:
    """Then there are no dials for a second run."""
    nothing_fits = plan(NOTHING, WHOLE)
    assert chosen_dials(Dials(), nothing_fits) is None
    assert conclude(nothing_fits, stalled, None)[1] == (
        "No share that saves memory is sure to stall for at most 2.0 %, so there is no second run. What comes nearest "
        "is 61 of 61 layers with prefetch step 2, predicted 25.0 % (20.0 to 30.0)."
    )


def test_without_a_prediction_the_reason_is_said(stalled: Summary) -> None:
    """The planner's refusal is quoted."""
    said = conclude(plan(REFUSED), stalled, None)
    assert said[1].endswith("it was never measured. So there is no second run.")
