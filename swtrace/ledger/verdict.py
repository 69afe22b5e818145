"""Plain words about one series, from the ledger's facts and nothing else.

Every sentence is a :class:`Finding`, which carries what to do and the numbers that it was made of. What the
facts do not show is not said: no cause without attributed waits, no straggler that the ledger does not name, no
other prefetch step unless its replay (:mod:`swtrace.ledger.what_if`) reproduces what was measured.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from swtrace import units
from swtrace.ledger import caveats
from swtrace.ledger.channel import SERIAL
from swtrace.ledger.facts import CAUSES, Cause, Outcome, SeriesFacts, SeriesRankFacts, StepFacts
from swtrace.ledger.finding import HIDDEN_BELOW, STALLED_ABOVE, Finding, Level
from swtrace.ledger.what_if import what_if
from swtrace.trace.identity import RankKey
from swtrace.units import milliseconds

_LOW_EFFICIENCY = 0.5
_LATE_SHARE = 0.6
"""A rank is said to issue last only if it does in this share of the waits that a late issue held up."""
_ENTRY_SHARE = 0.05
_TIGHT = 1.1
"""Transfer and compute that differ by less are spoken of as equal."""
_FURTHER = 3
"""How many prefetch steps beyond the configured one are tried."""
_WORTH = 0.8
"""A larger prefetch step is proposed only if it leaves at most this part of the stall."""
DRY_BELOW_NS = 30_000
"""A device that comes to an issue within this time of its launch was waiting for it: a launch itself takes some 5 to
10 us, and mapping device time to host time adds up to 5."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What there is to say about one series: the headline, then the rest, what matters most first."""

    headline: Finding
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst level of any finding."""
        return max((finding.level for finding in self.findings), default=self.headline.level)


def verdict(facts: SeriesFacts, steps: Sequence[StepFacts] = (), died: Collection[RankKey] = ()) -> Verdict:
    """Say what the facts of a series say.

    Args:
        facts: The series, summed up over the last steps.
        steps: Those steps, oldest first (:meth:`Ledger.history`); without them only sums are spoken about.
        died: Ranks that died, of any series.
    """
    said = _verdict(facts, steps)
    dead = sorted(key.rank for key in died if key.run_id == facts.key.run_id and key.rank in facts.key.group_ranks)
    if not dead:
        return said
    headline = _died(dead)
    return Verdict(headline, (headline, *said.findings))


def _died(dead: Sequence[int]) -> Finding:
    """Put a death before everything else: whatever the figures say, they are of the time before it."""
    ranks = f"Rank {dead[0]}" if len(dead) == 1 else f"Ranks {', '.join(map(str, dead))}"
    return Finding("died", Level.BAD, f"{ranks} died. All figures are of the steps before.", rank=dead[0])


def _verdict(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Verdict:
    headline = _headline(facts)
    whole = [step for step in steps if not step.partial]
    found = [
        caveats.untraced(facts),
        caveats.effective_prefetch_step(facts),
        caveats.aborted(facts),
        caveats.untimed(facts),
        caveats.missing_records(len(steps), len(steps) - len(whole)),
    ]
    if headline.kind not in {"nothing", "bypassed"}:
        regular = [step for step in whole if not step.aborted]
        found = [
            _straggler(facts),
            _late_issue(regular),
            _launch_bound(regular),
            _entry(regular),
            _channel(regular),
            _other_prefetch_step(facts, regular),
            _worst_layer(regular),
            _efficiency(facts),
            *found,
            caveats.unwaited(facts),
            caveats.upper_bounds(regular),
            caveats.unattributed(facts),
            caveats.machine_noise(regular),
        ]
    said = sorted(filter(None, found), key=lambda finding: -finding.level)
    return Verdict(headline, (headline, *said))


def worst_layer(steps: Sequence[StepFacts]) -> tuple[int, int, float] | None:
    """Return group rank, position and mean stall per step of the wait that stalls most; None where none does."""
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
            "No layer was ever waited for: the model's forward bypasses the series linear.",
            advice="Check that the model's forward calls the series linear; `swtrace doctor` shows how it is hooked.",
        )
    judged = [rank for rank in ranks if rank.recent.stall_ratio is not None]
    if not judged:
        if any(rank.last_step is not None for rank in ranks):
            return Finding(
                "nothing", Level.WARNING, "Of every finished step some records are missing: nothing to judge."
            )
        untimed = any(sum(rank.totals.untimed_steps.values()) for rank in ranks)
        return Finding("nothing", Level.NOTE, f"No finished step{' was timed' if untimed else ''}: nothing to judge.")
    worst = max(judged, key=lambda rank: rank.recent.stall_ratio or 0.0)
    ratio = float(worst.recent.stall_ratio or 0.0)
    if ratio < HIDDEN_BELOW:
        kind, extent, level = "hidden", "Hidden", Level.GOOD
    elif ratio > STALLED_ABOVE:
        kind, extent, level = "stalled", "Not hidden", Level.BAD
    else:
        kind, extent, level = "partly_hidden", "Partly hidden", Level.WARNING
    cause = _main_cause(worst) if ratio >= HIDDEN_BELOW else ""
    return Finding(
        kind,
        level,
        f"{extent}: the most stalled rank ({worst.rank.rank}) stood still for its weights {units.ratio(ratio)} of its "
        f"step time{cause}.",
        {"stall_ratio": ratio},
        rank=worst.rank.rank,
    )


def _main_cause(rank: SeriesRankFacts) -> str:
    total = sum(rank.recent.cause_ns.values())
    if total <= 0:
        return ""
    cause, value = max(rank.recent.cause_ns.items(), key=lambda item: item[1])
    return f", mostly {units.words(cause)} ({100 * value / total:.0f} % of the stall)"


def _straggler(facts: SeriesFacts) -> Finding | None:
    straggler = facts.straggler
    if straggler is None:
        return None
    return Finding(
        "straggler",
        Level.BAD,
        f"Rank {straggler.rank.rank} holds the others up: {milliseconds(straggler.excess_ns)} of excess compute per "
        f"step on the critical path ({units.ratio(straggler.share)} of step time); the next rank has "
        f"{milliseconds(straggler.next_excess_ns)}.",
        {
            "excess_ns": straggler.excess_ns,
            "next_excess_ns": straggler.next_excess_ns,
            "share": straggler.share,
            "consistency": straggler.consistency,
        },
        rank=straggler.rank.rank,
        advice="Look at that rank's host: clocks, thermals, neighbours, its share of requests.",
    )


def _late_issue(steps: Sequence[StepFacts]) -> Finding | None:
    """Name the rank whose late issues the others waited for: a proximate cause, said as such."""
    skew = np.zeros(0)
    blamed: dict[int, list[float]] = {}
    waits = 0
    for step in steps:
        skew = step.cause_ns[CAUSES.index(Cause.SKEW)]
        held = (skew > 0) & (step.late_rank >= 0) & ~step.on_time
        waits += int(held.sum())
        for late in np.unique(step.late_rank[held]).tolist():
            mine = skew[held & (step.late_rank == late)]
            by_rank = blamed.setdefault(int(late), [0.0, 0.0])
            by_rank[0] += float(mine.sum())
            by_rank[1] += len(mine)
    total = sum(by_rank[0] for by_rank in blamed.values())
    elapsed = sum(int(step.duration_ns.max(initial=0)) for step in steps)
    receivers = max((int(step.ended.sum()) for step in steps), default=1)
    if not blamed or total < HIDDEN_BELOW * elapsed:
        return None
    late, (held_ns, count) = max(blamed.items(), key=lambda item: item[1][0])
    if held_ns < _LATE_SHARE * total:
        return None
    rank = steps[-1].ranks[late].rank
    return Finding(
        "late_issue",
        Level.WARNING,
        f"Rank {rank} issues last: {units.ratio(held_ns / total)} of the skew that others stall on is for it, "
        f"{milliseconds(held_ns / count)} a wait ({milliseconds(held_ns / len(steps) / max(1, receivers - 1))} per "
        "step and rank).",
        {"skew_share": held_ns / total, "mean_skew_ns": held_ns / count, "waits": count},
        rank=rank,
        advice="This is the proximate cause. Only the critical path shows whether that rank itself is slow.",
    )


def _launch_bound(steps: Sequence[StepFacts]) -> Finding | None:
    """Name the rank whose host launches broadcasts so late that its device had nothing left to do until then."""
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
        f"Rank {number} is bound by its host: {units.ratio(share)} of its stall is for broadcasts that the device "
        f"began {milliseconds(float(np.median(lags)))} after their launch, so it had run out of work before.",
        {"share": share, "median_lag_ns": float(np.median(lags)), "waits": len(lags)},
        rank=number,
        advice="CUDA graphs, or fewer launches per layer, let the host run ahead. The transport is not the problem; a "
        "larger prefetch step will not help.",
    )


def _entry(steps: Sequence[StepFacts]) -> Finding | None:
    complete = [step for step in steps if step.entry_known]
    if len(complete) < 4:  # noqa: PLR2004 - a few steps are no pattern
        return None
    late = np.median([step.entry_skew_ns for step in complete], axis=0)
    duration = float(np.median([step.duration_ns.max() for step in complete]))
    rank, lateness = int(late.argmax()), float(late.max())
    held = sum(int(step.cause_ns[CAUSES.index(Cause.ENTRY_SKEW)].sum()) for step in complete)
    if lateness < _ENTRY_SHARE * duration or held <= 0:
        return None
    number = complete[-1].ranks[rank].rank
    return Finding(
        "entry_skew",
        Level.WARNING,
        f"Rank {number} enters the step {milliseconds(lateness)} after the first rank in the typical step: imbalance "
        "from outside the series.",
        {"entry_skew_ns": lateness, "stall_ns_per_step": held / len(complete)},
        rank=number,
        advice="Compare the ranks' work between steps: sampling, scheduling, input, other collectives.",
    )


def _channel(steps: Sequence[StepFacts]) -> Finding | None:
    """Compare a step's transfers with its compute: what the channel needs beyond it, no prefetch step can hide."""
    known = [step for step in steps if step.complete and step.path is not None and step.receiver.any()]
    if not known:
        return None
    layers = known[-1].present.shape[1]
    channel = [_busy_ns(step) for step in known]
    compute = [float((step.duration_ns - step.stall_ns.sum(axis=1) - step.wake_ns.sum(axis=1)).max()) for step in known]
    per_layer, computed = float(np.median(channel)) / layers, float(np.median(compute)) / layers
    # What was issued ahead moves between the steps, too: only what does not fit there either must stay exposed.
    exposed = float(np.median(channel)) - float(np.median(_free_ns(known)))
    numbers = {"transfer_ns_per_layer": per_layer, "compute_ns_per_layer": computed}
    if per_layer <= 0 or computed <= 0:
        return None
    if per_layer > _TIGHT * computed and exposed > 0:
        return Finding(
            "channel_bound",
            Level.BAD,
            f"Transfer {milliseconds(per_layer)} > compute {milliseconds(computed)} per layer: no prefetch step can "
            f"hide this, at least {milliseconds(exposed)} per step stay exposed.",
            numbers,
            advice="Share fewer layers or a smaller linear, or use a faster transport.",
        )
    if per_layer * _TIGHT > computed:
        return Finding(
            "channel_tight",
            Level.WARNING,
            f"Transfer {milliseconds(per_layer)} is about as long as compute {milliseconds(computed)} per layer: any "
            "jitter of either shows as a stall.",
            numbers,
        )
    return Finding(
        "channel_share",
        Level.NOTE,
        f"Transfer {milliseconds(per_layer)} <= compute {milliseconds(computed)} per layer: the channel is busy "
        f"{units.ratio(per_layer / computed)} of the compute time, so there is room to hide every broadcast.",
        numbers,
    )


def _free_ns(steps: Sequence[StepFacts]) -> list[float]:
    """Return for how long a step and the gap after it went on without stalls, on the rank with most of that."""
    free = []
    for step, following in pairwise(steps):
        if following.step == step.step + 1:
            held = step.stall_ns.sum(axis=1) + step.wake_ns.sum(axis=1)
            free.append(float((following.begin_ns - step.begin_ns - held).max()))
    return free or [float((step.duration_ns - step.stall_ns.sum(axis=1)).max()) for step in steps]


def _busy_ns(step: StepFacts) -> float:
    """Return for how long the channel was busy with a step: with all of it, or for the receiver that took longest."""
    if any(info is not None and info.queue == SERIAL for info in step.infos):
        known = step.attributed.any(axis=0)
        shortest = np.where(step.attributed, step.transfer_ns, np.iinfo(np.int64).max).min(axis=0)
        return float(shortest[known].sum())
    return float(step.transfer_ns.sum(axis=1).max())


def _other_prefetch_step(facts: SeriesFacts, steps: Sequence[StepFacts]) -> Finding | None:
    """Replay the steps with larger prefetch steps; name the smallest that hides, else the best if it is worth it."""
    info = facts.ranks[0].info
    worst = max((rank.recent.stall_ratio or 0.0 for rank in facts.ranks), default=0.0)
    if worst < HIDDEN_BELOW:
        return None
    k = info.prefetch_step
    tried = []
    for other in range(k + 1, min(k + _FURTHER, info.num_layers - 2) + 1):
        replayed = what_if(steps, other)
        if replayed is None or not replayed.fits:
            return None
        tried.append(replayed)
        if replayed.other.stall_ratio < HIDDEN_BELOW:
            break
    if not tried:
        return None
    best = min(tried, key=lambda each: (round(each.other.stall_ratio, 2), each.other.prefetch_step))
    exposed, left = best.real.stall_per_step_ns, best.other.stall_per_step_ns
    numbers = {
        "prefetch_step": float(best.other.prefetch_step),
        "stall_ns_per_step": left,
        "stall_ratio": best.other.stall_ratio,
        "slack_ns_per_wait": best.other.slack_per_wait_ns,
        "replayed_steps": float(len(best.other.stall_ns)),
    }
    if left > _WORTH * exposed:
        return Finding(
            "prefetch_step_no_help",
            Level.NOTE,
            f"k={k} leaves {milliseconds(exposed)} per step exposed, and a larger prefetch step would not help: with "
            f"k={best.other.prefetch_step} it would be {milliseconds(left)} (the last "
            f"{len(best.other.stall_ns)} steps replayed).",
            numbers,
        )
    return Finding(
        "prefetch_step",
        Level.WARNING,
        f"k={k} leaves {milliseconds(exposed)} per step exposed; k={best.other.prefetch_step} would leave "
        f"{milliseconds(left)} ({units.ratio(best.other.stall_ratio)} of step time) and "
        f"{milliseconds(best.other.slack_per_wait_ns)} of slack per wait (the last {len(best.other.stall_ns)} steps "
        "replayed).",
        numbers,
        advice=f"Set SWTRACE_PREFETCH_STEP={best.other.prefetch_step}; each step ahead costs one more window.",
    )


def _worst_layer(steps: Sequence[StepFacts]) -> Finding | None:
    found = worst_layer(steps)
    elapsed = sum(int(step.duration_ns.max(initial=0)) for step in steps)
    if found is None or not elapsed:
        return None
    group_rank, position, mean = found
    if mean * len(steps) < HIDDEN_BELOW / 10 * elapsed:
        return None
    last = steps[-1]
    info = next(info for info in last.infos if info is not None)
    layer, rank = info.start_layer + position, last.ranks[group_rank].rank
    source = last.ranks[int(last.source[position])].rank
    return Finding(
        "worst_layer",
        Level.NOTE,
        f"The wait that stalls most is rank {rank}'s for layer {layer} (source: rank {source}): {milliseconds(mean)} "
        "per step.",
        {"stall_ns_per_step": mean},
        rank=rank,
        layer=layer,
    )


def _efficiency(facts: SeriesFacts) -> Finding | None:
    """Say when a bad efficiency does not matter: it is what people would chase in vain."""
    measured = [(rank.recent.efficiency, rank.recent.stall_ratio) for rank in facts.ranks]
    known = [(efficiency, ratio) for efficiency, ratio in measured if efficiency is not None and ratio is not None]
    if not known:
        return None
    efficiency, ratio = min(known)
    if efficiency >= _LOW_EFFICIENCY or max(ratio for _, ratio in known) >= HIDDEN_BELOW:
        return None
    return Finding(
        "efficiency_moot",
        Level.NOTE,
        f"Prefetch efficiency is only {units.ratio(efficiency)}, and it does not matter: "
        f"stalls are {units.ratio(ratio)} of step time.",
        {"efficiency": efficiency, "stall_ratio": ratio},
    )
