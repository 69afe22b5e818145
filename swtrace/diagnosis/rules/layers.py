"""The layer that stalls most, and low efficiency that does not matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import HIDDEN_BELOW, Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.ledger.facts import StepFacts
from swtrace.units import milliseconds

_LOW_EFFICIENCY = 0.5


class WorstLayer(Rule):
    """The wait that stalls most: which rank, at which layer."""

    kinds = ("worst_layer",)
    about = About.FIGURES
    needs = Needs.STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if the stall is worth mentioning."""
        steps, facts = case.judged, case.facts
        found = _worst_layer(steps)
        elapsed = sum(int(step.duration_ns.max(initial=0)) for step in steps)
        if found is None or not elapsed:
            return
        group_rank, position, mean = found
        if mean * len(steps) < HIDDEN_BELOW / 10 * elapsed:
            return
        last = steps[-1]
        layer = last.layers[position]
        rank, source = case.global_ranks(group_rank, int(last.source[position]))
        source_host = facts.host_of(source)
        origin = f"{'source:' if facts.lockstep else 'from'} rank {source}{source_host and ' on '}{source_host}"
        if not facts.terms.own:
            origin = f"from {facts.terms.source}"
        yield Finding(
            "worst_layer",
            Level.NOTE,
            f"The largest stall is on rank {facts.named(rank)} at layer {layer} ({origin}): "
            f"{milliseconds(mean)} per step.",
            {"stall_ns_per_step": mean},
            ranks=(rank,),
            layer=layer,
        )


class LowEfficiency(Rule):
    """A low efficiency that does not matter, so that nobody spends time on it."""

    kinds = ("low_efficiency_harmless",)
    about = About.FIGURES
    needs = Needs.STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if no rank stalls and one has a low efficiency."""
        measured = [(rank.recent.efficiency, rank.recent.stall_ratio) for rank in case.facts.ranks]
        known = [(efficiency, ratio) for efficiency, ratio in measured if efficiency is not None and ratio is not None]
        if not known:
            return
        efficiency, ratio = min(known)
        if efficiency >= _LOW_EFFICIENCY or max(ratio for _, ratio in known) >= HIDDEN_BELOW:
            return
        yield Finding(
            "low_efficiency_harmless",
            Level.NOTE,
            f"Prefetch efficiency is only {units.ratio(efficiency)}, but it does not matter: "
            f"stalls take {units.ratio(ratio)} of step time.",
            {"efficiency": efficiency, "stall_ratio": ratio},
        )


def _worst_layer(steps: Sequence[StepFacts]) -> tuple[int, int, float] | None:
    """Return group rank, position and mean stall per step of the wait that stalls most; None if no wait stalls."""
    whole = [step for step in steps if step.receiver.any()]
    if not whole:
        return None
    total = np.sum([step.stall_ns for step in whole], axis=0)
    if not total.any():
        return None
    rank, position = np.unravel_index(int(total.argmax()), total.shape)
    return int(rank), int(position), float(total[rank, position]) / len(whole)
