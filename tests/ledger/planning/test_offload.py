"""Plans of offloaded layers: predictions equal what happens, on a ring that copies in vLLM's order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from swtrace.ledger.planning import offload
from swtrace.ledger.planning.offload import OffloadPlanner, candidates
from swtrace.ledger.planning.planner import FEWEST_STEPS, Assumed
from swtrace.ledger.planning.prediction import UNSHARED, Candidate, Grouping, Prediction
from swtrace.ledger.planning.shared import SharedPlanner
from swtrace.placement import refilled_by
from swtrace.trace.identity import H2D
from tests.support.offload_arithmetic import Durations, Plan, expected
from tests.support.offload_ring import LAYER_BYTES, described, offloading

STEPS = 40
RUNS = [
    Plan(group_size=4, num_in_group=1, prefetch_step=1, steps=STEPS),
    Plan(group_size=2, num_in_group=1, prefetch_step=2, steps=STEPS),
    Plan(group_size=3, num_in_group=2, prefetch_step=3, steps=STEPS),
    Plan(group_size=5, num_in_group=1, prefetch_step=3, steps=STEPS),
    Plan(group_size=1, num_in_group=1, prefetch_step=5, steps=STEPS),
]


@dataclass(frozen=True)
class Truth:
    """What arithmetic says about a run, without its first steps."""

    step_ns: float
    stall_ratio: float

    @classmethod
    def of(cls, plan: Plan, durations: Durations) -> Truth:
        """Return it for a run whose host waits for each step."""
        starts: dict[tuple[int, int], int] = {}
        waits = expected(plan, durations, starts)
        counted = range(2, plan.steps - 1)
        last = plan.layers - 1
        ends = [starts[step, last] + durations.compute(step, last) for step in range(plan.steps)]
        step_ns = float(np.mean([ends[step] - ends[step - 1] for step in counted]))
        stalls = [max(0, wait.ready_ns - wait.wait_begin_ns) for (step, _), wait in waits.items() if step in counted]
        return cls(step_ns, sum(stalls) / len(counted) / step_ns)


def like(plan: Plan, candidate: Candidate) -> Plan:
    """Return the run under a candidate's settings."""
    grouping = candidate.grouping
    if grouping is None:
        raise ValueError(candidate)
    return replace(
        plan,
        group_size=grouping.group_size,
        num_in_group=grouping.num_in_group,
        prefetch_step=candidate.prefetch_step,
    )


def planned(folder: Path, plan: Plan, durations: Durations, **assumed: float) -> OffloadPlanner:
    made = OffloadPlanner.of(offloading(folder, plan, durations), **assumed)
    assert made is not None
    return made


def predictions(planner: OffloadPlanner, plan: Plan) -> list[Prediction]:
    """Return the predictions for everything worth trying that offloads, and for the run's own settings."""
    tried = candidates(described(plan), sorted({1, 2, 3, 4, plan.prefetch_step}))
    made = [planner.predict(each) for each in tried if each.grouping is not None]
    assert not [each.refusal for each in made if each.refusal]
    assert len(made) > 50
    return made


@pytest.mark.parametrize("copy_ns", [700_000, 2_500_000])
@pytest.mark.parametrize("plan", RUNS, ids=str)
def test_with_even_times_every_prediction_equals_arithmetic(tmp_path: Path, plan: Plan, copy_ns: int) -> None:
    """Whatever the run's own settings were."""
    durations = Durations(copy_ns=copy_ns)
    for each in predictions(planned(tmp_path, plan, durations), plan):
        truth = Truth.of(like(plan, each.candidate), durations)
        assert each.step_ns is not None
        assert each.stall_ratio is not None
        assert each.step_ns.value == pytest.approx(truth.step_ns, rel=1e-6)
        assert each.stall_ratio.value == pytest.approx(truth.stall_ratio, abs=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("plan", RUNS, ids=str)
def test_with_uneven_times_intervals_hold_nine_of_ten(tmp_path: Path, plan: Plan, seed: int) -> None:
    """Each compute and copy is up to 30 % shorter or longer than another."""
    durations = Durations(copy_ns=1_500_000, seed=seed, spread=(0.7, 1.3))
    within_step, within_stall, missed = _held(planned(tmp_path, plan, durations), plan, durations)
    assert within_step >= 0.9
    assert within_stall >= 0.9
    assert missed < 0.02


class SlowCopies(Durations):
    """Copies of half of the layers take four times as long as the others."""

    def copy(self, number: int, layer: int) -> int:
        """Return the duration of a copy."""
        return super().copy(number, layer) * (4 if layer % 6 < 3 else 1)


class SlowLayers(Durations):
    """Every fourth layer computes for five times as long as the others."""

    def compute(self, step: int, layer: int) -> int:
        """Return the duration of a forward."""
        return super().compute(step, layer) * (5 if layer % 4 == 3 else 1)


@pytest.mark.parametrize(
    ("plan", "durations"),
    [
        (Plan(group_size=4, steps=STEPS), SlowCopies(copy_ns=800_000)),
        (Plan(group_size=8, steps=STEPS), SlowLayers(copy_ns=1_500_000)),
    ],
    ids=["copies", "layers"],
)
def test_intervals_are_wider_where_layers_differ(tmp_path: Path, plan: Plan, durations: Durations) -> None:
    """What resident layers are like is not known, so what was measured of all layers says how sure that is."""
    within_step, within_stall, _ = _held(planned(tmp_path, plan, durations), plan, durations)
    assert within_step >= 0.9
    assert within_stall >= 0.9


def _held(planner: OffloadPlanner, plan: Plan, durations: Durations) -> tuple[float, float, float]:
    """Return which shares of intervals of step time and stall hold the truth, and by how much step times are missed."""
    found = []
    for each in predictions(planner, plan):
        truth = Truth.of(like(plan, each.candidate), durations)
        assert each.step_ns is not None
        assert each.stall_ratio is not None
        found.append(
            (
                each.step_ns.low <= truth.step_ns <= each.step_ns.high,
                each.stall_ratio.low <= truth.stall_ratio <= each.stall_ratio.high,
                abs(each.step_ns.value / truth.step_ns - 1),
            )
        )
    within_step, within_stall, missed = np.mean(found, axis=0)
    return float(within_step), float(within_stall), float(missed)


def test_without_offloading_nothing_stalls(tmp_path: Path) -> None:
    plan, durations = RUNS[2], Durations(copy_ns=2_500_000)
    found = planned(tmp_path, plan, durations).predict(Candidate(UNSHARED, 0, H2D, "static", 1))
    assert found.step_ns is not None
    assert found.step_ns.value == pytest.approx(plan.layers * durations.compute_ns, rel=1e-6)
    assert found.stall_ratio is not None
    assert (found.stall_ratio.value, found.saved_bytes) == (0.0, 0)


@pytest.mark.parametrize(("scale", "bandwidth"), [(2.0, None), (1.0, LAYER_BYTES / 2e-3), (0.5, LAYER_BYTES / 3e-4)])
def test_what_is_assumed_replaces_what_was_measured(tmp_path: Path, scale: float, bandwidth: float | None) -> None:
    """Computes that take longer, and copies with another bandwidth."""
    plan, durations = RUNS[0], Durations(copy_ns=1_500_000)
    options = {"scale_compute": scale} if bandwidth is None else {"scale_compute": scale, "bandwidth": bandwidth}
    planner = planned(tmp_path, plan, durations, **options)
    copy_ns = durations.copy_ns if bandwidth is None else round(1e9 * LAYER_BYTES / bandwidth)
    other = Durations(round(scale * durations.compute_ns), copy_ns)
    for candidate in candidates(described(plan), [1, 2]):
        if candidate.grouping is not None:
            found = planner.predict(candidate).step_ns
            assert found is not None
            assert found.value == pytest.approx(Truth.of(like(plan, candidate), other).step_ns, rel=1e-6)


def test_memory_is_resident_layers_and_buffers(tmp_path: Path) -> None:
    plan = RUNS[1]
    planner = planned(tmp_path, plan, Durations())
    third = Candidate(Grouping(3, 1).share(0, 24), 4, H2D, "static", 1, Grouping(3, 1))
    assert planner.measured.memory_bytes == (12 + 2) * LAYER_BYTES
    assert planner.memory_bytes(third) == (16 + 4) * LAYER_BYTES
    assert planner.predict(third).saved_bytes == (8 - 4) * LAYER_BYTES


def test_memory_that_is_not_pinned_is_refused(tmp_path: Path) -> None:
    """Each copy then blocks the host, so what looks like compute is the wait for a copy."""
    planner = planned(tmp_path, replace(RUNS[0], pinned=False), Durations())
    tried = [planner.predict(each) for each in candidates(described(RUNS[0]), [1, 2])]
    assert {each.refusal.partition(",")[0] for each in tried} == {"the host memory is not pinned"}


def test_as_many_buffers_as_layers_are_refused(tmp_path: Path) -> None:
    planner = planned(tmp_path, RUNS[0], Durations())
    refused = planner.predict(replace(planner.measured.candidate, prefetch_step=6))
    assert "saves nothing" in refused.refusal
    assert refused.step_ns is None


def test_a_vllm_whose_slots_collide_gets_only_prefetch_steps_that_divide(tmp_path: Path) -> None:
    """Before vllm#54975, another prefetch step gives wrong output, also if the run itself has it."""
    for prefetch_step in (4, 5):
        plan = replace(RUNS[1], group_size=2, prefetch_step=prefetch_step, colliding=True)  # 12 layers
        planner = planned(tmp_path / str(prefetch_step), plan, Durations())
        for candidate in candidates(described(plan), range(1, 13)):
            layers = len(planner._layers(candidate.share))
            wrong = layers > 0 and layers % min(candidate.prefetch_step, layers) > 0
            assert ("vllm#54975" in planner.predict(candidate).refusal) == wrong, candidate


def test_layers_without_weights_to_offload_leave_other_groups_unknown(tmp_path: Path) -> None:
    """With ``--offload-params``, vLLM leaves out layers that have none of these; what others have is not recorded."""
    steps = offloading(tmp_path, RUNS[1], Durations())
    info = steps[0].infos[0]
    assert info is not None
    assert info.offload is not None
    named = replace(info, offload=replace(info.offload, group_size=4, num_in_group=3))
    assert named.offload is not None
    planner = OffloadPlanner(named, named.offload, offload._take_apart(steps[2:], info), Assumed())
    tried = [planner.predict(each) for each in candidates(named, [1, 2])]
    own = planner.measured.candidate.share
    assert {each.candidate.prefetch_step for each in tried if each.candidate.share == own and each.step_ns} == {1, 2}
    assert all("is unknown" in each.refusal for each in tried if each.candidate.share not in {own, UNSHARED})


def test_too_few_steps_say_nothing(tmp_path: Path) -> None:
    """The first, the last and those without a transfer time do not count."""
    steps = offloading(tmp_path, RUNS[0], Durations())
    usable = steps[2:]
    assert OffloadPlanner.of(usable[: FEWEST_STEPS + 2]) is not None
    assert OffloadPlanner.of(usable[: FEWEST_STEPS + 1]) is None
    assert OffloadPlanner.of(()) is None
    assert SharedPlanner.of(steps) is None


def test_a_run_that_changes_is_not_predicted(tmp_path: Path) -> None:
    """Copies of the second half take three times as long: the first half does not predict it."""
    plan = replace(RUNS[1], steps=STEPS)

    class Slowing(Durations):
        def copy(self, number: int, layer: int) -> int:
            return super().copy(number, layer) * (3 if number > STEPS // 2 else 1)

    planner = planned(tmp_path, plan, Slowing(copy_ns=1_900_000))
    assert "does not fit" in planner.predict(planner.measured.candidate).refusal


def test_candidates_are_even_shares() -> None:
    """No share twice, the run's own grouping, prefetch steps below the number of layers, and no offloading last."""
    info = described(Plan(group_size=24, num_in_group=3, prefetch_step=2))
    made = list(candidates(info, [1, 2, 8]))
    assert len({(each.share.text, each.prefetch_step) for each in made}) == len(made)
    assert Grouping(24, 3) in {each.grouping for each in made}
    assert Grouping(4, 2) not in {each.grouping for each in made}
    assert all(each.prefetch_step < len(info.layers_of(each.share)) for each in made[:-1])
    assert made[-1].share == UNSHARED
    assert offload.own_settings(info) in made


@pytest.mark.parametrize("prefetch_step", range(1, 9))
@pytest.mark.parametrize("count", range(1, 13))
def test_each_layer_is_copied_once_a_step_into_its_own_buffer(count: int, prefetch_step: int) -> None:
    order = [refilled_by(position, prefetch_step, count) for position in range(count)]
    assert sorted(order) == list(range(count))
    if prefetch_step < count:
        assert all(after % prefetch_step == before % prefetch_step for before, after in enumerate(order))
