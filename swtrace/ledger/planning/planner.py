"""The planner: what a linear would cost and save under other settings, from measured steps of one series.

A prediction is what was measured, plus the difference between two replays of the same steps: one under the candidate's
settings, one under the run's own. So an error that both replays make cancels. What is replayed depends on what brings
the layers: :mod:`~swtrace.ledger.planning.shared`, or :mod:`~swtrace.ledger.planning.offload`.

Its interval has parts that add up as squares: how much the mean of steps varies from run to run; what the planner
missed when it predicted steps that it had not seen; and shares of what it predicts and of how much that changes,
because the model is the less certain the more it changes. The constants are calibrated on runs that were predicted
and then carried out; ``docs/planning.md`` has the figures.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from swtrace.ledger.planning.prediction import Candidate, Interval, Prediction, Replayed
from swtrace.share import Share
from swtrace.trace.identity import BROADCAST, H2D, PULL, SeriesInfo

_Float = npt.NDArray[np.float64]

FEWEST_STEPS = 8
"""Fewest consecutive steps to plan from."""
MOST_STEPS = 64
"""Newest consecutive steps to plan from; more take longer and say little more."""
HELD_OUT_STEP = 0.1
"""If the step time of held-out steps is missed by more than this share, nothing is predicted ..."""
HELD_OUT_STALL = 0.1
"""... nor if their stall ratio is missed by more than this."""
DRIFT = 0.05
"""Standard deviation of the difference in mean step time between two equal runs of the same minute, as a share ..."""
DRIFT_OF_STALL = {BROADCAST: 0.012, PULL: 0.005, H2D: 0.005}
"""... and that of the stall ratio. Ranks that broadcast wait for each other, so what slows one down stalls all. No rank
waits for another's copies; those from host memory are taken to be like pulls, since no runs were compared."""
DOUBT = 0.35
"""Standard deviation of a predicted change of step time, as a share of the change."""
DOUBT_OF_STALL = 0.25, 0.06
"""Standard deviation of a predicted stall ratio: shares of the ratio, and of its change."""
NORMAL = 1.645
"""Standard deviations on both sides of a normal distribution's mean that hold 90 % of it."""
_OF_HALVES = 2**-0.5
"""How much less two runs differ than the two halves of one of them."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was measured."""

    candidate: Candidate
    """The settings of the run; share none if its linears were only observed."""
    step_ns: float
    """Mean time of a step, on the rank with the longest."""
    stall_ratio: float
    """Stall as a share of step time, on the most stalled rank."""
    stall_ns: float
    """Mean stall per step of the most stalled rank."""
    memory_bytes: int
    steps: int
    """Steps of each rank that the planner replays."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a candidate would cost."""

    step_ns: Interval
    stall_ratio: Interval
    stall_ns: Interval
    """Mean per step, on the most stalled rank."""
    slack_per_wait_ns: float


class Times(NamedTuple):
    """What steps took, ``[step, rank]``, of ranks that run them together."""

    step_ns: _Float
    """Begin to end."""
    stall_ns: _Float


@dataclass(frozen=True, slots=True)
class Means:
    """Means over steps, of all ranks of the group, in ns."""

    step_ns: _Float
    stall_ns: _Float
    slack_per_wait_ns: float

    @classmethod
    def of(cls, parts: Iterable[Replayed]) -> Means:
        """Return the means of what ranks that do not run their steps together did."""
        parts = list(parts)
        return cls(
            np.concatenate([part.step_ns.mean(axis=0) for part in parts]),
            np.concatenate([part.stall_ns.mean(axis=0) for part in parts]),
            sum(float(part.slack_ns.sum()) for part in parts) / max(1, sum(part.waits for part in parts)),
        )


@dataclass(frozen=True, slots=True)
class Assumed:
    """What a replay assumes instead of what was measured."""

    scale_compute: float = 1.0
    """Computes take this many times as long."""
    bandwidth: float | None = None
    """Transfers bring this many bytes per second to a rank; None: as measured."""
    longer: float | _Float = 1.0
    """Transfers take this many times as long; or ``[position]``."""


class Planner(ABC):
    """Predicts the cost of other settings for one series."""

    def __init__(self, info: SeriesInfo, own: Candidate, took: Sequence[Times], assumed: Assumed) -> None:
        """Begin with what was measured.

        Args:
            info: The constants of the series.
            own: The settings of the run.
            took: Its steps; apart where ranks do not run them together.
            assumed: What predictions assume.
        """
        self._info, self._took, self._assumed = info, tuple(took), assumed
        self._step = np.concatenate([each.step_ns.mean(axis=0) for each in took])
        self._stall = np.concatenate([each.stall_ns.mean(axis=0) for each in took])
        self.measured = Baseline(
            candidate=own,
            step_ns=float(self._step.max()),
            stall_ratio=float((self._stall / self._step).max()),
            stall_ns=float(self._stall.max()),
            memory_bytes=self.memory_bytes(own),
            steps=min(len(each.step_ns) for each in took),
        )

    # ---- what depends on what brings the layers ----------------------------------------------

    @abstractmethod
    def memory_bytes(self, candidate: Candidate) -> int:
        """Return what the rank that holds most would hold of the linear."""

    @abstractmethod
    def _refusal(self, candidate: Candidate, layers: Sequence[int]) -> str:
        """Return why a candidate with these layers cannot be predicted from these steps; empty if it can."""

    @abstractmethod
    def _replay(self, candidate: Candidate, assumed: Assumed) -> Means:
        """Replay the steps under a candidate's settings."""

    @abstractmethod
    def _variants(self, candidate: Candidate, layers: Sequence[int]) -> Iterable[Means]:
        """Replay a candidate with other values of what the steps do not show, each a standard deviation away."""

    @abstractmethod
    def _halves(self) -> Iterable[tuple[Replayed, Times]]:
        """Predict the second half of the steps with the transfers of the first; return that, and what they took."""

    # ---- predictions -------------------------------------------------------------------------

    def predict(self, candidate: Candidate) -> Prediction:
        """Predict what a candidate would cost and save; a refusal in words if that is not known."""
        info = self._info
        memory = self.memory_bytes(candidate)
        found = self.forecast(candidate)
        forecast = None if isinstance(found, str) else found
        return Prediction(
            candidate,
            selected_layers=len(self._layers(candidate.share)),
            stack_layers=info.stack_layers,
            memory_bytes=memory,
            saved_bytes=info.stack_layers * info.layer_bytes - memory,
            step_ns=None if forecast is None else forecast.step_ns,
            stall_ratio=None if forecast is None else forecast.stall_ratio,
            refusal=found if isinstance(found, str) else "",
        )

    def forecast(self, candidate: Candidate) -> Forecast | str:
        """Predict what a candidate would cost; or say why that is not known."""
        layers = self._layers(candidate.share)
        refusal = self._refusal(candidate, layers) or self.held_out
        if refusal:
            return refusal
        found = self._replay(candidate, self._assumed)
        step, ratio = self._corrected(found, layers)
        missed_step, missed_ratio = (missed * _OF_HALVES for missed in self._missed)
        other_step, other_ratio = self._doubts_of_what_is_unseen(candidate, layers, step, ratio)
        change = (step - self.measured.step_ns) / step
        spread = step * _spread(self._noise, DRIFT, missed_step, DOUBT * change, other_step)
        of_ratio, of_change = DOUBT_OF_STALL
        doubts = of_ratio * ratio, of_change * (ratio - self.measured.stall_ratio)
        around = _spread(DRIFT_OF_STALL[candidate.transport], missed_ratio, other_ratio, *doubts) if layers else 0.0
        stall_ratio = Interval(ratio, max(0.0, ratio - around), min(1.0, ratio + around))
        return Forecast(
            step_ns=Interval(step, max(0.0, step - spread), step + spread),
            stall_ratio=stall_ratio,
            stall_ns=stall_ratio.scaled(step),
            slack_per_wait_ns=found.slack_per_wait_ns,
        )

    def _doubts_of_what_is_unseen(
        self, candidate: Candidate, layers: Sequence[int], step: float, ratio: float
    ) -> tuple[float, float]:
        """Return standard deviations of step time, as a share, and stall ratio, by what the steps do not show."""
        found = [self._corrected(each, layers) for each in self._variants(candidate, layers)] if layers else []
        # Broadcasts make ranks wait for each other. Those that did not wait may differ by what runs differ by.
        apart = DRIFT if found and candidate.transport == BROADCAST else 0.0
        return (
            math.hypot(*(other_step / step - 1 for other_step, _ in found)),
            math.hypot(apart, *(other_ratio - ratio for _, other_ratio in found)),
        )

    def _corrected(self, found: Means, layers: Sequence[int]) -> tuple[float, float]:
        """Return step time and stall ratio of a replay without the errors that the replay of the run itself makes."""
        own = self._replayed_own
        like = np.arange(len(found.step_ns)) % len(own.step_ns)  # in a larger group, ranks are like these in turn
        steps = found.step_ns + (self._step - own.step_ns)[like]
        stall = np.maximum(0.0, found.stall_ns + (self._stall - own.stall_ns)[like]) if layers else np.zeros_like(steps)
        return float(steps.max()), float((stall / steps).max())

    @cached_property
    def _noise(self) -> float:
        """Standard error of the mean step time, as a share of it, from the means of blocks of consecutive steps."""
        errors = []
        for took in self._took:
            longest = took.step_ns[:, int(took.step_ns.mean(axis=0).argmax())]
            blocks = np.array([block.mean() for block in np.array_split(longest, min(8, len(longest) // 2))])
            errors.append(float(blocks.std(ddof=1) / np.sqrt(len(blocks)) / longest.mean()))
        return 2**0.5 * max(errors)  # of the run that is predicted, too

    # ---- the guard ---------------------------------------------------------------------------

    @cached_property
    def held_out(self) -> str:
        """Why nothing can be predicted: the planner misses steps of the run that it has not seen; empty if not."""
        step, ratio = self._missed
        if step > HELD_OUT_STEP:
            return (
                f"the model does not fit this run: it misses the step time of steps that it had not seen by {step:.0%}"
            )
        if ratio > HELD_OUT_STALL:
            return (
                "the model does not fit this run: it misses the stall ratio of steps that it had not seen by "
                f"{100 * ratio:.0f} percentage points"
            )
        return ""

    @cached_property
    def _missed(self) -> tuple[float, float]:
        """Return what is missed of unseen steps: step time as a share of it, stall ratio as a difference."""
        step = ratio = 0.0
        for found, took in self._halves():
            truth, stalled = took.step_ns.mean(axis=0), took.stall_ns.mean(axis=0)
            step = max(step, abs(float(found.step_ns.mean(axis=0).max() / truth.max()) - 1))
            predicted = float((found.stall_ns.mean(axis=0) / found.step_ns.mean(axis=0)).max())
            ratio = max(ratio, abs(predicted - float((stalled / truth).max())))
        return step, ratio

    @cached_property
    def _replayed_own(self) -> Means:
        return self._replay(self.measured.candidate, Assumed())

    def _layers(self, share: Share) -> tuple[int, ...]:
        """Return the layers that a share selects, counted from the first of the stack."""
        return tuple(layer - self._info.start_layer for layer in self._info.layers_of(share))


def _spread(*parts: float) -> float:
    """Return half of the width of an interval, from the standard deviations of independent parts."""
    return NORMAL * math.hypot(*parts)
