"""Ranks that enter steps late."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from swtrace.diagnosis.case import Case, bounded
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.ledger.facts import CAUSES, Cause
from swtrace.units import milliseconds

_ENTRY_SHARE = 0.05
_FEWEST_STEPS = 4
"""Fewer steps are no pattern."""


class EntrySkew(Rule):
    """The rank that enters steps latest, if others stall for it."""

    kinds = ("entry_skew",)
    about = About.CAUSE
    needs = Needs.STALLS
    explains = ("stalled", "partly_hidden", "late_issue", "worst_layer")

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if the lateness is a notable share of step time."""
        complete = [step for step in case.regular if step.entry_known]
        if len(complete) < _FEWEST_STEPS:
            return
        late = np.median([step.entry_skew_ns for step in complete], axis=0)
        duration = float(np.median([step.duration_ns.max() for step in complete]))
        rank, lateness = int(late.argmax()), float(late.max())
        held = sum(int(step.cause_ns[CAUSES.index(Cause.ENTRY_SKEW)].sum()) for step in complete)
        if lateness < _ENTRY_SHARE * duration or held <= 0:
            return
        bound_ns = max(int(case.bounds_ns(step, rank)[step.arrival_ns.argmin()]) for step in complete)
        (number,) = case.global_ranks(rank)
        yield Finding(
            "entry_skew",
            Level.WARNING,
            f"Rank {case.facts.named(number)} enters the step {milliseconds(lateness)} (median) after the first rank"
            f"{bounded(bound_ns)}: the imbalance comes from outside the series.",
            {"entry_skew_ns": lateness, "stall_ns_per_step": held / len(complete), "clock_bound_ns": bound_ns},
            ranks=(number,),
            advice="Compare what the ranks do between steps: sampling, scheduling, input, other collectives.",
        )
