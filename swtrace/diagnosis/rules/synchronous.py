"""Copies from host memory with no compute between their start and the wait for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import STALLED_ABOVE, WORTH, Finding, Level
from swtrace.diagnosis.rule import STALLS, About, Needs, Rule
from swtrace.diagnosis.rules.offloading import larger_prefetch_step
from swtrace.ledger.facts import SeriesRankFacts, StepFacts
from swtrace.trace.schema import TransferFlag
from swtrace.units import milliseconds

_NO_TIME = 0.05
"""A copy has no time to hide if the wait begins within this share of its length after its start."""
_FEWEST_STEPS = 4
_MOST_NAMED = 8
_ORDER = (
    "A copy starts after the forward of an earlier offloaded layer. Check whether some offloaded layers never run on "
    "this rank, as in vllm-omni#6456, or run in another order."
)


class SynchronousCopy(Rule):
    """Layers whose copies start only when they are waited for, so that each whole copy is a stall."""

    kinds = ("synchronous_copy",)
    about = About.CAUSE
    needs = Needs.STALLS
    explains = STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding per rank about all such layers."""
        for rank, steps in case.offloading():
            yield from _of_rank(case, rank, steps)


def _of_rank(case: Case, rank: SeriesRankFacts, steps: Sequence[StepFacts]) -> Iterator[Finding]:
    info, row = rank.info, rank.info.rank_in_group
    if len(steps) < _FEWEST_STEPS:
        return
    begin, issued, took, stall = (
        np.array([getattr(step, name)[row] for step in steps], np.int64)
        for name in ("wait_begin_ns", "issued_ns", "transfer_ns", "stall_ns")
    )
    known = np.array([step.receiver[row] for step in steps]) & (issued > 0) & (took > 0)
    found = []
    for position in np.flatnonzero(known.sum(axis=0) >= _FEWEST_STEPS).tolist():
        of = known[:, position]
        ahead = np.median(((begin - issued)[of, position]) / took[of, position])
        if ahead <= _NO_TIME and np.median(stall[of, position]) > 0:
            found.append(position)
    elapsed = sum(int(step.duration_ns[row]) for step in steps)
    if not found or elapsed <= 0:
        return
    stall_ns = float(stall[:, found].sum())
    share = stall_ns / elapsed
    level = Level.NOTE if share < WORTH else Level.BAD if share > STALLED_ABOVE else Level.WARNING
    layers = [info.layers[position] for position in found]
    named = units.listed("layer", [str(layer) for layer in layers[:_MOST_NAMED]])
    if len(layers) > _MOST_NAMED:
        named = f"{len(layers)} of {info.num_layers} offloaded layers"
    because, advice = _cause(rank, sum(_unwaited(step, row) for step in steps) / len(steps))
    copy_ns, ahead_ns = (float(np.median(ns[:, found][known[:, found]])) for ns in (took, begin - issued))
    said = (
        f"Median over {units.counted(len(steps), 'step')}: a copy takes {milliseconds(copy_ns)}, and the wait for it "
        f"begins {milliseconds(ahead_ns)} after its issue."
    )
    copies, start = ("copy", "starts") if len(layers) == 1 else ("copies", "start")
    yield Finding(
        "synchronous_copy",
        level,
        f"On rank {case.facts.named(rank.rank.rank)}, the {copies} of {named} {start} only when the forward waits for "
        f"{'it' if len(layers) == 1 else 'them'}, so nothing hides: {units.ratio(share)} of step time "
        f"({milliseconds(stall_ns / len(steps))} per step). {because}",
        {"layers": len(layers), "share": share, "stall_ns_per_step": stall_ns / len(steps)},
        ranks=(rank.rank.rank,),
        layer=layers[int(stall[:, found].sum(axis=0).argmax())],
        advice=advice,
        evidence=(said,),
    )


def _unwaited(step: StepFacts, row: int) -> int:
    """Return how many copies of a step no forward waited for."""
    of_interest = TransferFlag.UNWAITED | TransferFlag.PREFILLED
    return int((step.present[row] & ((step.flags[row] & of_interest) == TransferFlag.UNWAITED)).sum())


def _cause(rank: SeriesRankFacts, unwaited: float) -> tuple[str, str]:
    """Return why copies are not ahead of their waits, and what to do about it. ``unwaited`` is per step."""
    info, offload = rank.info, rank.info.offload
    together = 1
    if offload is not None:
        whole = offload.num_in_group == offload.group_size
        together = info.num_layers if whole else offload.num_in_group
    if together > 1 and info.prefetch_step <= 1:
        cause = f"{together} consecutive layers are offloaded. With a prefetch step of 1, no compute is between them."
        larger = larger_prefetch_step(info) or "a vLLM with the fix vllm#54975 and a larger `--offload-prefetch-step`"
        return cause, f"Use {larger}; each step ahead takes one more buffer."
    never = f" Instead, {unwaited:.3g} of the copies per step were never waited for." if unwaited else ""
    return f"The copies were not started ahead.{never}", _ORDER
