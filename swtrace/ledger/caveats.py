"""What the figures of a series are not about, or should not be trusted for: said beside them, or they mislead."""

from __future__ import annotations

from collections.abc import Sequence

from swtrace import units
from swtrace.ledger.facts import Cause, SeriesFacts, StepFacts
from swtrace.ledger.finding import Finding, Level
from swtrace.trace.schema import Observed

_NOISE_SHARE = 0.05
"""Share of the step time that the machine took before it is worth a sentence."""
_UNTIMED = {
    "sampled": "as SWTRACE_TIME_EVERY asks (1 times every step)",
    "busy": "because the device was too far behind the host (a larger SWTRACE_TIME_EVERY makes that rarer)",
    "no_anchor": "because the device's clock could not be tied to the host's",
    "replay": "because a CUDA graph was replayed without time stamps (the rank's log says why)",
    "unfinished": "because the run ended before the device did",
}


def effective_prefetch_step(facts: SeriesFacts) -> Finding | None:
    """Say when broadcasts are issued fewer layers ahead than configured."""
    for rank in facts.ranks:
        effective, configured = rank.effective_prefetch_step, rank.info.prefetch_step
        if effective is not None and effective != configured:
            return Finding(
                "effective_prefetch_step",
                Level.BAD,
                f"Rank {rank.rank.rank} issues some broadcast only {effective} layers ahead, configured are "
                f"{configured}.",
                {"effective": effective, "configured": configured},
                rank=rank.rank.rank,
                advice="Register the layers in the order in which the forward reaches them.",
            )
    return None


def aborted(facts: SeriesFacts) -> Finding | None:
    """Say how many steps ended early."""
    aborted = max((rank.totals.aborted_steps for rank in facts.ranks), default=0)
    if not aborted:
        return None
    return Finding(
        "aborted",
        Level.WARNING,
        f"{aborted} steps ended early; their broadcasts were caught up with.",
        {"aborted_steps": aborted},
    )


def untimed(facts: SeriesFacts) -> Finding | None:
    """Say how many steps the ratios are not about, and why; worse than a note if nobody asked for it."""
    totals = max((rank.totals for rank in facts.ranks), key=lambda each: sum(each.untimed_steps.values()), default=None)
    untimed = 0 if totals is None else sum(totals.untimed_steps.values())
    if totals is None or not untimed:
        return None
    why = [
        f"{steps} {_UNTIMED.get(reason, 'for a reason that this version does not know')}"
        for reason, steps in totals.untimed_steps.items()
        if steps
    ]
    unasked = untimed - totals.untimed_steps.get("sampled", 0)
    return Finding(
        "untimed",
        Level.WARNING if unasked > _NOISE_SHARE * totals.steps else Level.NOTE,
        f"{untimed} of {totals.steps} steps have no instants: {', '.join(why)}. They are counted; stall, on-time "
        "rate and efficiency are of the others.",
        {"steps": totals.steps, "untimed_steps": untimed, **totals.untimed_steps},
    )


def missing_records(steps: int, partial: int) -> Finding | None:
    """Say when many of the last steps are in no ratio, because some of their records are missing."""
    if partial <= _NOISE_SHARE * steps:
        return None
    return Finding(
        "missing_records",
        Level.WARNING,
        f"Records are missing in {partial} of the last {steps} steps, which no ratio counts: they were "
        "overwritten before they were read, or damaged.",
        {"steps": steps, "partial_steps": partial},
        advice="Set a larger SWTRACE_RING_RECORDS, so that records wait longer for their reader.",
    )


def unwaited(facts: SeriesFacts) -> Finding | None:
    """Say how many steps waited for nothing."""
    unwaited = max((rank.totals.unwaited_steps for rank in facts.ranks), default=0)
    if not unwaited:
        return None
    return Finding(
        "unwaited",
        Level.NOTE,
        f"{unwaited} steps waited for no layer at all (a profile run does that).",
        {"unwaited_steps": unwaited},
    )


def upper_bounds(steps: Sequence[StepFacts]) -> Finding | None:
    """Say when many stalls are upper bounds, because nobody saw the broadcasts complete."""
    waits = sum(int(step.receiver.sum()) for step in steps)
    bounds = sum(int((step.receiver & (step.observed == Observed.UPPER_BOUND)).sum()) for step in steps)
    if not waits or bounds < _NOISE_SHARE * waits:
        return None
    return Finding(
        "upper_bounds",
        Level.NOTE,
        f"The completion of {units.ratio(bounds / waits)} of the waits was not observed: "
        "their stalls are upper bounds.",
        {"share": bounds / waits},
    )


def untraced(facts: SeriesFacts) -> Finding | None:
    """Say which ranks record nothing, and why: none of the figures is about them."""
    reasons = {untraced.rank: untraced.reason for rank in facts.ranks for untraced in rank.info.untraced}
    if not reasons:
        return None
    said = "; ".join(f"rank {rank} runs untraced: {reason}" for rank, reason in sorted(reasons.items()))
    return Finding(
        "untraced",
        Level.WARNING,
        f"{said[0].upper()}{said[1:]}. No figure is about it; what the others owe to it has no known cause.",
        {"ranks": len(reasons)},
    )


def unattributed(facts: SeriesFacts) -> Finding | None:
    """Say when much of the stall has no known cause, and why."""
    stall = sum(rank.recent.stall_ns for rank in facts.ranks)
    unknown = sum(rank.recent.cause_ns.get(Cause.UNATTRIBUTED, 0) for rank in facts.ranks)
    if not stall or unknown < _NOISE_SHARE * stall:
        return None
    read, group = len(facts.ranks), len(facts.key.group_ranks)
    why = "records are missing"
    if any(rank.info.untraced for rank in facts.ranks):
        why = "not every rank of the group is traced"
    elif read < group:
        why = f"only {read} of the group's {group} ranks are read here"
    elif facts.clocks > 1:
        why = f"its ranks were timed by {facts.clocks} clocks (several hosts or time namespaces) that are not aligned"
    elif facts.impossible_steps:
        why = (
            f"in {facts.impossible_steps} steps a broadcast was ready before its source issued it, so the ranks' "
            "clocks differ"
        )
    elif any(sum(rank.totals.untimed_steps.values()) for rank in facts.ranks):
        why = "records are missing, or the steps before have no instants"
    return Finding(
        "unattributed",
        Level.NOTE,
        f"{units.ratio(unknown / stall)} of the stall has no known cause: {why}.",
        {"share": unknown / stall},
    )


def machine_noise(steps: Sequence[StepFacts]) -> Finding | None:
    """Say when the machine took the time: runnable without a core, or a hypervisor that ran others."""
    elapsed = sum(int(step.duration_ns.sum()) for step in steps)
    delayed = sum(int(step.run_delay_us.sum()) for step in steps) * 1000
    stolen = sum(int(step.steal_us.sum()) for step in steps) * 1000
    if not elapsed or max(delayed, stolen) < _NOISE_SHARE * elapsed:
        return None
    return Finding(
        "machine_noise",
        Level.WARNING,
        f"The machine took time from the ranks: {units.ratio(delayed / elapsed)} of step time runnable without a core, "
        f"{units.ratio(stolen / elapsed)} stolen by the hypervisor.",
        {"run_delay_share": delayed / elapsed, "steal_share": stolen / elapsed},
        advice="Give each rank a core of its own; until then the figures are also about the machine's other work.",
    )
