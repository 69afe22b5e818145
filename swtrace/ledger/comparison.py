"""What a plan predicts for a series, beside what was measured.

A plan predicts two figures: the mean time of a step on the rank with the longest, and the stall ratio of the most
stalled rank. Here the same two are measured, over the recent timed steps that the plan is about (:func:`covers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from swtrace import units
from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.plan_file import Interval
from swtrace.trace.identity import Planned, SeriesInfo

_BATCH_FACTOR = 1.25
"""Batches whose mean number of tokens differs by a larger factor are not what the plan is about."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A plan's prediction for a series, and the same figures as measured."""

    planned: Planned
    steps: int
    """Number of steps that were measured; on the rank with the fewest."""
    tokens: float | None
    """Mean number of tokens in their batches; None without a step."""
    step_ns: float | None
    """Mean time of a step, on the rank with the longest; None without a step."""
    stall_ratio: float | None
    """Of the most stalled rank; None without a step."""
    rank: int | None
    """Global rank with the longest step."""

    @property
    def differs(self) -> str:
        """Why the prediction is not about this run, in words; empty if it is."""
        planned, tokens = self.planned, self.tokens
        if planned.differs or not planned.tokens or not tokens:
            return planned.differs
        if max(tokens / planned.tokens, planned.tokens / tokens) <= _BATCH_FACTOR:
            return ""
        return f"steps have {tokens:.1f} tokens on average, not {planned.tokens:.1f}"

    @property
    def worse(self) -> tuple[str, ...]:
        """Which figures are above the range of the prediction, in words, whatever the number of steps."""
        if self.differs or self.step_ns is None or self.stall_ratio is None:
            return ()
        figures = {"step time": (self.step_ns, self.planned.step_ns)}
        figures["stall ratio"] = (self.stall_ratio, self.planned.stall_ratio)
        return tuple(name for name, (measured, planned) in figures.items() if measured > planned.high)

    @property
    def sentence(self) -> str:
        """Both figures, planned and measured, in words."""
        return (
            f"Step time: {_beside(self.planned.step_ns, self.step_ns, units.milliseconds)}. "
            f"Stall ratio: {_beside(self.planned.stall_ratio, self.stall_ratio, units.ratio)}."
        )

    @property
    def better(self) -> bool:
        """Whether no figure is above its range, and one below."""
        return not self.worse and (
            (self.step_ns or 0.0) < self.planned.step_ns.low or (self.stall_ratio or 0.0) < self.planned.stall_ratio.low
        )


def compare(facts: SeriesFacts) -> Comparison | None:
    """Return what a plan predicts for a series beside what was measured; None if no rank was started with a plan."""
    planned = plan_of(rank.info for rank in facts.ranks)
    if planned is None:
        return None
    recents = [(rank.recent_as_planned, rank.rank.rank) for rank in facts.ranks]
    measured = [(recent, rank) for recent, rank in recents if recent is not None and recent.steps]
    step_ns, slowest = max(((recent.step_ns / recent.steps, rank) for recent, rank in measured), default=(None, None))
    steps = sum(recent.steps for recent, _ in measured)
    return Comparison(
        planned=planned,
        steps=min((recent.steps for recent, _ in measured), default=0),
        tokens=sum(recent.tokens for recent, _ in measured) / steps if steps else None,
        step_ns=step_ns,
        stall_ratio=max((recent.stall_ratio or 0.0 for recent, _ in measured), default=None),
        rank=slowest,
    )


def plan_of(infos: Iterable[SeriesInfo | None]) -> Planned | None:
    """Return the plan of a series, given its ranks: they were started with one, or with none."""
    return next((info.planned for info in infos if info is not None and info.planned is not None), None)


def covers(planned: Planned, step: StepFacts) -> bool:
    """Return whether a plan is about a step: if it was made from steps of one phase, only about those."""
    return not planned.phase or step.common_phase.name.lower() == planned.phase


def _beside(planned: Interval, measured: float | None, text: Callable[[float], str]) -> str:
    shown = "unknown" if measured is None else text(measured)
    return f"planned {units.ranged((planned.value, planned.low, planned.high), text)}, measured {shown}"
