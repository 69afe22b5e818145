"""The planner that fits a series."""

from __future__ import annotations

from collections.abc import Sequence

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.offload import OffloadPlanner
from swtrace.ledger.planning.planner import Planner
from swtrace.ledger.planning.shared import SharedPlanner
from swtrace.profile import Profile


def calibrate(
    steps: Sequence[StepFacts],
    profile: Profile | None = None,
    *,
    scale_compute: float = 1.0,
    bandwidth: float | None = None,
) -> Planner | None:
    """Return a planner that is calibrated on measured steps.

    Args:
        steps: Finished steps of one series, oldest first; the newest of each rank are used.
        profile: How long transfers between ranks take, for what the steps do not show.
        scale_compute: Predict for computes that take this many times as long, for example with another batch.
        bandwidth: Predict for transfers that bring this many bytes per second to a rank; None: as measured.

    Returns:
        None if there are too few consecutive steps that are complete, with every transfer attributed.
    """
    if any(info is not None and info.offloaded for step in steps[-1:] for info in step.infos):
        return OffloadPlanner.of(steps, scale_compute=scale_compute, bandwidth=bandwidth)
    return SharedPlanner.of(steps, profile, scale_compute=scale_compute, bandwidth=bandwidth)
