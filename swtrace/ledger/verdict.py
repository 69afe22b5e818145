"""Explain one series in plain words, from the ledger's facts only.

Every sentence is a :class:`Finding` with advice and the numbers behind it. A finding never goes beyond the facts. It
gives a cause only for attributed waits and calls a rank the straggler only if the ledger does. It proposes another
prefetch step only if the planner (:mod:`swtrace.ledger.planning.planner`) predicts steps that it had not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from swtrace import units
from swtrace.ledger import caveats, observed
from swtrace.ledger.channel import SERIAL
from swtrace.ledger.comparison import compare
from swtrace.ledger.facts import CAUSES, Cause, Outcome, SeriesFacts, SeriesRankFacts, StepFacts
from swtrace.ledger.finding import HIDDEN_BELOW, STALLED_ABOVE, Finding, Level
from swtrace.ledger.planning.planner import Planner
from swtrace.ledger.readers import readers
from swtrace.trace.identity import RankKey
from swtrace.units import milliseconds

_LOW_EFFICIENCY = 0.5
_LATE_SHARE = 0.6
"""A rank is named as the last to issue only if it causes at least this share of the skew."""
_ENTRY_SHARE = 0.05
_TIGHT = 1.1
"""Transfer and compute that differ by a smaller factor count as equal."""
PREDICTED_FROM = 26
"""Newest steps from which the planner predicts another prefetch step; a verdict must not take long."""
_FURTHER = 3
"""How many prefetch steps above the configured one are replayed."""
_WORTH = 0.8
"""A larger prefetch step is proposed only if at most this share of the stall remains."""
_CROWDED_FACTOR = 1.25
"""By how much longer copies must take for the number of readers to be worth a sentence."""
_CROWDED_COPIES = 16
"""Fewer copies prove nothing."""
DRY_BELOW_NS = 30_000
"""A device that starts an issue within this time of its launch was idle before. The launch itself takes about 5 to
10 us, and the mapping from device time to host time is off by up to 5 us."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings about one series: the headline, what the plan says if there is one, and the others by level."""

    headline: Finding
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst level of any finding."""
        return max((finding.level for finding in self.findings), default=self.headline.level)


def verdict(facts: SeriesFacts, steps: Sequence[StepFacts] = (), died: Collection[RankKey] = ()) -> Verdict:
    """Return the findings about a series.

    Args:
        facts: The series, summed over the last steps.
        steps: Those steps, oldest first (:meth:`Ledger.history`). Without them, findings are about the sums only.
        died: Ranks that died, of any series.
    """
    said = _verdict(facts, steps)
    dead = sorted(key.rank for key in died if key.run_id == facts.key.run_id and key.rank in facts.key.group_ranks)
    if not dead:
        return said
    headline = _died(facts, dead)
    return Verdict(headline, (headline, *said.findings))


def _died(facts: SeriesFacts, dead: Sequence[int]) -> Finding:
    """Return the headline for dead ranks. It comes first, because all figures are from before the death."""
    ranks = units.listed("Rank", [facts.named(rank) for rank in dead])
    figures = "All figures" if facts.lockstep else f"The figures of {'that rank' if len(dead) == 1 else 'these ranks'}"
    return Finding("died", Level.BAD, f"{ranks} died. {figures} are from the steps before.", rank=dead[0])


def _verdict(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Verdict:
    headline = _headline(facts) if facts.shared else observed.headline(facts)
    whole = [step for step in steps if not step.partial]
    found = [
        caveats.untraced(facts),
        caveats.effective_prefetch_step(facts),
        caveats.aborted(facts),
        caveats.untimed(facts),
        caveats.missing_records(len(steps), len(steps) - len(whole)),
    ]
    if headline.kind == observed.KIND:
        regular = [step for step in whole if not step.aborted]
        found = [
            _straggler(facts),
            observed.compute(facts, regular),
            *found,
            caveats.unwaited(facts),
            caveats.machine_noise(regular),
        ]
    elif headline.kind not in {"nothing", "bypassed"}:
        regular = [step for step in whole if not step.aborted]
        judged = judged_steps(facts, regular)
        found = [
            _straggler(facts),
            _late_issue(facts, regular),
            _launch_bound(facts, regular),
            _entry(facts, regular),
            *((_channel(judged), _other_prefetch_step(facts, judged)) if _transfers_known(facts) else ()),
            _crowded(facts, regular, judged),
            _worst_layer(facts, judged),
            _efficiency(facts),
            *found,
            caveats.unwaited(facts),
            caveats.ready_unobserved(facts, regular),
            caveats.unattributed(facts, regular),
            caveats.aligned_clocks(facts),
            caveats.machine_noise(regular),
        ]
    said = sorted(filter(None, found), key=lambda finding: -finding.level)
    compared = compare(facts)
    return Verdict(headline, (headline, *(() if compared is None else (compared.finding,)), *said))


def judged_steps(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Sequence[StepFacts]:
    """Return the steps that stand for the series: in a pull series, those of the most stalled rank that has any."""
    if facts.lockstep:
        return steps
    ratios = {rank.info.rank_in_group: rank.recent.stall_ratio or 0.0 for rank in facts.ranks}
    worst = max({step.of_rank for step in steps if step.of_rank in ratios}, key=lambda rank: ratios[rank], default=None)
    return [step for step in steps if step.of_rank == worst]


def _on(steps: Sequence[StepFacts]) -> str:
    """Return the words before a sentence about one rank's steps; empty if all ranks run the steps."""
    only = steps[-1].only_rank
    return "" if only is None else f"On rank {only.rank}, "


def worst_layer(steps: Sequence[StepFacts]) -> tuple[int, int, float] | None:
    """Return group rank, position and mean stall per step of the wait that stalls most; None if no wait stalls."""
    whole = [step for step in steps if step.receiver.any()]
    if not whole:
        return None
    total = np.sum([step.stall_ns for step in whole], axis=0)
    if not total.any():
        return None
    rank, position = np.unravel_index(int(total.argmax()), total.shape)
    return int(rank), int(position), float(total[rank, position]) / len(whole)


# -- one function per sentence ------------------------------------------------------------------------


def _headline(facts: SeriesFacts) -> Finding:
    ranks = facts.ranks
    waited = sum(
        rank.totals.waits[outcome] for rank in ranks for outcome in (Outcome.ON_TIME, Outcome.STALLED, Outcome.UNTIMED)
    )
    if sum(rank.totals.unwaited_steps for rank in ranks) and not waited:
        return Finding(
            "bypassed",
            Level.BAD,
            "No step ever waited for a layer: the model's forward bypasses the series linear.",
            advice="Check that the model's forward calls the series linear; `swtrace doctor` shows how it is hooked.",
        )
    judged = [rank for rank in ranks if rank.recent.stall_ratio is not None]
    if not judged:
        if any(rank.recent.steps for rank in ranks):
            return Finding("nothing", Level.NOTE, "No recent step waited for a layer, so there is nothing to judge.")
        if any(rank.last_step is not None for rank in ranks):
            return Finding(
                "nothing", Level.WARNING, "Every finished step lacks some records, so there is nothing to judge."
            )
        untimed = any(sum(rank.totals.untimed_steps.values()) for rank in ranks)
        none = "No finished step was timed" if untimed else "No step has finished"
        return Finding("nothing", Level.NOTE, f"{none}, so there is nothing to judge.")
    worst = max(judged, key=lambda rank: rank.recent.stall_ratio or 0.0)
    ratio = float(worst.recent.stall_ratio or 0.0)
    if ratio < HIDDEN_BELOW:
        kind, level = "hidden", Level.GOOD
    elif ratio > STALLED_ABOVE:
        kind, level = "stalled", Level.BAD
    else:
        kind, level = "partly_hidden", Level.WARNING
    cause = _main_cause(worst) if ratio >= HIDDEN_BELOW else ""
    host = facts.host_of(worst.rank.rank)
    return Finding(
        kind,
        level,
        f"The most stalled rank ({worst.rank.rank}{host and ', '}{host}) waits for weights {units.ratio(ratio)} of its "
        f"step time (below {100 * HIDDEN_BELOW:.0f} % counts as hidden).{cause}",
        {"stall_ratio": ratio},
        rank=worst.rank.rank,
    )


def _main_cause(rank: SeriesRankFacts) -> str:
    total = sum(rank.recent.cause_ns.values())
    if total <= 0:
        return ""
    cause, value = max(rank.recent.cause_ns.items(), key=lambda item: item[1])
    share = f"{100 * value / total:.0f} % of the stall"
    if cause is Cause.UNATTRIBUTED:
        return f" The cause is unknown for {share}."
    return f" {units.words(cause).capitalize()} is the largest cause, {share}."


def _straggler(facts: SeriesFacts) -> Finding | None:
    straggler = facts.straggler
    if straggler is None:
        return None
    return Finding(
        "straggler",
        Level.BAD,
        f"Rank {facts.named(straggler.rank.rank)} is the straggler: {milliseconds(straggler.excess_ns)} of excess "
        f"compute on the critical path (median; {units.ratio(straggler.share)} of the median step time); the next rank "
        f"has {milliseconds(straggler.next_excess_ns)}.",
        {
            "excess_ns": straggler.excess_ns,
            "next_excess_ns": straggler.next_excess_ns,
            "share": straggler.share,
            "consistency": straggler.consistency,
        },
        rank=straggler.rank.rank,
        advice="Check that rank's host: clock speed, temperature, other processes, and the rank's share of requests.",
    )


def _late_issue(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Finding | None:
    """Name the rank that causes most of the skew. This is a proximate cause, and the advice says so."""
    blamed: dict[int, tuple[float, int, int]] = {}
    clocks = facts.clock_numbers()
    total = 0.0
    for step in steps:
        skew = step.cause_ns[CAUSES.index(Cause.SKEW)]
        held = (skew > 0) & ~step.on_time
        total += float(skew[held].sum())
        for late in np.unique(step.late_rank[held & (step.late_rank >= 0)]).tolist():
            delayed = held & (step.late_rank == late)
            held_ns, count, bound_ns = blamed.get(int(late), (0.0, 0, 0))
            bound_ns = max(bound_ns, int(_bounds_ns(step, clocks, late)[delayed.any(axis=1)].max()))
            blamed[int(late)] = held_ns + float(skew[delayed].sum()), count + int(delayed.sum()), bound_ns
    elapsed = sum(int(step.duration_ns.max(initial=0)) for step in steps)
    receivers = max((int(step.ended.sum()) for step in steps), default=1)
    if not blamed or total < HIDDEN_BELOW * elapsed:
        return None
    late, (held_ns, count, bound_ns) = max(blamed.items(), key=lambda item: item[1][0])
    if held_ns < _LATE_SHARE * total:
        return None
    rank = steps[-1].ranks[late].rank
    return Finding(
        "late_issue",
        Level.WARNING,
        f"Rank {facts.named(rank)} issues last and causes {units.ratio(held_ns / total)} of the skew: "
        f"{'at least ' if bound_ns else ''}{milliseconds(held_ns / count)} per delayed wait{_bounded(bound_ns)}, "
        f"{milliseconds(held_ns / len(steps) / max(1, receivers - 1))} per step on each other rank.",
        {"skew_share": held_ns / total, "mean_skew_ns": held_ns / count, "waits": count, "clock_bound_ns": bound_ns},
        rank=rank,
        advice="This is the proximate cause: the rank may be late only because it stalled. If it is slow itself, the "
        "critical path names it as the straggler.",
    )


def _bounds_ns(step: StepFacts, clocks: npt.NDArray[np.int64], rank: int) -> npt.NDArray[np.int64]:
    """Return ``[rank]``: by how much differences between a group rank's instants and the others' may be off."""
    return np.where(clocks == clocks[rank], 0, step.clock_bound_ns + step.clock_bound_ns[rank])


def _bounded(bound_ns: int) -> str:
    """Return the bound of a figure that compares ranks, for a sentence; empty if one clock timed them."""
    return f" (clock bound {milliseconds(bound_ns)})" if bound_ns else ""


def _launch_bound(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Finding | None:
    """Name the rank whose host launches broadcasts so late that its device is idle before."""
    if not steps:
        return None
    bound, stalled = np.zeros((2, len(steps[-1].ranks)), np.int64)
    lags: list[int] = []
    for step in steps:
        lag = step.issued_ns - step.launched_ns
        dry = (step.launched_ns > 0) & (lag < DRY_BELOW_NS) & ~step.on_time & step.receiver
        bound += np.where(dry, step.stall_ns, 0).sum(axis=1)
        stalled += step.stall_ns.sum(axis=1)
        lags += lag[dry].tolist()
    rank = int(bound.argmax())
    elapsed = sum(int(step.duration_ns[rank]) for step in steps)
    if not lags or bound[rank] < max(HIDDEN_BELOW * elapsed, _LATE_SHARE * stalled[rank]):
        return None
    number, share = steps[-1].ranks[rank].rank, float(bound[rank] / stalled[rank])
    return Finding(
        "launch_bound",
        Level.WARNING,
        f"Rank {facts.named(number)} is bound by its host: {units.ratio(share)} of its stall is on {facts.moves} that "
        f"the device started {milliseconds(float(np.median(lags)))} (median) after launch, so it had run out of work.",
        {"share": share, "median_lag_ns": float(np.median(lags)), "waits": len(lags)},
        rank=number,
        advice="CUDA graphs, or fewer launches per layer, let the host run ahead. The transport is not the problem; a "
        "larger prefetch step will not help.",
    )


def _entry(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Finding | None:
    complete = [step for step in steps if step.entry_known]
    if len(complete) < 4:  # noqa: PLR2004 - a few steps are no pattern
        return None
    late = np.median([step.entry_skew_ns for step in complete], axis=0)
    duration = float(np.median([step.duration_ns.max() for step in complete]))
    rank, lateness = int(late.argmax()), float(late.max())
    held = sum(int(step.cause_ns[CAUSES.index(Cause.ENTRY_SKEW)].sum()) for step in complete)
    if lateness < _ENTRY_SHARE * duration or held <= 0:
        return None
    clocks = facts.clock_numbers()
    bound_ns = max(int(_bounds_ns(step, clocks, rank)[step.arrival_ns.argmin()]) for step in complete)
    number = complete[-1].ranks[rank].rank
    return Finding(
        "entry_skew",
        Level.WARNING,
        f"Rank {facts.named(number)} enters the step {milliseconds(lateness)} (median) after the first rank"
        f"{_bounded(bound_ns)}: the imbalance comes from outside the series.",
        {"entry_skew_ns": lateness, "stall_ns_per_step": held / len(complete), "clock_bound_ns": bound_ns},
        rank=number,
        advice="Compare what the ranks do between steps: sampling, scheduling, input, other collectives.",
    )


def _transfers_known(facts: SeriesFacts) -> bool:
    """Return whether the bounds of the clocks are small compared with each rank's transfers."""
    return all(rank.recent.transfers_known for rank in facts.ranks if rank.recent.transfer_ns)


def _channel(steps: Sequence[StepFacts]) -> Finding | None:
    """Compare a step's transfers with its compute. No prefetch step can hide transfers that take longer."""
    known = [step for step in steps if step.complete and step.path is not None and step.receiver.any()]
    if not known:
        return None
    layers = len(known[-1].layers)
    channel = [_busy_ns(step) for step in known]
    compute = [float((step.duration_ns - step.stall_ns.sum(axis=1) - step.wake_ns.sum(axis=1)).max()) for step in known]
    per_layer, computed = float(np.median(channel)) / layers, float(np.median(compute)) / layers
    # Broadcasts issued ahead also move between steps. Only what does not fit there either stays exposed.
    exposed = float(np.median(channel)) - float(np.median(_free_ns(known)))
    numbers = {"transfer_ns_per_layer": per_layer, "compute_ns_per_layer": computed}
    if per_layer <= 0 or computed <= 0:
        return None
    only = known[-1].only_rank
    rank, on = None if only is None else only.rank, _on(known)
    each = next(info.layer_term for info in known[-1].infos if info is not None)
    transfer, channel_is = ("Transfer", "the channel is") if only is None else (f"{on}transfer", "its copier is")
    if per_layer > _TIGHT * computed and exposed > 0:
        return Finding(
            "channel_bound",
            Level.BAD,
            f"{transfer} {milliseconds(per_layer)} > compute {milliseconds(computed)} per {each}: no prefetch step can "
            f"hide this. About {milliseconds(exposed)} per step stays exposed.",
            numbers,
            rank=rank,
            advice="Share fewer layers or a smaller linear, or use a faster transport."
            if only is None
            else "Share fewer layers or a smaller linear.",
        )
    if per_layer * _TIGHT > computed:
        return Finding(
            "channel_tight",
            Level.WARNING,
            f"{transfer} {milliseconds(per_layer)} is about as long as compute {milliseconds(computed)} per {each}: "
            "any jitter in either becomes a stall.",
            numbers,
            rank=rank,
        )
    return Finding(
        "channel_share",
        Level.NOTE,
        f"{transfer} {milliseconds(per_layer)} <= compute {milliseconds(computed)} per {each}: {channel_is} busy for "
        f"{units.ratio(per_layer / computed)} of the compute time, so there is time to hide every "
        f"{'broadcast' if only is None else 'copy'}.",
        numbers,
        rank=rank,
    )


def _crowded(facts: SeriesFacts, steps: Sequence[StepFacts], judged: Sequence[StepFacts]) -> Finding | None:
    """Say that copies take longer while several ranks read from their owner."""
    known = readers(facts, steps)
    if known is None or not judged:
        return None
    took: dict[int, list[int]] = {}
    for step in judged:
        for count, transfer_ns in zip(known.of(step).tolist(), step.transfer_ns.sum(axis=0).tolist(), strict=True):
            took.setdefault(count, []).append(transfer_ns)
    enough = {count: of for count, of in took.items() if count and len(of) >= _CROWDED_COPIES}
    if len(enough) < 2:  # noqa: PLR2004 - nothing to compare with
        return None
    least, most = min(enough), max(enough)
    least_ns, most_ns = float(np.mean(enough[least])), float(np.mean(enough[most]))
    if most_ns < _CROWDED_FACTOR * least_ns:
        return None
    otherwise = "alone" if least == 1 else f"while {least} do"
    only = judged[-1].only_rank
    return Finding(
        "crowded",
        Level.NOTE,
        f"{_on(judged)}copies take {milliseconds(most_ns)} while {most} ranks read from one owner at once, and "
        f"{milliseconds(least_ns)} {otherwise}.",
        {"readers": most, "transfer_ns": most_ns, "fewest_readers": least, "fewest_transfer_ns": least_ns},
        rank=None if only is None else only.rank,
    )


def _free_ns(steps: Sequence[StepFacts]) -> list[float]:
    """Return, per step, the time without stalls and wakes in the step and the gap after it, on the rank with most."""
    free = []
    for step, following in pairwise(steps):
        if following.step == step.step + 1:
            held = step.stall_ns.sum(axis=1) + step.wake_ns.sum(axis=1)
            free.append(float((following.begin_ns - step.begin_ns - held).max()))
    return free or [float((step.duration_ns - step.stall_ns.sum(axis=1)).max()) for step in steps]


def _busy_ns(step: StepFacts) -> float:
    """Return how long a step kept the channel busy: in total on a serial queue, else for the slowest receiver."""
    if any(info is not None and info.queue == SERIAL for info in step.infos):
        known = step.attributed.any(axis=0)
        shortest = np.where(step.attributed, step.transfer_ns, np.iinfo(np.int64).max).min(axis=0)
        return float(shortest[known].sum())
    return float(step.transfer_ns.sum(axis=1).max())


def _other_prefetch_step(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Finding | None:
    """Predict larger prefetch steps. Propose the first that hides, or else the best if it is worth it."""
    info = facts.ranks[0].info
    worst = max((rank.recent.stall_ratio or 0.0 for rank in facts.ranks), default=0.0)
    planner = Planner.of(steps[-PREDICTED_FROM:]) if worst >= HIDDEN_BELOW else None
    if planner is None:
        return None
    k = info.prefetch_step
    tried = []
    for other in range(k + 1, min(k + _FURTHER, info.num_layers - 2) + 1):
        predicted = planner.forecast(replace(planner.measured.candidate, prefetch_step=other))
        if isinstance(predicted, str):
            return None
        tried.append((other, predicted))
        if predicted.stall_ratio.value < HIDDEN_BELOW:
            break
    if not tried:
        return None
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
        return Finding(
            "prefetch_step_no_help",
            Level.NOTE,
            f"{_on(steps)}k={k} leaves {milliseconds(exposed)} per step exposed, and a larger prefetch step would not "
            f"help: k={other} would leave {would}; {source}).",
            numbers,
            advice="`swtrace plan` says what sharing fewer layers would give.",
        )
    return Finding(
        "prefetch_step",
        Level.WARNING,
        f"{_on(steps)}k={k} leaves {milliseconds(exposed)} per step exposed; k={other} would leave {would}; "
        f"{units.ratio(best.stall_ratio.value)} of step time), with {milliseconds(best.slack_per_wait_ns)} of slack "
        f"per wait ({source}).",
        numbers,
        advice=f"Set SWTRACE_PREFETCH_STEP={other}; each step ahead takes one more window.",
    )


def _worst_layer(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Finding | None:
    found = worst_layer(steps)
    elapsed = sum(int(step.duration_ns.max(initial=0)) for step in steps)
    if found is None or not elapsed:
        return None
    group_rank, position, mean = found
    if mean * len(steps) < HIDDEN_BELOW / 10 * elapsed:
        return None
    last = steps[-1]
    layer, rank = last.layers[position], last.ranks[group_rank].rank
    source = last.ranks[int(last.source[position])].rank
    source_host = facts.host_of(source)
    return Finding(
        "worst_layer",
        Level.NOTE,
        f"The largest stall is on rank {facts.named(rank)} at layer {layer} ({'source:' if facts.lockstep else 'from'} "
        f"rank {source}{source_host and ' on '}{source_host}): {milliseconds(mean)} per step.",
        {"stall_ns_per_step": mean},
        rank=rank,
        layer=layer,
    )


def _efficiency(facts: SeriesFacts) -> Finding | None:
    """Report a low efficiency that does not matter, so that nobody spends time on it."""
    measured = [(rank.recent.efficiency, rank.recent.stall_ratio) for rank in facts.ranks]
    known = [(efficiency, ratio) for efficiency, ratio in measured if efficiency is not None and ratio is not None]
    if not known:
        return None
    efficiency, ratio = min(known)
    if efficiency >= _LOW_EFFICIENCY or max(ratio for _, ratio in known) >= HIDDEN_BELOW:
        return None
    return Finding(
        "low_efficiency_harmless",
        Level.NOTE,
        f"Prefetch efficiency is only {units.ratio(efficiency)}, but it does not matter: "
        f"stalls take {units.ratio(ratio)} of step time.",
        {"efficiency": efficiency, "stall_ratio": ratio},
    )
