"""Which predictions are shown and chosen."""

from __future__ import annotations

import pytest

from swtrace.ledger.planning.pareto import RESOLUTION, Budget, choose, front
from swtrace.ledger.planning.prediction import Candidate, Interval, Prediction
from swtrace.share import ALL_LAYERS


def predicted(saved: int, step: float, stall_high: float = 0.0, *, k: int = 1, windows: str = "static") -> Prediction:
    """Return a prediction of a linear of 100 bytes."""
    return Prediction(
        candidate=Candidate(ALL_LAYERS, k, "pull", windows, 2),
        selected_layers=10,
        stack_layers=10,
        memory_bytes=100 - saved,
        saved_bytes=saved,
        step_ns=Interval(step, step, step),
        stall_ratio=Interval(0.0, 0.0, stall_high),
    )


def refused(saved: int) -> Prediction:
    """Return a candidate without figures."""
    return Prediction(Candidate(ALL_LAYERS, 1, "pull", "static", 2), 10, 10, 100 - saved, saved, None, None, "why")


def test_the_front_has_what_no_other_beats() -> None:
    """A prediction that saves less and is slower is left out, and so is one that is faster by almost nothing."""
    best = [predicted(0, 100.0), predicted(40, 110.0), predicted(90, 150.0)]
    beaten = [predicted(30, 120.0), predicted(80, 150.0), predicted(0, 105.0), predicted(39, 110.0 - RESOLUTION * 50)]
    assert front([*beaten, *reversed(best)]) == tuple(best)


def test_what_is_refused_is_neither_shown_nor_chosen() -> None:
    """A candidate without figures never enters the front, however much it would save."""
    assert front([refused(99), predicted(10, 100.0)]) == (predicted(10, 100.0),)
    assert choose([refused(99)], Budget()) is None


@pytest.mark.parametrize(
    ("budget", "saved"),
    [
        (Budget(stall_ratio=0.05), 40),
        (Budget(stall_ratio=0.02), 10),
        (Budget(memory_bytes=60), 40),
        (Budget(memory_bytes=90), 10),
        (Budget(stall_ratio=0.05, memory_bytes=30), None),
    ],
)
def test_the_budget_chooses(budget: Budget, saved: int | None) -> None:
    """A limit on stall takes the largest saving whose upper bound fits, a limit on memory the fastest that fits."""
    given = [predicted(10, 100.0, 0.01), predicted(40, 101.0, 0.04), predicted(90, 102.0, 0.06)]
    chosen = choose(given, budget)
    assert (None if chosen is None else chosen.saved_bytes) == saved


def test_of_equal_predictions_the_simplest_is_taken() -> None:
    """Where memory and step time are equal, the smaller prefetch step wins, and static windows win over rolling."""
    simplest = predicted(10, 100.0)
    others = [predicted(10, 100.0, k=2), predicted(10, 100.0, windows="rolling")]
    assert front([*others, simplest]) == (simplest,)
    assert choose([*others, simplest], Budget(stall_ratio=1.0)) == simplest
