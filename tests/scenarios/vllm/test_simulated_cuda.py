"""vLLM's offloader on a simulated device runs as arithmetic says, and its published faults really do harm."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm")

from vllm.model_executor.offloader.prefetch import PrefetchOffloader

from tests.support.device.simulated_device import SimulatedDevice
from tests.support.offload_arithmetic import Durations, Plan, expected
from tests.support.vllm.simulated_cuda import OffloadedModel, as_here

pytestmark = pytest.mark.vllm


def run(plan: Plan, durations: Durations, call_ns: int = 0) -> OffloadedModel:
    with OffloadedModel(plan, durations, SimulatedDevice(call_ns=call_ns)).served() as model:
        return model.run()


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("prefetch_step", [1, 2, 3, 4])
@pytest.mark.parametrize("group_size", range(2, 9))
def test_each_layer_starts_when_arithmetic_says(group_size: int, prefetch_step: int, seed: int | None) -> None:
    for pinned, call_ns, parameters in ((True, 0, 1), (True, 1_000, 3), (False, 0, 2)):
        plan = as_here(Plan(group_size=group_size, prefetch_step=prefetch_step, pinned=pinned, parameters=parameters))
        durations = Durations(copy_ns=2_500_000, seed=seed)
        starts: dict[tuple[int, int], int] = {}
        expected(plan, durations, starts)
        model = run(plan, durations, call_ns)
        assert model.starts == starts
        assert bool(model.stale) == plan.collides


def test_colliding_slots_are_read_wrong() -> None:
    plan = Plan(prefetch_step=5, colliding=True)
    model = run(plan, Durations())
    assert plan.collides
    assert model.stale
    starts: dict[tuple[int, int], int] = {}
    expected(plan, Durations(), starts)
    assert model.starts == starts


def test_colliding_is_harmless_where_the_prefetch_step_divides_the_ring() -> None:
    assert not run(Plan(prefetch_step=4, colliding=True), Durations()).stale


def test_a_ring_with_layers_that_never_run_is_read_wrong() -> None:
    model = run(Plan(prefetch_step=2, running=12), Durations())
    assert {layer for _, layer in model.stale} == {1, 3}


@pytest.mark.parametrize("seed", [None, 1])
def test_the_fallback_exposes_the_copies_that_were_never_started(seed: int | None) -> None:
    plan, durations = Plan(prefetch_step=2, running=12, fallback=True), Durations(seed=seed)
    model = run(plan, durations)
    starts: dict[tuple[int, int], int] = {}
    told = expected(plan, durations, starts)
    assert model.starts == starts
    assert not model.stale
    for step in range(1, plan.steps):
        for position in range(plan.prefetch_step):
            at = told[step, position]
            assert at.issued_ns == at.wait_begin_ns
            assert at.wait_end_ns - at.wait_begin_ns >= durations.copy(step, plan.offloaded()[position])


def test_a_missing_wait_is_read_wrong() -> None:
    def never_wait(offloader: PrefetchOffloader) -> None:
        offloader._wait_for_layer = lambda _position: None

    model = OffloadedModel(Plan(), Durations(copy_ns=2_500_000), SimulatedDevice(call_ns=0))
    with model.served(never_wait):
        assert model.run().stale


def test_a_copy_that_does_not_wait_for_the_forward_spoils_what_it_reads() -> None:
    def never_fork(offloader: PrefetchOffloader) -> None:
        offloader.copy_stream.wait_event = lambda _event: None

    model = OffloadedModel(Plan(prefetch_step=2), Durations(), SimulatedDevice(call_ns=0))
    with model.served(never_fork):
        assert model.run().stale


def test_torch_is_as_before_afterwards() -> None:
    before = torch.cuda.Stream, torch.cuda.Event, torch.empty_strided, torch.Tensor.is_pinned
    run(Plan(steps=1), Durations())
    assert before == (torch.cuda.Stream, torch.cuda.Event, torch.empty_strided, torch.Tensor.is_pinned)
