"""Ranks that compute longer than the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import LINKS, STALLS, About, Needs, Rule
from swtrace.ledger.facts import Pattern, Straggler
from swtrace.ledger.planning.repair import Part, Repair
from swtrace.ledger.recent import own_ns, sums_of
from swtrace.units import milliseconds

HARMFUL = 0.05
"""A straggler that costs less of the step is a warning."""
_OTHER_LOAD = 0.05
"""Ranks whose tokens differ by this share have another load."""
_ADVICE = {
    Pattern.CONSTANT: "Check that rank's host: clock speed, temperature, other processes, and the rank's share of "
    "requests.",
    Pattern.INTERMITTENT: "Look for what that rank does only in these steps, such as garbage collection or logging, "
    "and for other processes on its cores.",
    Pattern.PHASE: "Compare that rank's batches and kernels in this phase with those of the others.",
}


class Stragglers(Rule):
    """The ranks that the ledger names."""

    kinds = ("straggler",)
    about = About.CAUSE
    needs = Needs.STEPS
    explains = (*STALLS, "late_issue", *LINKS)

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding for each set of ranks that are slow together."""
        for straggler in case.facts.stragglers:
            yield _finding(case, straggler)


def _finding(case: Case, straggler: Straggler) -> Finding:
    group = case.facts.key.group_ranks
    numbers = tuple(rank.rank for rank in straggler.ranks)
    group_ranks = tuple(sorted(group.index(rank) for rank in numbers))
    return Finding(
        "straggler",
        Level.BAD if straggler.share >= HARMFUL else Level.WARNING,
        _sentence(case, straggler),
        {
            "excess_ns": straggler.excess_ns,
            "share": straggler.share,
            "often": straggler.often,
        }
        | ({} if straggler.period is None else {"period": straggler.period}),
        ranks=numbers,
        advice=_ADVICE[straggler.pattern],
        confidence=straggler.confidence,
        since_ns=case.unix_ns(0, straggler.since_ns) if straggler.since_ns else 0,
        since_step=straggler.since_step,
        evidence=_evidence(case, straggler, group_ranks),
        repair=Repair(Part.COMPUTE, group_ranks),
    )


def _sentence(case: Case, straggler: Straggler) -> str:
    named = [case.facts.named(rank.rank) for rank in straggler.ranks]
    several = len(named) > 1
    ranks = f"Ranks {', '.join(named[:-1])} and {named[-1]}" if several else f"Rank {named[0]}"
    excess = f"{'up to ' if several else ''}{milliseconds(straggler.excess_ns)} longer"
    share = f"{units.ratio(straggler.share)} of step time"
    since = "" if straggler.since_step is None else f", since step {straggler.since_step:,}"
    if straggler.pattern is Pattern.CONSTANT:
        are = "are stragglers: they compute" if several else "is the straggler: it computes"
        return f"{ranks} {are} {excess} per step than the others ({share}){since}."
    if straggler.phase is not None:
        when = f"{straggler.phase.name.lower()} steps"
    elif straggler.period is not None:
        when = f"every {_ordinal(straggler.period)} step"
    else:
        when = f"{100 * straggler.often:.0f} % of the steps"
    are = f"are stragglers in {when}: they compute" if several else f"is the straggler in {when}: it computes"
    return f"{ranks} {are} {excess} there than the others ({share} on average){since}."


def _ordinal(number: int) -> str:
    if number == 2:  # noqa: PLR2004 - a word of its own
        return "second"
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")  # noqa: PLR2004
    return f"{number}{ending}"


def _evidence(case: Case, straggler: Straggler, group_ranks: tuple[int, ...]) -> tuple[str, ...]:
    """Return what these and the other ranks compute in the recent affected steps, and tokens that differ."""
    steps = [step for step in case.regular if straggler.phase is None or step.common_phase is straggler.phase]
    if not steps:
        return ()
    own = np.array([own_ns(sums_of(step)) for step in steps])
    others = np.delete(own, group_ranks, axis=1)
    worst = case.facts.key.group_ranks.index(straggler.ranks[0].rank)
    kind = "" if straggler.phase is None else f"{straggler.phase.name.lower()} "
    which = f"the last {units.counted(len(steps), f'{kind}step')}"
    if straggler.pattern is Pattern.INTERMITTENT:
        slow = own[:, worst] - np.median(others, axis=1) > straggler.excess_ns / 2
        if not slow.any():
            return ()
        own, others, which = own[slow], others[slow], f"{slow.sum()} slow ones of {which}"
    each = [f"rank {case.facts.named(case.facts.key.group_ranks[rank])}" for rank in group_ranks]
    these = ", ".join(
        f"{name} {milliseconds(float(ns))}"
        for name, ns in zip(each, np.median(own[:, group_ranks], axis=0), strict=True)
    )
    theirs = np.median(others, axis=0)
    low, high = milliseconds(float(theirs.min())), milliseconds(float(theirs.max()))
    rest = "the other rank" if len(theirs) == 1 else "the others"
    said = [f"Median compute in {which}: {these}; {rest} {low}{'' if low == high else f' to {high}'}."]
    tokens = np.mean([step.tokens for step in steps], axis=0)
    load, other_load = float(tokens[list(group_ranks)].mean()), float(np.delete(tokens, group_ranks).mean())
    if other_load and abs(load / other_load - 1.0) >= _OTHER_LOAD:
        more, share = "more" if load > other_load else "fewer", units.ratio(abs(load / other_load - 1.0))
        who = "They process" if len(group_ranks) > 1 else "It processes"
        said.append(f"{who} {share} {more} tokens per step than {rest}.")
    return tuple(said)
