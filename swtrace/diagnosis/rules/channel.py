"""Whether transfers fit beside the compute at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import STALLS, About, Needs, Rule
from swtrace.diagnosis.rules.offloading import FEWER, fewer_or
from swtrace.ledger.channel import SERIAL
from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.ledger.planning.repair import Part, Repair
from swtrace.units import milliseconds

_TIGHT = 1.1
"""Transfer and compute that differ by a smaller factor count as equal."""


class Channel(Rule):
    """A step's transfers compared with its compute. No prefetch step can hide transfers that take longer."""

    kinds = ("channel_bound", "channel_tight", "channel_share")
    about = About.CAUSE
    needs = Needs.STALLS
    explains = STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding if the transfers are known."""
        known = [step for step in case.judged if step.complete and step.path is not None and step.receiver.any()]
        if not known or not transfers_known(case.facts):
            return
        layers = len(known[-1].layers)
        channel = [_busy_ns(step) for step in known]
        compute = [
            float((step.duration_ns - step.stall_ns.sum(axis=1) - step.wake_ns.sum(axis=1)).max()) for step in known
        ]
        per_layer, computed = float(np.median(channel)) / layers, float(np.median(compute)) / layers
        if per_layer <= 0 or computed <= 0:
            return
        # Broadcasts issued ahead also move between steps. Only what does not fit there either stays exposed.
        exposed = float(np.median(channel)) - float(np.median(_free_ns(known)))
        numbers = {"transfer_ns_per_layer": per_layer, "compute_ns_per_layer": computed}
        alone = case.only_rank
        ranks = () if alone is None else (alone,)
        info = next(info for info in known[-1].infos if info is not None)
        each = info.layer_term
        offloaded = case.facts.offloaded
        transfer = "Transfer" if alone is None else f"{case.on}{'copy' if offloaded else 'transfer'}"
        repair = Repair(Part.CHANNEL)
        channel_is = "the channel is" if alone is None else "copies keep the link" if offloaded else "its copier is"
        if per_layer > _TIGHT * computed and exposed > 0:
            yield Finding(
                "channel_bound",
                Level.BAD,
                f"{transfer} {milliseconds(per_layer)} > compute {milliseconds(computed)} per {each}: no prefetch step "
                f"can hide this. About {milliseconds(exposed)} per step stays exposed.",
                numbers,
                ranks=ranks,
                advice="Share fewer layers or a smaller linear, or use a faster transport."
                if alone is None
                else f"{FEWER}."
                if offloaded
                else "Share fewer layers or a smaller linear.",
                repair=repair,
            )
        elif per_layer * _TIGHT > computed:
            yield Finding(
                "channel_tight",
                Level.WARNING,
                f"{transfer} {milliseconds(per_layer)} is about as long as compute {milliseconds(computed)} per "
                f"{each}: any jitter in either becomes a stall.",
                numbers,
                ranks=ranks,
                advice=fewer_or(info, "absorb jitter")
                if offloaded
                else "Share fewer layers or a smaller linear, or raise the prefetch step to absorb jitter.",
                repair=repair,
            )
        else:
            yield Finding(
                "channel_share",
                Level.NOTE,
                f"{transfer} {milliseconds(per_layer)} <= compute {milliseconds(computed)} per {each}: {channel_is} "
                f"busy for {units.ratio(per_layer / computed)} of the compute time, so there is time to hide every "
                f"{'broadcast' if alone is None else 'copy'}.",
                numbers,
                ranks=ranks,
            )


def transfers_known(facts: SeriesFacts) -> bool:
    """Return whether the bounds of the clocks are small compared with each rank's transfers."""
    return all(rank.recent.transfers_known for rank in facts.ranks if rank.recent.transfer_ns)


def _free_ns(steps: Sequence[StepFacts]) -> list[float]:
    """Return, per step, the time without stalls and wakes in the step and the gap after it, on the rank with most."""
    free = []
    for step, following in pairwise(steps):
        if following.step == step.step + 1:
            held = step.stall_ns.sum(axis=1) + step.wake_ns.sum(axis=1)
            free.append(float((following.begin_ns - step.begin_ns - held).max()))
    return free or [float((step.duration_ns - step.stall_ns.sum(axis=1)).max()) for step in steps]


def _busy_ns(step: StepFacts) -> float:
    """Return how long a step kept the channel busy: in total on a serial queue, else for the median receiver.

    If a single receiver's transfers take longer, its link is slow, and not the channel.
    """
    if any(info is not None and info.queue == SERIAL for info in step.infos):
        known = step.attributed.any(axis=0)
        shortest = np.where(step.attributed, step.transfer_ns, np.iinfo(np.int64).max).min(axis=0)
        return float(shortest[known].sum())
    busy = step.transfer_ns.sum(axis=1)
    return float(np.median(busy[busy > 0])) if busy.any() else 0.0
