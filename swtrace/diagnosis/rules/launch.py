"""Ranks whose host launches broadcasts too late for their device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import HIDDEN_BELOW, Finding, Level
from swtrace.diagnosis.rule import STALLS, About, Needs, Rule
from swtrace.ledger.facts import CAUSES, Cause
from swtrace.units import milliseconds

DRY_BELOW_NS = 30_000
"""A device that starts an issue within this time of its launch was idle before. The launch itself takes about 5 to
10 us, and the mapping from device time to host time is off by up to 5 us."""
_ADVICE = (
    "CUDA graphs, or fewer launches per layer, let the host run ahead. The transport is not the problem; a larger "
    "prefetch step will not help."
)
_OFFLOAD = (
    "The host launches one copy per parameter (vllm#41474). CUDA graphs, or fewer and larger copies, let it run ahead: "
    "offload fewer layers with `--offload-num-in-group`. A larger `--offload-prefetch-step` will not help."
)
_MOST = 0.6
"""Share of a rank's stall that must be on such issues."""


class LaunchBound(Rule):
    """The rank whose device has run out of work when its host launches a broadcast."""

    kinds = ("launch_bound",)
    about = About.CAUSE
    needs = Needs.STALLS
    explains = STALLS

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield a finding about the rank that stalls most for this reason."""
        steps = case.regular
        if not steps:
            return
        ahead = case.facts.ranks[0].info.prefetch_step
        bound, stalled = np.zeros((2, len(steps[-1].ranks)), np.int64)
        lags: list[int] = []
        for step in steps:
            lag = step.issued_ns - step.launched_ns
            dry = (step.launched_ns > 0) & (lag < DRY_BELOW_NS) & ~step.on_time & step.receiver
            # What a peer delays is not its own host's doing, and a device has no work yet when a step begins.
            dry &= step.cause_ns[[CAUSES.index(Cause.SKEW), CAUSES.index(Cause.ENTRY_SKEW)]].sum(axis=0) == 0
            dry[:, : ahead + 1] = False
            bound += np.where(dry, step.stall_ns, 0).sum(axis=1)
            stalled += step.stall_ns.sum(axis=1)
            lags += lag[dry].tolist()
        rank = int(bound.argmax())
        elapsed = sum(int(step.duration_ns[rank]) for step in steps)
        if not lags or bound[rank] < max(HIDDEN_BELOW * elapsed, _MOST * stalled[rank]):
            return
        (number,), share = case.global_ranks(rank), float(bound[rank] / stalled[rank])
        yield Finding(
            "launch_bound",
            Level.WARNING,
            f"Rank {case.facts.named(number)} is bound by its host: {units.ratio(share)} of its stall is on "
            f"{case.facts.moves} that the device started {milliseconds(float(np.median(lags)))} (median) after launch, "
            "so it had run out of work.",
            {"share": share, "median_lag_ns": float(np.median(lags)), "waits": len(lags)},
            ranks=(number,),
            advice=_OFFLOAD if case.facts.offloaded else _ADVICE,
        )
