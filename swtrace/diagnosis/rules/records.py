"""What the figures leave out because it was not timed, not observed, or lost."""

from __future__ import annotations

from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.trace.schema import Observed

_NOTABLE = 0.05
"""Smallest share of steps or waits that is worth a sentence."""
_UNTIMED = {
    "sampled": "not sampled (SWTRACE_TIME_EVERY=1 times every step)",
    "busy": "because the device was too far behind the host (less often with a larger SWTRACE_TIME_EVERY)",
    "no_anchor": "because the device's clock could not be tied to the host's",
    "replay": "because a CUDA graph was replayed without time stamps (the rank's log says why)",
    "unfinished": "because the run ended before the device finished",
}


class Untraced(Rule):
    """Ranks that record nothing, and why. No figure includes them."""

    kinds = ("untraced",)
    about = About.CAVEAT

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about all of them."""
        facts = case.facts
        reasons = {untraced.rank: untraced.reason for rank in facts.ranks for untraced in rank.info.untraced}
        if not reasons:
            return
        said = "; ".join(
            f"rank {facts.named(rank)} runs untraced: {reason}" for rank, reason in sorted(reasons.items())
        )
        them = "it" if len(reasons) == 1 else "them"
        unknown = f"; stalls that depend on {them} have no known cause" if facts.lockstep and facts.shared else ""
        yield Finding(
            "untraced",
            Level.WARNING,
            f"{said[0].upper()}{said[1:]}. No figure includes {them}{unknown}.",
            {"ranks": len(reasons)},
            ranks=tuple(sorted(reasons)),
        )


class UntimedSteps(Rule):
    """How many steps are untimed, and why; a warning if many are untimed for another reason than sampling."""

    kinds = ("untimed",)
    about = About.CAVEAT

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding about the rank with most of them."""
        facts = case.facts
        totals = max(
            (rank.totals for rank in facts.ranks), key=lambda each: sum(each.untimed_steps.values()), default=None
        )
        untimed = 0 if totals is None else sum(totals.untimed_steps.values())
        if totals is None or not untimed:
            return
        why = [
            f"{steps} {_UNTIMED.get(reason, 'for a reason unknown to this version')}"
            for reason, steps in totals.untimed_steps.items()
            if steps
        ]
        unasked = untimed - totals.untimed_steps.get("sampled", 0)
        figures = "stall, on-time rate and efficiency cover" if facts.shared else "durations cover"
        yield Finding(
            "untimed",
            Level.WARNING if unasked > _NOTABLE * totals.steps else Level.NOTE,
            f"{untimed} of {units.counted(totals.steps, 'step')} {'is' if untimed == 1 else 'are'} untimed: "
            f"{', '.join(why)}. They are counted, but {figures} only timed steps.",
            {"steps": totals.steps, "untimed_steps": untimed, **totals.untimed_steps},
        )


class MissingRecords(Rule):
    """Steps that are left out of all ratios because some of their records are missing."""

    kinds = ("missing_records",)
    about = About.CAVEAT

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if many of the last steps lack records."""
        steps, partial = len(case.steps), sum(step.partial for step in case.steps)
        if partial <= _NOTABLE * steps:
            return
        yield Finding(
            "missing_records",
            Level.WARNING,
            f"{partial} of the last {units.counted(steps, 'step')} {'lacks' if partial == 1 else 'lack'} records that "
            "were overwritten before they were read, or damaged. No ratio includes such steps.",
            {"steps": steps, "partial_steps": partial},
            advice="Set a larger SWTRACE_RING_RECORDS, so that records are kept longer.",
        )


class ReadyUnobserved(Rule):
    """Stalls that are upper bounds, because the completion of the transfers was not observed."""

    kinds = ("ready_unobserved",)
    about = About.CAVEAT
    needs = Needs.STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if there are many."""
        waits = sum(int(step.receiver.sum()) for step in case.regular)
        bounds = sum(int((step.receiver & (step.observed == Observed.UPPER_BOUND)).sum()) for step in case.regular)
        if not waits or bounds < _NOTABLE * waits:
            return
        yield Finding(
            "ready_unobserved",
            Level.NOTE,
            f"For {units.ratio(bounds / waits)} of the waits, the end of the {case.facts.terms.move} was not "
            "observed: their stalls are upper bounds.",
            {"share": bounds / waits},
        )


class AbortedSteps(Rule):
    """How many steps were aborted."""

    kinds = ("aborted",)
    about = About.CAVEAT

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding about the rank with most of them."""
        facts = case.facts
        aborted = max((rank.totals.aborted_steps for rank in facts.ranks), default=0)
        if not aborted:
            return
        issued = f"; the remaining {facts.moves} were still issued"
        rest = "" if facts.offloaded else issued if facts.shared else " or did not reach all layers in order"
        yield Finding(
            "aborted",
            Level.WARNING,
            f"{units.counted(aborted, 'step')} ended early{rest}.",
            {"aborted_steps": aborted},
        )


class UnwaitedSteps(Rule):
    """How many steps waited for no layer."""

    kinds = ("unwaited",)
    about = About.CAVEAT
    needs = Needs.STEPS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding about the rank with most of them."""
        facts = case.facts
        unwaited = max((rank.totals.unwaited_steps for rank in facts.ranks), default=0)
        if not unwaited:
            return
        what = "waited for no layer" if facts.shared else "called no linear"
        yield Finding(
            "unwaited",
            Level.NOTE,
            f"{units.counted(unwaited, 'step')} {what}, as in a profile run.",
            {"unwaited_steps": unwaited},
        )
