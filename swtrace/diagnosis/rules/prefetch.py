"""Whether another prefetch step would hide more, and whether the configured one is in effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import HIDDEN_BELOW, Finding, Level
from swtrace.diagnosis.rule import STALLS, About, Needs, Rule
from swtrace.diagnosis.rules.channel import transfers_known
from swtrace.ledger.planning.calibrate import calibrate
from swtrace.placement import least_ahead
from swtrace.units import milliseconds

_PREDICTED_FROM = 26
"""Newest steps from which the planner predicts another prefetch step; a verdict must not take long."""
_FURTHER = 3
"""How many prefetch steps above the configured one are replayed."""
_WORTH = 0.8
"""A larger prefetch step is proposed only if at most this share of the stall remains."""


class OtherPrefetchStep(Rule):
    """What larger prefetch steps would leave: the first that hides, or else the best if it is worth it."""

    kinds = ("prefetch_step", "prefetch_step_no_help")
    about = About.CAUSE
    needs = Needs.STALLS
    explains = STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding if the series stalls and the planner can predict."""
        facts, steps = case.facts, case.judged
        info = facts.ranks[0].info
        worst = max((rank.recent.stall_ratio or 0.0 for rank in facts.ranks), default=0.0)
        if worst < HIDDEN_BELOW or not transfers_known(facts):
            return
        planner = calibrate(steps[-_PREDICTED_FROM:])
        if planner is None:
            return
        k = info.prefetch_step
        tried = []
        offloaded = info.offloaded
        largest = info.num_layers - (1 if offloaded else 2)
        last = largest if offloaded else min(k + _FURTHER, largest)  # offloaded layers are cheap to replay
        for other in range(k + 1, last + 1):
            predicted = planner.forecast(replace(planner.measured.candidate, prefetch_step=other))
            if isinstance(predicted, str):
                continue
            tried.append((other, predicted))
            if predicted.stall_ratio.value < HIDDEN_BELOW:
                break
        if not tried:
            return
        other, best = min(tried, key=lambda each: (round(each[1].stall_ratio.value, 2), each[0]))
        exposed, left = planner.measured.stall_ns, best.stall_ns
        numbers = {
            "prefetch_step": float(other),
            "stall_ns_per_step": left.value,
            "stall_ns_per_step_low": left.low,
            "stall_ns_per_step_high": left.high,
            "stall_ratio": best.stall_ratio.value,
            "slack_ns_per_wait": best.slack_per_wait_ns,
            "replayed_steps": float(planner.measured.steps),
        }
        source = f"predicted from the last {units.counted(planner.measured.steps, 'step')}"
        would = f"{milliseconds(left.value)} ({milliseconds(left.low)} to {milliseconds(left.high)}"
        if left.value > _WORTH * exposed:
            yield Finding(
                "prefetch_step_no_help",
                Level.NOTE,
                f"{case.on}k={k} leaves {milliseconds(exposed)} per step exposed, and a larger prefetch step would not "
                f"help: k={other} would leave {would}; {source}).",
                numbers,
                advice=f"`swtrace plan` says what {info.terms.sharing} fewer layers would give.",
            )
            return
        yield Finding(
            "prefetch_step",
            Level.WARNING,
            f"{case.on}k={k} leaves {milliseconds(exposed)} per step exposed; k={other} would leave {would}; "
            f"{units.ratio(best.stall_ratio.value)} of step time), with {milliseconds(best.slack_per_wait_ns)} of "
            f"slack per wait ({source}).",
            numbers,
            advice=f"Pass --offload-prefetch-step {other} to vLLM; each step ahead takes one more buffer."
            if offloaded
            else f"Set SWTRACE_PREFETCH_STEP={other}; each step ahead takes one more window.",
        )


class EffectivePrefetchStep(Rule):
    """Ranks that issue broadcasts fewer layers ahead than configured."""

    kinds = ("effective_prefetch_step",)
    about = About.CAUSE
    explains = STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about all ranks with the same two prefetch steps."""
        facts = case.facts
        found: dict[tuple[int, int], list[int]] = {}
        for rank in facts.ranks:
            effective, configured = rank.effective_prefetch_step, rank.info.prefetch_step
            least = least_ahead(configured, rank.info.num_layers) if rank.info.offloaded else configured
            if effective is not None and not least <= effective <= configured:
                found.setdefault((effective, configured), []).append(rank.rank.rank)
        for (effective, configured), ranks in found.items():
            ahead = units.counted(effective, facts.ranks[0].info.layer_term)
            yield Finding(
                "effective_prefetch_step",
                Level.BAD,
                f"{units.listed('Rank', [facts.named(rank) for rank in ranks])} "
                f"{'issues' if len(ranks) == 1 else 'issue'} some {facts.moves} {ahead} ahead instead of the "
                f"configured {configured}.",
                {"effective": effective, "configured": configured},
                ranks=tuple(ranks),
                advice="Check whether the forward skips offloaded layers, or runs them in another order."
                if facts.offloaded
                else "Register the layers in the order in which the forward reaches them.",
            )
