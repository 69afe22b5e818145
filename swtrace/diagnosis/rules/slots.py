"""Copies into a buffer whose layer has not run yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Rule
from swtrace.ledger.facts import StepFacts
from swtrace.placement import slots_collide
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.schema import NO_WINDOW, TransferFlag

_MOST_EVIDENCE = 4


class SlotCollision(Rule):
    """Offloaded layers that run with the weights of another layer, because its copy went into the same buffer."""

    kinds = ("slot_collision",)
    about = About.CONDITION

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding about each rank on which that happens."""
        for rank, steps in case.offloading():
            found = _Collisions.among(steps, rank.info.rank_in_group)
            if found.pairs:
                yield _finding(case, rank.info, found)


@dataclass(slots=True)
class _Collisions:
    """Pairs of layers of which the second was copied into the buffer of the first before that ran."""

    looked: int = 0
    """Number of steps that were looked at together with the step after them."""
    steps: list[StepFacts] = field(default_factory=list)
    """Those with a collision."""
    pairs: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    """Position that ran with other weights, position of these, and buffer, with the number of steps."""

    @classmethod
    def among(cls, steps: Sequence[StepFacts], rank: int) -> _Collisions:
        """Return the collisions in the steps of a group rank."""
        found = cls()
        for step, following in pairwise([*steps, None]):
            if step is None:
                continue
            next_to = following is not None and following.step == step.step + 1
            pairs = _overwritten([step, following] if next_to and following is not None else [step], rank)
            found.looked += next_to or bool(pairs)
            found.pairs.update(pairs)
            if pairs:
                found.steps.append(step)
        return found


def _overwritten(steps: Sequence[StepFacts], rank: int) -> set[tuple[int, int, int]]:
    """Return the collisions of the first step's layers with layers of all these steps."""
    layers = len(steps[0].layers)
    window, issued, begin, flags = (
        np.concatenate([getattr(step, name)[rank] for step in steps])
        for name in ("window", "issued_ns", "wait_begin_ns", "flags")
    )
    copied = (window != NO_WINDOW) & (issued > 0) & (flags & (TransferFlag.PREFILLED | TransferFlag.OWN) == 0)
    ran = copied & (begin > 0)
    position = np.arange(len(window)) % layers
    over = (
        ran[:layers, np.newaxis]
        & copied
        & (window[:layers, np.newaxis] == window)
        & (position[:layers, np.newaxis] != position)
        & (issued[:layers, np.newaxis] < issued)
        & (issued < begin[:layers, np.newaxis])
    )
    return {(int(p), int(position[q]), int(window[q])) for p, q in zip(*np.nonzero(over), strict=True)}


def _finding(case: Case, info: SeriesInfo, found: _Collisions) -> Finding:
    (first, second, _), _ = found.pairs.most_common(1)[0]
    layer, other = info.layers[first], info.layers[second]
    ran = sorted({info.layers[p] for p, _, _ in found.pairs})
    (rank,) = case.global_ranks(info.rank_in_group)
    more = f", and so do {units.counted(len(ran) - 1, 'other layer')}" if len(ran) > 1 else ""
    began = found.steps[0]
    return Finding(
        "slot_collision",
        Level.BAD,
        f"On rank {case.facts.named(rank)}, layer {other} is copied into the buffer of layer {layer} before layer "
        f"{layer} has run. So layer {layer} runs with the weights of another layer{more}, and the output is wrong.",
        {"layers": len(ran), "steps": len(found.steps), "looked_steps": found.looked},
        ranks=(rank,),
        layer=layer,
        advice=_advice(info),
        since_ns=case.began_ns(began),
        since_step=began.step,
        evidence=tuple(
            f"Buffer {window}: layer {info.layers[q]} was copied between the copy of layer {info.layers[p]} and its "
            f"forward, in {count} of {units.counted(found.looked, 'step')}."
            for (p, q, window), count in found.pairs.most_common(_MOST_EVIDENCE)
        ),
    )


def _advice(info: SeriesInfo) -> str:
    layers, ahead = info.num_layers, info.prefetch_step
    fixed = "Use a vLLM with the fix vllm#54975"
    fitting = next((k for k in range(ahead - 1, 0, -1) if not slots_collide(k, layers)), None)
    if not slots_collide(ahead, layers) or fitting is None:
        return f"{fixed}."
    return (
        f"{fixed}, or a prefetch step that divides the {layers} offloaded layers, which {ahead} does not: "
        f"`--offload-prefetch-step {fitting}`."
    )
