"""What is unknown because several clocks timed the ranks, or because records of some ranks are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Needs, Rule
from swtrace.ledger.facts import CAUSES, Cause, SeriesFacts, StepFacts

_NOTABLE = 0.05
"""Smallest share of stall that is worth a sentence."""


class Unattributed(Rule):
    """Stall of unknown cause, and why it is unknown."""

    kinds = ("unattributed",)
    about = About.CAVEAT
    needs = Needs.STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if it is much of the stall."""
        facts = case.facts
        stall = sum(rank.recent.stall_ns for rank in facts.ranks)
        unknown = sum(rank.recent.cause_ns.get(Cause.UNATTRIBUTED, 0) for rank in facts.ranks)
        if not stall or unknown < _NOTABLE * stall:
            return
        yield Finding(
            "unattributed",
            Level.NOTE,
            f"{units.ratio(unknown / stall)} of the stall has no known cause: {_because(facts, case.regular)}.",
            {"share": unknown / stall},
        )


def _because(facts: SeriesFacts, steps: Sequence[StepFacts]) -> str:
    read, group = len(facts.ranks), len(facts.key.group_ranks)
    why = "records are missing"
    untimed = any(sum(rank.totals.untimed_steps.values()) for rank in facts.ranks)
    if not facts.lockstep:  # what other ranks did explains no stall
        why = "records are missing, or the steps before are untimed" if untimed else why
    elif any(rank.info.untraced for rank in facts.ranks):
        why = "not every rank of the group is traced"
    elif read < group:
        why = f"only {read} of the group's {group} ranks {'is' if read == 1 else 'are'} read here"
    elif facts.impossible_steps and not (steps and all(step.comparable for step in steps)):
        why = (
            f"in {units.counted(facts.impossible_steps, 'step')} a broadcast was ready before its source issued it, so "
            "the ranks' clocks differ"
        )
    elif unknown := [rank for clock in facts.alignment if clock.offset_ns is None for rank in clock.group_ranks]:
        ranks = units.listed("rank", [facts.named(facts.key.group_ranks[rank]) for rank in unknown])
        why = (
            f"how the clock of {ranks} differs from the first rank's is unknown, as no broadcasts run in both "
            "directions between the two and no daemon has probed them"
        )
    elif facts.clock_bound_ns and (not steps or _mostly_in_doubt(steps)):
        bound = units.milliseconds(facts.clock_bound_ns)
        open_ = f"the bound of the ranks' clocks (±{bound}) leaves it open"
        why = open_ if steps else f"{why}, or {open_}"
    elif untimed:
        why = "records are missing, or the steps before are untimed"
    return why


def _mostly_in_doubt(steps: Sequence[StepFacts]) -> bool:
    """Return whether most of the stall of unknown cause is what the bound of the ranks' clocks leaves open."""
    unknown = [(step.cause_ns[CAUSES.index(Cause.UNATTRIBUTED)], step.attributed) for step in steps]
    in_doubt = sum(int(stall_ns[attributed].sum()) for stall_ns, attributed in unknown)
    return 2 * in_doubt > sum(int(stall_ns.sum()) for stall_ns, _ in unknown)


class AlignedClocks(Rule):
    """By how much differences between ranks may be off because several clocks timed them."""

    kinds = ("aligned_clocks",)
    about = About.CAVEAT
    needs = Needs.STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if some clocks are aligned."""
        facts = case.facts
        known = [clock for clock in facts.alignment if clock.offset_ns is not None]
        if not known:
            return
        hosts, clocks = len(facts.hosts), len(known) + 1
        whose = f"{hosts} hosts" if hosts == clocks else f"{clocks} sets of ranks"
        methods = " and ".join(dict.fromkeys(clock.method.value for clock in known))
        restarts = sum(clock.restarts for clock in known)
        changed = (
            f" Clocks changed {units.counted(restarts, 'time')}; the steps around are not compared." if restarts else ""
        )
        yield Finding(
            "aligned_clocks",
            Level.NOTE,
            f"The clocks of {whose} are aligned by {methods}: a difference between ranks on two of them may be off by "
            f"{units.milliseconds(facts.clock_bound_ns)}.{changed}",
            {"clocks": clocks, "clock_bound_ns": facts.clock_bound_ns, "restarts": restarts},
        )
