"""Measured steps, taken apart into what other settings change and what they do not.

What stays is the compute of every rank: a curve over the layers of the stack, per step. It has a knot wherever the
trace shows how far a rank had come: at the reach of a shared layer, and at its linear. Between knots, layers are
assumed to take equal times. What changes is when broadcasts or copies are issued, and so their stalls.

While a rank's transfers are under way, its compute may take longer: on a host, both need the cores; on a device, both
need its memory and processors. This *contention* is taken out of the curves, and the replay adds what the other
settings cause (:mod:`~swtrace.ledger.planning.replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.contention import MOST_CONTENTION, Busy, meanwhile, senders
from swtrace.trace.identity import SeriesInfo
from swtrace.trace.schema import TransferFlag

_Float = npt.NDArray[np.float64]

_TYPICAL = 0.2
"""What the contention is taken to be as far as too few transfers overlap with compute to show it."""
_ENOUGH = 0.1
"""Share of the compute that must overlap with transfers to show it."""
_KEPT = 0.1
"""Share of a measured stretch of compute that remains at least when contention is taken out."""
_BY_STEP_AND_RANK = "curve", "skew", "gap", "moving", "computing", "beside", "overlap", "delay", "step_ns", "stall_ns"
"""Arrays of a workload that begin with these two axes."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Consecutive steps of the ranks that run them together, in ns; ``[step, rank, ...]``."""

    info: SeriesInfo
    ranks: tuple[int, ...]
    """Group ranks: all, or one of a pull series."""
    shared: tuple[int, ...]
    """Shared layers, counted from the first of the stack."""
    curve: _Float
    """``[step, rank, knot]``: compute from the beginning of the step to each of :attr:`knots`, without contention."""
    knots: _Float
    """``[knot]``: places in the stack. Layer ``i`` begins at ``i``."""
    linear_at: float
    """Where in a layer its linear is, as a share of the layer's compute."""
    skew: _Float
    """``[step, rank]``: begin of the step after that of the first rank."""
    meets: bool
    """Whether the ranks wait for each other between steps, in a collective of the model or of its engine."""
    gap: _Float
    """``[step, rank]``: end of a step, of the last rank if they meet, to the beginning of the rank's next."""
    moving: _Float
    """``[step, rank, position]``: a receiver's time on the channel; NaN where the rank owns the layer."""
    computing: _Float
    """``[step, rank, position]``: the share of that time in which the receiver computed."""
    beside: _Float
    """``[step, rank, position]``: how many other transfers were under way meanwhile, on average."""
    wake: _Float
    """What waits that stalled took beyond their stall, one sample each."""
    passed: float
    """What a wait that did not stall took."""
    contention: _Float
    """``[rank]``: how much longer compute takes for each ns that a transfer of the rank is under way."""
    overlap: _Float
    """``[step, rank, stretch]``: for how long transfers of the rank were under way in each stretch of compute between
    two knots."""
    delay: _Float
    """``[step, rank]``: how long the rank waited for a core while it computed, beyond its contention."""
    step_ns: _Float
    """``[step, rank]``: begin to end."""
    stall_ns: _Float
    """``[step, rank]``"""

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.step_ns)

    def part(self, steps: slice) -> Workload:
        """Return some of the steps."""
        return replace(self, **{name: getattr(self, name)[steps] for name in _BY_STEP_AND_RANK})

    def followed_by(self, others: Sequence[Workload]) -> Workload:
        """Return these steps and then those of others like it, for a replay of several runs at once."""
        every = (self, *others)
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(each, name) for each in every]) for name in _BY_STEP_AND_RANK
        }
        return replace(self, **joined)

    @property
    def parts(self) -> _Float:
        """``[step, rank, stretch]``: compute between each knot and the one before."""
        return np.diff(self.curve, axis=2)

    def scaled(self, factor: float) -> Workload:
        """Return the same steps with computes that take ``factor`` times as long."""
        return self if factor == 1 else replace(self, curve=self.curve * factor)

    def in_group_of(self, ranks: int) -> Workload:
        """Return the same steps in a group of another size, whose ranks are like these in turn."""
        size = len(self.info.group_ranks)
        if ranks == size:
            return self
        if len(self.ranks) < size:  # ranks with steps of their own
            return replace(self, ranks=tuple(rank % ranks for rank in self.ranks))
        rows = np.arange(ranks) % size
        picked = {name: getattr(self, name)[:, rows] for name in _BY_STEP_AND_RANK}
        return replace(self, ranks=tuple(range(ranks)), contention=self.contention[rows], **picked)

    def compute_to(self, places: _Float) -> _Float:
        """Return the compute from the beginning of each step to places in the stack, ``[step, rank, place]``."""
        right = np.clip(np.searchsorted(self.knots, places, side="left"), 1, len(self.knots) - 1)
        left = right - 1
        span = self.knots[right] - self.knots[left]
        share = np.where(span > 0, (places - self.knots[left]) / np.where(span > 0, span, 1.0), 1.0)
        return np.asarray(self.curve[:, :, left] * (1 - share) + self.curve[:, :, right] * share)


def consecutive(steps: Sequence[StepFacts], enough: int = 1) -> list[StepFacts]:
    """Return consecutive steps that are complete, on one clock, with every transfer attributed.

    The newest such run of at least ``enough`` steps; if there is none, the longest. Steps that are timed only now and
    then (``SWTRACE_TIME_EVERY``) follow those that were all timed. Of a pull series, only the steps of the rank that
    ended the last one are looked at.
    """
    runs: list[list[StepFacts]] = [[]]
    for step in reversed(steps):
        run = runs[-1]
        if step.of_rank != steps[-1].of_rank:
            continue
        usable = (
            step.complete
            and step.path is not None
            and bool((step.attributed | ~step.receiver).all())
            and not (step.flags & TransferFlag.PREFILLED).any()
        )
        if run and (not usable or step.step != run[-1].step - 1):
            if len(run) >= enough:
                break
            run = []
            runs.append(run)
        if usable:
            run.append(step)
    return (runs[-1] if len(runs[-1]) >= enough else max(runs, key=len))[::-1]


def measure(
    run: Sequence[StepFacts], info: SeriesInfo, *, overhead_ns: float, contention: float | None = None
) -> Workload:
    """Take consecutive steps apart. The last one only shows when the one before issued its last transfers.

    Args:
        run: At least two steps, from :func:`consecutive`.
        info: The constants of their series.
        overhead_ns: What sharing a layer costs its rank's forward besides stalls: to issue a transfer.
        contention: See :attr:`Workload.contention`. None: the time for which the kernel let the ranks wait for a core
            shows it.
    """
    first = run[0]
    ranks = tuple(first.running)
    rows = list(ranks)
    k = info.prefetch_step
    shared = tuple(layer - info.start_layer for layer in info.layers)

    def stacked(name: str) -> _Float:
        return np.stack([np.asarray(getattr(step, name))[rows] for step in run]).astype(np.float64)

    issued = stacked("issued_ns")
    # A reach issues the transfer k ahead. The last k transfers of a step belong to the next step.
    reach = np.concatenate((issued[:-1, :, k:], issued[1:, :, :k]), axis=2)
    begins, ends = stacked("begin_ns"), stacked("end_ns")
    begin, end, gap = begins[:-1], ends[:-1], begins[1:] - ends[:-1]
    meets = _meet(ends[:-1], begins[1:])
    if meets:
        gap = begins[1:] - ends[:-1].max(axis=1, keepdims=True)
    ready, wait_begin, wait_end = (stacked(name)[:-1] for name in ("ready_ns", "wait_begin_ns", "wait_end_ns"))
    receiver, moving = stacked("receiver")[:-1] > 0, stacked("transfer_ns")[:-1]
    stall, wake = stacked("stall_ns")[:-1], stacked("wake_ns")[:-1]
    run_delay = 1e3 * stacked("run_delay_us")[:-1]

    moving = np.where(receiver, moving, np.nan)
    started = ready - moving
    busy = Busy.of(started, ready, senders(np.asarray(first.source, np.int64), info.rendezvous), ranks)
    before = np.concatenate((begin[:, :, np.newaxis], wait_end[:, :, :-1]), axis=2)
    stretches = [(before, reach), (reach, wait_begin), (wait_end[:, :, -1:], end[:, :, np.newaxis])]
    overlaps = [busy.within(*stretch) for stretch in stretches]
    if contention is None:
        overlap = np.sum([each.sum(axis=(0, 2)) for each in overlaps], axis=0)
        compute = np.sum([(until - since).sum(axis=(0, 2)) for since, until in stretches], axis=0)
        delayed = np.clip(run_delay.sum(axis=0) - wake.sum(axis=(0, 2)), 0.0, overlap)
        unknown = np.maximum(0.0, _ENOUGH * compute - overlap) if receiver.any() else 0.0
        shown = (delayed + _TYPICAL * unknown) / np.maximum(1.0, overlap + unknown)
        contended = np.minimum(shown, MOST_CONTENTION.get(info.kind, 0.0))
    else:
        contended = np.full(len(ranks), contention)
    to_reach, to_linear, tail = (
        np.maximum(until - since - contended[:, np.newaxis] * shorter, _KEPT * (until - since))
        for (since, until), shorter in zip(stretches, overlaps, strict=True)
    )
    to_linear = np.maximum(0.0, to_linear - min(overhead_ns, float(np.quantile(to_linear, 0.25))))

    computing, others = meanwhile(started, ready, stretches)

    overlap = _in_order(*overlaps)
    linear_at = _linear_at(to_reach, to_linear, tail, shared, info.stack_layers)
    knots = np.empty(2 * len(shared) + 2)
    knots[0], knots[-1] = 0.0, info.stack_layers
    knots[1:-1:2], knots[2:-1:2] = shared, np.add(shared, linear_at)
    held = stall > 0
    passed = (wait_end - wait_begin)[~held]
    return Workload(
        info=info,
        ranks=ranks,
        shared=shared,
        curve=np.pad(_in_order(to_reach, to_linear, tail).cumsum(axis=2), ((0, 0), (0, 0), (1, 0))),
        knots=knots,
        linear_at=linear_at,
        skew=begin - begin.min(axis=1, keepdims=True),
        meets=meets,
        gap=gap,
        moving=moving,
        computing=computing,
        beside=others,
        wake=wake[held & receiver],
        passed=float(np.median(passed)) if passed.size else 0.0,
        contention=contended,
        overlap=overlap,
        delay=np.maximum(0.0, run_delay - wake.sum(axis=2) - contended * overlap.sum(axis=2)),
        step_ns=end - begin,
        stall_ns=stall.sum(axis=2),
    )


def _meet(ends: _Float, begins: _Float) -> bool:
    """Return whether ranks wait for each other between steps: who ended a step late does not begin the next one late.

    Args:
        ends: ``[step, rank]``
        begins: Of the steps after these, likewise.
    """
    late, later = (each - each.mean(axis=1, keepdims=True) for each in (ends, begins))
    return bool((late * later).sum() < 0.5 * (late * late).sum())


def _in_order(to_reach: _Float, to_linear: _Float, tail: _Float) -> _Float:
    """Return the stretches of compute in the order of the knots, ``[step, rank, stretch]``."""
    between = np.stack((to_reach, to_linear), axis=3).reshape(*to_reach.shape[:2], -1)
    return np.concatenate((between, tail), axis=2)


def _linear_at(to_reach: _Float, to_linear: _Float, tail: _Float, shared: Sequence[int], stack_layers: int) -> float:
    """Return where in a layer its linear is: the mean of all layers, as a share of a layer's compute."""
    layers = np.diff([*shared, stack_layers])
    rest = np.concatenate((to_reach[:, :, 1:], tail), axis=2)
    per_layer = (to_linear + rest) / layers
    whole = float(per_layer.sum())
    return min(1.0, float(to_linear.sum()) / whole) if whole > 0 else 0.0
