"""Ranks that enter steps late."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case, bounded
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import LINKS, STALLS, About, Needs, Rule
from swtrace.ledger.facts import CAUSES, Cause
from swtrace.ledger.planning.repair import Part, Repair
from swtrace.units import milliseconds, ratio

_LATE_SHARE = 0.02
"""Smallest mean lateness, as a share of step time, and smallest saving, that are worth a sentence."""
_OFTEN = 0.1
"""A rank must be that late in this share of the steps: a single long pause is no pattern."""
_FEWEST_STEPS = 4
"""Fewer steps are no pattern."""


class EntrySkew(Rule):
    """The ranks that enter steps late because they pause longer before, if others stall for them.

    Ranks that no barrier keeps together also enter late if they were late in the step before. Only the part of the
    lateness that arises between two steps counts, up to the first shared layer.
    """

    kinds = ("entry_skew",)
    about = About.CAUSE
    needs = Needs.STALLS
    explains = (*STALLS, "late_issue", *LINKS)

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if the lateness is a notable share of step time."""
        known = [step for step in case.regular if step.entry_known]
        pairs = [(before, step) for before, step in pairwise(known) if step.step == before.step + 1]
        if len(pairs) < _FEWEST_STEPS or len(case.facts.ranks) < 2:  # noqa: PLR2004 - nobody to be late for
            return
        steps = [step for _, step in pairs]
        took = np.array([step.duration_ns.max() for step in steps], np.float64)
        pause = np.array([step.arrival_ns - before.end_ns for before, step in pairs], np.float64)
        longer = pause - np.stack(
            [np.median(np.delete(pause, rank, axis=1), axis=1) for rank in range(pause.shape[1])], 1
        )
        late = np.clip(longer, 0.0, np.array([step.entry_skew_ns for step in steps]))
        share = late.sum(axis=0) / took.sum()
        often = (late >= _LATE_SHARE * took[:, np.newaxis]).mean(axis=0)
        ranks = [int(rank) for rank in np.argsort(-share) if share[rank] >= _LATE_SHARE and often[rank] >= _OFTEN]
        held = sum(int(step.cause_ns[CAUSES.index(Cause.ENTRY_SKEW)].sum()) for step in steps)
        if not ranks or held <= 0:
            return
        worst = ranks[0]
        since_step, since_ns = case.since(steps, late[:, worst])
        repair = Repair(Part.ENTRY, tuple(sorted(ranks)))
        saving = case.saving(repair, since_step)
        if saving is not None and saving.share < _LATE_SHARE:
            return
        numbers = case.global_ranks(*ranks)
        bound_ns = max(int(case.bounds_ns(step, worst)[step.arrival_ns.argmin()]) for step in steps)
        lates, others = late[:, worst] >= _LATE_SHARE * took, np.delete(pause, ranks, axis=1)
        lateness = float(late[lates, worst].mean())
        named = units.listed("Rank", [case.facts.named(number) for number in numbers])
        one = len(numbers) == 1
        steps_late = "the step" if often[worst] > 1 - _OFTEN else f"{ratio(float(often[worst]))} of the steps"
        yield Finding(
            "entry_skew",
            Level.WARNING,
            f"{named} {'enters' if one else 'enter'} {steps_late} late, by {'' if one else 'up to '}"
            f"{milliseconds(lateness)} on average{bounded(bound_ns)}: the imbalance comes from outside the series.",
            {
                "entry_skew_ns": lateness,
                "often": float(often[worst]),
                "stall_ns_per_step": held / len(steps),
                "clock_bound_ns": bound_ns,
            },
            ranks=numbers,
            advice="Compare what these ranks do between steps with the others: sampling, scheduling, input, other "
            "collectives.",
            confidence=1.0 if saving is not None else 0.9,
            since_ns=since_ns,
            since_step=since_step,
            evidence=(
                f"From the end of a step to the first layer of the next, rank {case.facts.named(numbers[0])} takes "
                f"{milliseconds(float(pause[:, worst].mean()))} (mean of the last {units.counted(len(steps), 'step')})"
                + (f", the other ranks {milliseconds(float(np.median(others)))} (median)." if others.size else "."),
                f"Meanwhile the ranks stall {milliseconds(held / len(steps))} per step in total for late entries.",
            ),
            repair=repair,
            saving=saving,
        )
