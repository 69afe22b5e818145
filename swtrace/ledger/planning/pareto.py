"""Which of the predicted settings to show, and which to choose. What cannot be predicted is never one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swtrace.ledger.planning.prediction import Interval, Prediction

RESOLUTION = 0.001
"""A prediction is on the front only if it is faster by this share than all that save as much memory or more."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the chosen settings may cost."""

    stall_ratio: float | None = None
    """The upper end of the stall ratio's interval may be at most this; None: any."""
    memory_bytes: int | None = None
    """A rank may hold at most this much of the linear; None: any."""

    def allows(self, prediction: Prediction) -> bool:
        """Return whether a prediction is within the budget."""
        stall = prediction.stall_ratio
        if stall is None:
            return False
        if self.memory_bytes is not None and prediction.memory_bytes > self.memory_bytes:
            return False
        return self.stall_ratio is None or stall.high <= self.stall_ratio


def front(predictions: Iterable[Prediction]) -> tuple[Prediction, ...]:
    """Return the predictions that no other one beats in both memory and step time, smallest saving first."""
    found: list[Prediction] = []
    fastest = float("inf")
    for each, step in sorted(_known(predictions), key=lambda item: (-item[0].saved_bytes, *_costs(*item))):
        if step.value < fastest * (1 - RESOLUTION):
            found.append(each)
            fastest = step.value
    return tuple(reversed(found))


def choose(predictions: Iterable[Prediction], budget: Budget) -> Prediction | None:
    """Return the best prediction within the budget; None if there is none.

    With a limit on stall, the best is the one that saves most. With a limit on memory alone, it is the fastest.
    """
    allowed = [(each, step) for each, step in _known(predictions) if budget.allows(each)]
    if not allowed:
        return None
    if budget.stall_ratio is not None:
        return min(allowed, key=lambda item: (-item[0].saved_bytes, *_costs(*item)))[0]
    return min(allowed, key=lambda item: (_costs(*item)[0], -item[0].saved_bytes, *_costs(*item)))[0]


def _known(predictions: Iterable[Prediction]) -> Iterable[tuple[Prediction, Interval]]:
    return ((each, each.step_ns) for each in predictions if each.step_ns is not None and not each.refusal)


def _costs(prediction: Prediction, step: Interval) -> tuple[float, int, bool]:
    """Return what to compare where the savings are equal: step time, then what is simpler."""
    candidate = prediction.candidate
    return step.value, candidate.prefetch_step, candidate.windows != "static"
