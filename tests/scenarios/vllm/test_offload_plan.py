"""`swtrace plan` for vLLM's offloader: what it predicts is what vLLM's own classes then do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.model_executor.offloader import prefetch

from swtrace.ledger.planning.offload import OffloadPlanner, candidates
from swtrace.ledger.planning.prediction import Grouping
from swtrace.placement import refilled_by
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import DeviceClock
from tests.support.offload_arithmetic import Durations, Plan
from tests.support.vllm.simulated_cuda import FIXED, OffloadedModel, as_here
from tests.support.vllm.watched_offloader import watched_model

pytestmark = pytest.mark.vllm


def test_the_ring_is_refilled_in_vllms_order() -> None:
    for count in range(1, 30):
        for prefetch_step in range(1, 12):
            if not FIXED and count % min(prefetch_step, count):
                continue  # slots collide: no plan is made for these
            for position in range(count):
                wanted = (position + prefetch_step) % count
                if FIXED:
                    wanted = prefetch._get_next_prefetch_index(position, prefetch_step, count)
                assert refilled_by(position, prefetch_step, count) == wanted


@pytest.mark.parametrize("grouping", [Grouping(1, 1), Grouping(4, 1), Grouping(5, 2), Grouping(8, 7)], ids=str)
def test_vllm_offloads_the_layers_that_a_grouping_names(grouping: Grouping) -> None:
    plan = Plan(group_size=grouping.group_size, num_in_group=grouping.num_in_group)
    with OffloadedModel(plan, Durations(), _device()).served() as model:
        offloaded = [each.module.index for each in model.offloader.module_offloaders]
    assert offloaded == list(grouping.share(0, plan.layers).layers(0, plan.layers))


def test_predictions_are_what_vllm_then_does(tmp_path: Path) -> None:
    """From one run with one grouping, every other grouping and prefetch step is predicted, and then carried out."""
    plan, durations = Plan(group_size=6, prefetch_step=2, steps=24), Durations(copy_ns=1_700_000)
    with watched_model(tmp_path, plan, durations) as watched:
        for _ in range(plan.steps):
            watched.step()
        watched.finish()
        info, planner = watched.series(), OffloadPlanner.of(watched.steps())
    assert planner is not None
    compared = 0
    for candidate in candidates(info, [1, 2, 3, 5]):
        grouping = candidate.grouping
        if grouping is None:
            continue
        other = replace(
            plan,
            group_size=grouping.group_size,
            num_in_group=grouping.num_in_group,
            prefetch_step=candidate.prefetch_step,
        )
        found = planner.predict(candidate)
        if as_here(other).collides:
            assert "does not divide" in found.refusal
            continue
        assert found.step_ns is not None
        assert found.step_ns.value == pytest.approx(_step_ns(other, durations), rel=1e-6)
        compared += 1
    assert compared > (50 if FIXED else 25)


def _step_ns(plan: Plan, durations: Durations) -> float:
    """Run vLLM's offloader; return the mean step time when it has settled."""
    with OffloadedModel(plan, durations, _device()).served() as model:
        model.run()
        assert not model.stale
    begins = [model.starts[step, 0] for step in range(plan.steps)]
    # Where the first layer is offloaded, its start is the end of a wait; what precedes a wait is the same in each step.
    return float(np.diff(begins)[4:].mean())


def _device() -> SimulatedDevice:
    return SimulatedDevice(clock=DeviceClock(drift_ppb=0), call_ns=0)
