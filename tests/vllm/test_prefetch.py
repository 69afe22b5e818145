"""vLLM's prefetch offloader, watched on a simulated device: every instant equals arithmetic, and no call changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")

from swtrace.diagnosis.diagnosis import verdict
from swtrace.ledger.facts import StepFacts
from swtrace.trace.records import STEP
from swtrace.trace.schema import Kind, TransferFlag, Untimed
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.offload_arithmetic import Durations, Plan, expected
from tests.support.vllm.simulated_cuda import OffloadedModel, as_here
from tests.support.vllm.watched_offloader import watched_model

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("prefetch_step", [1, 2, 3, 4])
@pytest.mark.parametrize("group_size", range(2, 9))
def test_every_instant_equals_arithmetic(tmp_path: Path, group_size: int, prefetch_step: int, seed: int | None) -> None:
    """Stall, slack and transfer are compared with a recurrence that knows only durations."""
    plan = as_here(Plan(group_size=group_size, prefetch_step=prefetch_step))
    durations = Durations(copy_ns=2_500_000, seed=seed)
    told = expected(plan, durations)
    with watched_model(tmp_path, plan, durations, call_ns=200) as watched:
        steps = watched.run().steps()
        assert bool(watched.model.stale) == plan.collides
    assert [step.step for step in steps] == list(range(plan.steps))
    waited = 0
    for step in steps:
        origin_ns = told[step.step, 0].wait_begin_ns
        for position in range(len(plan.offloaded())):
            want = told[step.step, position]
            if step.flags[0, position] & TransferFlag.PREFILLED:
                assert want.issued_ns == 0  # before the first step
                continue
            found = [
                int(column[0, position]) - int(step.arrival_ns[0])
                for column in (step.issued_ns, step.ready_ns, step.wait_begin_ns, step.wait_end_ns)
            ]
            exact = [want.issued_ns, want.ready_ns, want.wait_begin_ns, want.wait_end_ns]
            assert found == [instant - origin_ns for instant in exact]
            assert step.stall_ns[0, position] == max(0, want.ready_ns - want.wait_begin_ns)
            assert step.slack_ns[0, position] == max(0, want.wait_begin_ns - want.ready_ns)
            waited += 1
    assert waited == sum(want.issued_ns > 0 for want in told.values())
    assert _transfers_equal(steps, durations, plan) == waited - 1  # what the stream carried before is unknown


def _transfers_equal(steps: tuple[StepFacts, ...], durations: Durations, plan: Plan) -> int:
    """Check that each transfer takes what its copy takes, however long it queued; return how many are known."""
    number = Counter(range(min(plan.prefetch_step, len(plan.offloaded()))))
    compared = 0
    for step in steps:
        for position, layer in enumerate(plan.offloaded()):
            if step.flags[0, position] & TransferFlag.PREFILLED:
                continue
            if step.attributed[0, position]:
                assert step.transfer_ns[0, position] == durations.copy(number[position], layer)
                compared += 1
            number[position] += 1
    return compared


def test_the_series_is_described(tmp_path: Path) -> None:
    plan = Plan(group_size=4, num_in_group=2, prefetch_step=3)
    with watched_model(tmp_path, plan, Durations()) as watched:
        info = watched.run().series()
    assert (info.kind, info.layers, info.prefetch_step) == ("h2d", tuple(plan.offloaded()), 3)
    assert info.offload is not None
    assert (info.offload.group_size, info.offload.num_in_group, info.offload.pinned) == (4, 2, True)
    one = 2 * 3 * 4  # float32
    assert (info.layer_bytes, info.window_bytes) == (one, 3 * one)
    assert info.extent == "12 of 24 layers offloaded"
    assert info.offload.params == ()


def test_of_the_parameters_only_those_that_vllm_offloads_count(tmp_path: Path) -> None:
    """With ``--offload-params``, a copy moves what their names select, and the series says which names."""
    plan = Plan(group_size=4, prefetch_step=2, parameters=3, params=("weight_2", "weight_0"))
    with watched_model(tmp_path, plan, Durations()) as watched:
        info = watched.run().series()
    one = 2 * 2 * 3 * 4  # two of float32
    assert (info.layer_bytes, info.window_bytes) == (one, 2 * one)
    assert info.offload.params == ("weight_0", "weight_2")


@pytest.mark.parametrize("plan", [Plan(), Plan(group_size=3, num_in_group=2, prefetch_step=2), Plan(prefetch_step=4)])
def test_no_call_of_vllm_changes(tmp_path: Path, plan: Plan) -> None:
    """With and without the watcher, the offloader's work, its order and its instants on the device are the same."""
    durations = Durations(copy_ns=2_500_000, seed=7)
    unwatched, observed = LoggedDevice(), LoggedDevice()
    with OffloadedModel(plan, durations, unwatched).served() as model:
        starts = model.run().starts
    with watched_model(tmp_path, plan, durations, device=observed) as watched:
        watched.run()
        assert watched.model.starts == starts
    assert observed.log == unwatched.log
    assert len(observed.log) > plan.steps * plan.layers


class LoggedDevice(SimulatedDevice):
    """Logs the calls that run work or order it, with their stream."""

    def __init__(self) -> None:
        super().__init__(call_ns=0)
        self.log: list[tuple[str, str]] = []

    def called(self, name: str) -> None:
        """Log the call, if it is one of these."""
        if name in {"compute", "wait_event"}:
            self.log.append((name, self.current_stream().name))
        super().called(name)


def test_steps_that_are_not_timed_are_counted(tmp_path: Path) -> None:
    with watched_model(tmp_path, Plan(steps=40), Durations(), every=5) as watched:
        ledger = watched.run().ledger()
    (facts,) = ledger.facts().series
    totals = facts.ranks[0].totals
    assert totals.steps == 40
    assert totals.untimed_steps["sampled"] == sum(totals.untimed_steps.values()) == 32


def test_a_graph_leaves_its_step_untimed(tmp_path: Path) -> None:
    with watched_model(tmp_path, Plan(), Durations()) as watched:
        with watched.copies.step(tokens=1):
            watched.model.run_step()
        with watched.copies.step(tokens=1):
            watched.copies.replays()
        records = watched.run(1).records().view(STEP).reshape(-1)
    reasons = records["untimed"][records["kind"] == Kind.STEP]
    assert list(reasons) == [Untimed.TIMED, Untimed.REPLAY, Untimed.TIMED]


def test_a_forward_that_fails_is_marked(tmp_path: Path) -> None:
    with watched_model(tmp_path, Plan(), Durations()) as watched:
        with pytest.raises(ZeroDivisionError), watched.copies.step(tokens=1):
            watched.model.run_step(until=6)
        ledger = watched.run(2).ledger()
    (facts,) = ledger.facts().series
    assert facts.ranks[0].totals.aborted_steps == 1


def test_copies_that_no_forward_waits_for_are_recorded(tmp_path: Path) -> None:
    plan = Plan(prefetch_step=2, running=12, fallback=True)
    with watched_model(tmp_path, plan, Durations()) as watched:
        steps = watched.run().steps()
    told = expected(plan, Durations())
    for step in steps[1:]:
        never = TransferFlag.UNWAITED | TransferFlag.PREFILLED
        assert list(np.flatnonzero((step.flags[0] & never) == TransferFlag.UNWAITED)) == [6, 7]
        assert list(np.flatnonzero((step.flags[0] & never) == never)) == [8, 9, 10, 11]  # not even copied
        for position in range(2):
            stall = told[step.step, position].wait_end_ns - told[step.step, position].wait_begin_ns
            assert step.stall_ns[0, position] == stall


@pytest.mark.parametrize(
    ("plan", "kind", "words"),
    [
        (Plan(prefetch_step=5, colliding=True, steps=8), "slot_collision", "the output is wrong"),
        (Plan(prefetch_step=2, running=12, fallback=True, steps=8), "synchronous_copy", "2 of the copies per step"),
        (Plan(group_size=4, num_in_group=2, steps=8), "synchronous_copy", "2 consecutive layers are offloaded"),
    ],
)
def test_published_faults_are_named(tmp_path: Path, plan: Plan, kind: str, words: str) -> None:
    """A fault of vLLM's own classes is named, and explained, and said in words of copies."""
    with watched_model(tmp_path, plan, Durations(copy_ns=700_000)) as watched:
        watched.run()
        ledger = watched.ledger()
        steps = ledger.take_steps()
    (facts,) = ledger.facts().series
    said = {finding.kind: finding.sentence for finding in verdict(facts, steps).findings}
    assert words in said.get(kind, ""), said


@pytest.mark.parametrize("copy_ns", [100_000, 700_000])
@pytest.mark.parametrize("call_ns", [0, 200])
def test_memory_that_is_not_pinned_costs_what_it_lengthens_steps(tmp_path: Path, copy_ns: int, call_ns: int) -> None:
    """Nothing stalls. The cost is the difference to the same steps with pinned memory, which hide every copy."""
    durations = Durations(copy_ns=copy_ns)
    step_ns = {}
    for pinned in (True, False):
        folder = tmp_path / str(pinned)
        folder.mkdir()
        with watched_model(
            folder, Plan(prefetch_step=2, pinned=pinned, steps=8), durations, call_ns=call_ns
        ) as watched:
            watched.run()
            ledger = watched.ledger()
            steps = ledger.take_steps()
        step_ns[pinned] = sum(int(step.duration_ns[0]) for step in steps) / len(steps)
    (facts,) = ledger.facts().series
    found = {finding.kind: finding for finding in verdict(facts, steps).findings}
    assert "hidden" in found
    lost_ns = step_ns[False] - step_ns[True]
    launching_ns = 40 * call_ns * len(steps[0].layers)  # what the host needs for its calls, now that it is not ahead
    assert found["unpinned_memory"].numbers["blocked_ns_per_step"] == pytest.approx(lost_ns, abs=launching_ns)
    assert found["unpinned_memory"].numbers["share"] == pytest.approx(lost_ns / step_ns[False], abs=0.001)


def test_a_host_that_is_late_is_named(tmp_path: Path) -> None:
    """Four copies per layer keep the host busy for longer than they take, and a larger prefetch step does not help."""
    durations = Durations(compute_ns=2_000, copy_ns=160_000)
    step_ns = []
    for prefetch_step in (1, 2):
        folder = tmp_path / str(prefetch_step)
        folder.mkdir()
        plan = Plan(parameters=4, steps=24, prefetch_step=prefetch_step)
        with watched_model(folder, plan, durations, call_ns=20_000) as watched:
            watched.model.device.synchronise()
            ledger = watched.run().ledger()
            steps = ledger.take_steps()
        step_ns.append(sum(int(step.duration_ns[0]) for step in steps))
        if prefetch_step == 1:
            (facts,) = ledger.facts().series
            found = {finding.kind: finding for finding in verdict(facts, steps).findings}
    assert found["launch_bound"].ranks == (3,)
    assert "on copies that the device started 20.0 us (median) after launch" in found["launch_bound"].sentence
    assert "vllm#41474" in found["launch_bound"].advice
    assert "`--offload-num-in-group`" in found["launch_bound"].advice
    assert found["partly_hidden"].consequence_of == "launch_bound"
    assert step_ns[1] == pytest.approx(step_ns[0], rel=0.01)


def test_a_host_that_is_ahead_is_not_named(tmp_path: Path) -> None:
    """The same copies stall as much or more, but the link is the cause."""
    plan, durations = Plan(parameters=4, steps=24), Durations(compute_ns=2_000, copy_ns=160_000)
    with watched_model(tmp_path, plan, durations, call_ns=500) as watched:
        watched.model.device.synchronise()
        ledger = watched.run().ledger()
        steps = ledger.take_steps()
    (facts,) = ledger.facts().series
    kinds = {finding.kind for finding in verdict(facts, steps).findings}
    assert "channel_bound" in kinds
    assert "launch_bound" not in kinds


@pytest.mark.parametrize("plan", [Plan(steps=8), Plan(prefetch_step=4, steps=8), Plan(prefetch_step=3, steps=8)])
def test_nothing_is_named_where_nothing_is_wrong(tmp_path: Path, plan: Plan) -> None:
    with watched_model(tmp_path, plan, Durations(copy_ns=100_000)) as watched:
        watched.run()
        ledger = watched.ledger()
        steps = ledger.take_steps()
    (facts,) = ledger.facts().series
    kinds = {finding.kind for finding in verdict(facts, steps).findings}
    assert not kinds & {"slot_collision", "synchronous_copy", "unpinned_memory", "hung", "records_missing"}
