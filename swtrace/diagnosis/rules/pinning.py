"""Copies from host memory that is not pinned: each one blocks the host, so the device runs out of work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import Finding, Level
from swtrace.diagnosis.rule import About, Rule
from swtrace.ledger.facts import StepFacts
from swtrace.trace.schema import TransferFlag
from swtrace.units import milliseconds

_FEWEST_STEPS = 4
_ADVICE = (
    "vLLM pins the weights unless `VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY=1`, so unset it. In WSL 2, vLLM needs a "
    "kernel of 4.19.121 or newer to pin memory, and on NVIDIA GPUs also `VLLM_WSL2_ENABLE_PIN_MEMORY=1`."
)


class UnpinnedMemory(Rule):
    """Offloaded weights in pageable memory. Their copies seldom stall, because the host waits instead."""

    kinds = ("unpinned_memory",)
    about = About.CAUSE
    explains = ("launch_bound",)

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding about each rank on which that is so."""
        for rank, steps in case.offloading():
            if rank.info.offload is None or rank.info.offload.pinned:
                continue
            cost = _Cost.of(steps, rank.info.rank_in_group)
            said, numbers = ", so steps take longer without a stall.", {}
            if cost is not None:
                said = f": {units.ratio(cost.share)} of step time ({milliseconds(cost.ns_per_step)} per step)."
                numbers = {"share": cost.share, "blocked_ns_per_step": cost.ns_per_step}
            yield Finding(
                "unpinned_memory",
                Level.WARNING,
                f"On rank {case.facts.named(rank.rank.rank)}, the host memory of the offloaded layers is not pinned. "
                f"Each copy blocks the host, and the device runs out of work meanwhile{said}",
                numbers,
                ranks=(rank.rank.rank,),
                advice=_ADVICE,
            )


class _Cost(NamedTuple):
    """What copies cost during which the device reached no further layer."""

    share: float
    """Of step time."""
    ns_per_step: float

    @classmethod
    def of(cls, steps: Sequence[StepFacts], row: int) -> _Cost | None:
        """Return the cost in the steps of a group rank; None if there are too few.

        The issue is the last that the device got before the host was blocked. So it is idle from there until the copy
        is ready. If a wait begins in between, the host was not blocked.
        """
        elapsed = sum(int(step.duration_ns[row]) for step in steps)
        if len(steps) < _FEWEST_STEPS or elapsed <= 0:
            return None
        issued, ready, begin, flags = (
            np.array([getattr(step, name)[row] for step in steps])
            for name in ("issued_ns", "ready_ns", "wait_begin_ns", "flags")
        )
        copied = (issued > 0) & (ready > issued) & (flags & TransferFlag.PREFILLED == 0)
        begins = np.sort(begin[begin > 0])
        idle = copied & (np.searchsorted(begins, ready) == np.searchsorted(begins, issued, side="right"))
        # Not every copy of a step has times: those of the first step, or of one after an untimed step, may lack them.
        idle_ns = np.where(idle, ready - issued, 0).sum(axis=0) / np.maximum(1, copied.sum(axis=0))
        per_step_ns = float(idle_ns.sum())
        return cls(per_step_ns * len(steps) / elapsed, per_step_ns) if per_step_ns else None
