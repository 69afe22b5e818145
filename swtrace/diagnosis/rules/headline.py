"""The headline of a shared series: whether its transfers hide behind compute."""

from __future__ import annotations

from collections.abc import Iterator

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import HIDDEN_BELOW, STALLED_ABOVE, Finding, Level
from swtrace.diagnosis.rule import About, Rule
from swtrace.diagnosis.rules.offloading import fewer_or
from swtrace.ledger.facts import Cause, SeriesRankFacts

_PLAN = "`swtrace plan` says which share of the layers and which prefetch step hide more."
_ADVICE = {
    Cause.TRANSFER: _PLAN,
    Cause.BACKLOG: _PLAN,
    Cause.SKEW: "The ranks issue at different times: compare what they compute in the timeline of `swtrace top`.",
    Cause.ENTRY_SKEW: "The ranks enter steps at different times: compare what they do between steps.",
}


class Headline(Rule):
    """How much of its step time the most stalled rank waits for weights, or why that is unknown."""

    kinds = ("hidden", "partly_hidden", "stalled", "nothing", "bypassed")
    about = About.HEADLINE
    explains = ("late_issue", "worst_layer")

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about every shared series."""
        if not case.facts.shared:
            return
        if case.bypassed and case.facts.offloaded:
            yield Finding(
                "bypassed",
                Level.BAD,
                "No step ever waited for an offloaded layer: the forward runs none of them.",
                advice="Check that the model's forward runs the offloaded decoder layers on this rank.",
            )
        elif case.bypassed:
            yield Finding(
                "bypassed",
                Level.BAD,
                "No step ever waited for a layer: the model's forward bypasses the series linear.",
                advice="Check that the model's forward calls the series linear; `swtrace doctor` shows how it is "
                "hooked.",
            )
        elif case.has_steps:
            yield _hidden(case)
        else:
            yield _nothing(case)


def _hidden(case: Case) -> Finding:
    ratios = [(rank.recent.stall_ratio, rank) for rank in case.facts.ranks]
    ratio, worst = max(((ratio, rank) for ratio, rank in ratios if ratio is not None), key=lambda each: each[0])
    if ratio < HIDDEN_BELOW:
        kind, level = "hidden", Level.GOOD
    elif ratio > STALLED_ABOVE:
        kind, level = "stalled", Level.BAD
    else:
        kind, level = "partly_hidden", Level.WARNING
    cause, advice = _main_cause(worst) if ratio >= HIDDEN_BELOW else ("", "")
    host = case.facts.host_of(worst.rank.rank)
    who = f"The most stalled rank ({worst.rank.rank}{host and ', '}{host})"
    if len(case.facts.key.group_ranks) == 1 and worst.info.offloaded:
        who = f"Rank {worst.rank.rank}{host and ' on '}{host}"
    return Finding(
        kind,
        level,
        f"{who} waits for weights {units.ratio(ratio)} of its "
        f"step time (below {100 * HIDDEN_BELOW:.0f} % counts as hidden).{cause}",
        {"stall_ratio": float(ratio)},
        ranks=(worst.rank.rank,),
        advice=advice,
    )


def _nothing(case: Case) -> Finding:
    ranks = case.facts.ranks
    if any(rank.recent.steps for rank in ranks):
        return Finding("nothing", Level.NOTE, "No recent step waited for a layer, so there is nothing to judge.")
    if any(rank.last_step is not None for rank in ranks):
        return Finding(
            "nothing", Level.WARNING, "Every finished step lacks some records, so there is nothing to judge."
        )
    untimed = any(sum(rank.totals.untimed_steps.values()) for rank in ranks)
    none = "No finished step was timed" if untimed else "No step has finished"
    return Finding("nothing", Level.NOTE, f"{none}, so there is nothing to judge.")


def _main_cause(rank: SeriesRankFacts) -> tuple[str, str]:
    """Return the largest cause of a rank's stall in a sentence, and what to do about it."""
    total = sum(rank.recent.cause_ns.values())
    if total <= 0:
        return "", ""
    cause, value = max(rank.recent.cause_ns.items(), key=lambda item: item[1])
    share = f"{100 * value / total:.0f} % of the stall"
    if cause is Cause.UNATTRIBUTED:
        return f" The cause is unknown for {share}.", ""
    advice = fewer_or(rank.info, "start copies earlier") if rank.info.offloaded else _ADVICE[cause]
    return f" {units.words(cause).capitalize()} is the largest cause, {share}.", advice
