"""Caveats: findings about what the figures of a series leave out, or why they may mislead."""

from __future__ import annotations

from collections.abc import Sequence

from swtrace import units
from swtrace.ledger.facts import CAUSES, Cause, SeriesFacts, StepFacts
from swtrace.ledger.finding import Finding, Level
from swtrace.trace.schema import Observed

_NOISE_SHARE = 0.05
"""Smallest share of step time, steps, waits or stall that is worth a sentence."""
_UNTIMED = {
    "sampled": "not sampled (SWTRACE_TIME_EVERY=1 times every step)",
    "busy": "because the device was too far behind the host (less often with a larger SWTRACE_TIME_EVERY)",
    "no_anchor": "because the device's clock could not be tied to the host's",
    "replay": "because a CUDA graph was replayed without time stamps (the rank's log says why)",
    "unfinished": "because the run ended before the device finished",
}


def effective_prefetch_step(facts: SeriesFacts) -> Finding | None:
    """Report a rank that issues broadcasts fewer layers ahead than configured."""
    for rank in facts.ranks:
        effective, configured = rank.effective_prefetch_step, rank.info.prefetch_step
        if effective is not None and effective != configured:
            ahead = units.counted(effective, rank.info.layer_term)
            return Finding(
                "effective_prefetch_step",
                Level.BAD,
                f"Rank {facts.named(rank.rank.rank)} issues some {facts.moves} {ahead} ahead instead of the configured "
                f"{configured}.",
                {"effective": effective, "configured": configured},
                rank=rank.rank.rank,
                advice="Register the layers in the order in which the forward reaches them.",
            )
    return None


def aborted(facts: SeriesFacts) -> Finding | None:
    """Report how many steps were aborted."""
    aborted = max((rank.totals.aborted_steps for rank in facts.ranks), default=0)
    if not aborted:
        return None
    rest = (
        f"; the remaining {facts.moves} were still issued" if facts.shared else " or did not reach all layers in order"
    )
    return Finding(
        "aborted",
        Level.WARNING,
        f"{units.counted(aborted, 'step')} ended early{rest}.",
        {"aborted_steps": aborted},
    )


def untimed(facts: SeriesFacts) -> Finding | None:
    """Report how many steps are untimed, and why; as a warning if many are untimed for another reason than sampling."""
    totals = max((rank.totals for rank in facts.ranks), key=lambda each: sum(each.untimed_steps.values()), default=None)
    untimed = 0 if totals is None else sum(totals.untimed_steps.values())
    if totals is None or not untimed:
        return None
    why = [
        f"{steps} {_UNTIMED.get(reason, 'for a reason unknown to this version')}"
        for reason, steps in totals.untimed_steps.items()
        if steps
    ]
    unasked = untimed - totals.untimed_steps.get("sampled", 0)
    figures = "stall, on-time rate and efficiency cover" if facts.shared else "durations cover"
    return Finding(
        "untimed",
        Level.WARNING if unasked > _NOISE_SHARE * totals.steps else Level.NOTE,
        f"{untimed} of {units.counted(totals.steps, 'step')} {'is' if untimed == 1 else 'are'} untimed: "
        f"{', '.join(why)}. They are counted, but {figures} only timed steps.",
        {"steps": totals.steps, "untimed_steps": untimed, **totals.untimed_steps},
    )


def missing_records(steps: int, partial: int) -> Finding | None:
    """Report that many of the last steps are left out of all ratios because some of their records are missing."""
    if partial <= _NOISE_SHARE * steps:
        return None
    return Finding(
        "missing_records",
        Level.WARNING,
        f"{partial} of the last {units.counted(steps, 'step')} {'lacks' if partial == 1 else 'lack'} records that were "
        "overwritten before they were read, or damaged. No ratio includes such steps.",
        {"steps": steps, "partial_steps": partial},
        advice="Set a larger SWTRACE_RING_RECORDS, so that records are kept longer.",
    )


def unwaited(facts: SeriesFacts) -> Finding | None:
    """Report how many steps waited for no layer."""
    unwaited = max((rank.totals.unwaited_steps for rank in facts.ranks), default=0)
    if not unwaited:
        return None
    return Finding(
        "unwaited",
        Level.NOTE,
        f"{units.counted(unwaited, 'step')} {'waited for no layer' if facts.shared else 'called no linear'}, as in a "
        "profile run.",
        {"unwaited_steps": unwaited},
    )


def ready_unobserved(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Finding | None:
    """Report that many stalls are upper bounds, because the completion of the transfers was not observed."""
    waits = sum(int(step.receiver.sum()) for step in steps)
    bounds = sum(int((step.receiver & (step.observed == Observed.UPPER_BOUND)).sum()) for step in steps)
    if not waits or bounds < _NOISE_SHARE * waits:
        return None
    return Finding(
        "ready_unobserved",
        Level.NOTE,
        f"For {units.ratio(bounds / waits)} of the waits, the end of the {facts.ranks[0].info.moves} was not observed: "
        "their stalls are upper bounds.",
        {"share": bounds / waits},
    )


def untraced(facts: SeriesFacts) -> Finding | None:
    """Report the ranks that record nothing, and why. No figure includes them."""
    reasons = {untraced.rank: untraced.reason for rank in facts.ranks for untraced in rank.info.untraced}
    if not reasons:
        return None
    said = "; ".join(f"rank {facts.named(rank)} runs untraced: {reason}" for rank, reason in sorted(reasons.items()))
    them = "it" if len(reasons) == 1 else "them"
    unknown = f"; stalls that depend on {them} have no known cause" if facts.lockstep and facts.shared else ""
    return Finding(
        "untraced",
        Level.WARNING,
        f"{said[0].upper()}{said[1:]}. No figure includes {them}{unknown}.",
        {"ranks": len(reasons)},
    )


def unattributed(facts: SeriesFacts, steps: Sequence[StepFacts] = ()) -> Finding | None:
    """Report that much of the stall has no known cause, and why."""
    stall = sum(rank.recent.stall_ns for rank in facts.ranks)
    unknown = sum(rank.recent.cause_ns.get(Cause.UNATTRIBUTED, 0) for rank in facts.ranks)
    if not stall or unknown < _NOISE_SHARE * stall:
        return None
    return Finding(
        "unattributed",
        Level.NOTE,
        f"{units.ratio(unknown / stall)} of the stall has no known cause: {_unattributed_because(facts, steps)}.",
        {"share": unknown / stall},
    )


def _unattributed_because(facts: SeriesFacts, steps: Sequence[StepFacts]) -> str:
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


def aligned_clocks(facts: SeriesFacts) -> Finding | None:
    """Report by how much differences between ranks may be off because several clocks timed them."""
    known = [clock for clock in facts.alignment if clock.offset_ns is not None]
    if not known:
        return None
    hosts, clocks = len(facts.hosts), len(known) + 1
    whose = f"{hosts} hosts" if hosts == clocks else f"{clocks} sets of ranks"
    methods = " and ".join(dict.fromkeys(clock.method.value for clock in known))
    restarts = sum(clock.restarts for clock in known)
    changed = (
        f" Clocks changed {units.counted(restarts, 'time')}; the steps around are not compared." if restarts else ""
    )
    return Finding(
        "aligned_clocks",
        Level.NOTE,
        f"The clocks of {whose} are aligned by {methods}: a difference between ranks on two of them may be off by "
        f"{units.milliseconds(facts.clock_bound_ns)}.{changed}",
        {"clocks": clocks, "clock_bound_ns": facts.clock_bound_ns, "restarts": restarts},
    )


def machine_noise(steps: Sequence[StepFacts]) -> Finding | None:
    """Report that ranks waited for a CPU, or that the hypervisor took CPU time from them."""
    elapsed = sum(int(step.duration_ns.sum()) for step in steps)
    delayed = sum(int(step.run_delay_us.sum()) for step in steps) * 1000
    stolen = sum(int(step.steal_us.sum()) for step in steps) * 1000
    if not elapsed or max(delayed, stolen) < _NOISE_SHARE * elapsed:
        return None
    return Finding(
        "machine_noise",
        Level.WARNING,
        f"Ranks waited for a CPU {units.ratio(delayed / elapsed)} of step time, and the hypervisor took "
        f"{units.ratio(stolen / elapsed)}.",
        {"run_delay_share": delayed / elapsed, "steal_share": stolen / elapsed},
        advice="Give each rank its own core; until then, the figures also reflect other work on the machine.",
    )
