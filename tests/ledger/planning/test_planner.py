"""The planner against simulated groups that can be run under any settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from swtrace.ledger.planning.planner import DRIFT, DRIFT_OF_STALL, FEWEST_STEPS
from swtrace.ledger.planning.prediction import Interval
from swtrace.ledger.planning.shared import SharedPlanner
from swtrace.profile import Spread
from swtrace.share import Share
from swtrace.trace.identity import PULL
from tests.support.planning import LAYERS, Ran, candidate, pull_profile, ran, uneven
from tests.support.schedules import BYTES

SETTINGS = (("all", 0), ("all", 1), ("all", 3), ("1/2", 0), ("1/2", 1), ("1/3", 1))


@pytest.fixture(scope="module", params=[False, True], ids=["broadcast", "pull"])
def runs(request: pytest.FixtureRequest) -> dict[tuple[str, int], Ran]:
    """Return runs of one group under all settings, in which transfers do not slow computes down."""
    group = uneven(pull=request.param)
    return {settings: ran(group, *settings) for settings in SETTINGS}


def test_any_settings_are_predicted_from_any_others(runs: dict[tuple[str, int], Ran]) -> None:
    """Share and prefetch step may both differ, also across 0: step time within 2.5 %, stall within 2 points."""
    for recorded, before in runs.items():
        planner = before.planner()
        for settings, after in runs.items():
            said = planner.predict(candidate(*settings, pull=before.sharing.pull))

            assert said.step_ns is not None, said.refusal
            assert said.stall_ratio is not None
            assert said.step_ns.value == pytest.approx(after.step_ns, rel=0.025), (recorded, settings)
            assert said.stall_ratio.value == pytest.approx(after.stall_ratio, abs=0.02), (recorded, settings)
            assert said.step_ns.low <= after.step_ns <= said.step_ns.high, (recorded, settings)


def test_the_settings_of_the_run_give_what_was_measured(runs: dict[tuple[str, int], Ran]) -> None:
    """Nothing changes, so the prediction is the measurement itself."""
    for settings, each in runs.items():
        planner = each.planner()
        said = planner.predict(replace(planner.measured.candidate))

        assert said.step_ns is not None
        assert said.stall_ratio is not None
        assert said.step_ns.value == pytest.approx(planner.measured.step_ns, rel=1e-9), settings
        assert said.stall_ratio.value == pytest.approx(planner.measured.stall_ratio, abs=1e-9), settings


def test_without_sharing_only_the_computes_remain(runs: dict[tuple[str, int], Ran]) -> None:
    """No stall, no overhead, no doubt about either."""
    before = runs["all", 1]
    compute = [
        sum(sum(before.sharing.compute(rank, step, layer)) for layer in range(LAYERS))
        for rank in range(2)
        for step in range(2, before.sharing.steps)
    ]
    said = before.planner().predict(candidate("none", 0))

    assert said.step_ns is not None
    assert said.step_ns.value == pytest.approx(np.mean(compute), rel=0.02)
    assert (said.stall_ratio, said.saved_bytes) == (Interval(0.0, 0.0, 0.0), 0)


@pytest.mark.parametrize("pull", [False, True])
def test_contention_is_found_and_predicted(pull: bool) -> None:  # noqa: FBT001 - a parameter
    """If transfers and computes slow each other down, fewer transfers make the computes shorter."""
    group = uneven(pull=pull, contention=0.3)
    whole, half = ran(group, "all", 2), ran(group, "1/2", 1)

    for before, settings, after in ((whole, ("1/2", 1), half), (half, ("all", 2), whole)):
        planner = before.planner()
        said = planner.predict(candidate(*settings, pull=pull))
        assert said.step_ns is not None
        assert said.step_ns.value == pytest.approx(after.step_ns, rel=0.03)
        unaware = abs(planner.measured.step_ns / after.step_ns - 1)
        assert abs(said.step_ns.value / after.step_ns - 1) < 0.5 * unaware


def test_longer_computes_hide_more() -> None:
    """With computes three times as long, as for another batch, what stalled is hidden."""
    group = uneven(transfer_ns=2_500_000)
    before = ran(group, "all", 1)
    said = before.planner(scale_compute=3.0).predict(candidate("all", 1))
    truth = ran(replace(group, compute=lambda *of: tuple(3 * each for each in group.compute(*of))), "all", 1)

    assert before.stall_ratio > 0.3
    assert said.step_ns is not None
    assert said.stall_ratio is not None
    assert said.step_ns.value == pytest.approx(truth.step_ns, rel=0.03)
    assert said.stall_ratio.value == pytest.approx(truth.stall_ratio, abs=0.02)


@pytest.mark.parametrize("pull", [False, True])
def test_a_group_of_another_size_can_be_assumed(pull: bool) -> None:  # noqa: FBT001 - a parameter
    """Each rank of a larger group owns fewer layers and receives more of them."""
    two, four = (ran(uneven(pull=pull, ranks=ranks, transfer_ns=1_300_000)) for ranks in (2, 4))

    for before, after in ((two, four), (four, two)):
        said = before.planner().predict(candidate("all", 1, pull=pull, ranks=after.sharing.ranks))
        assert said.step_ns is not None
        assert said.step_ns.low <= after.step_ns <= said.step_ns.high
        assert said.step_ns.value == pytest.approx(after.step_ns, rel=0.05)
        unaware = abs(before.step_ns / after.step_ns - 1)
        assert abs(said.step_ns.value / after.step_ns - 1) < 0.5 * unaware


def test_a_slower_transport_can_be_assumed() -> None:
    """Transfers at a given bandwidth are predicted from a run with faster ones, also for a transport that it lacks."""
    before = ran(uneven())
    slow_ns = 2_500_000
    truth = ran(replace(before.sharing, transfer=lambda *_of: slow_ns))
    planner = before.planner(bandwidth=1e9 * BYTES / slow_ns)
    said = planner.predict(candidate("all", 1))

    assert before.stall_ratio < 0.2 < truth.stall_ratio
    assert said.step_ns is not None
    assert said.step_ns.value == pytest.approx(truth.step_ns, rel=0.03)
    assert planner.predict(candidate("all", 1, pull=True)).step_ns is not None


def test_without_sharing_nothing_stalls() -> None:
    """What the replay misses of the run's stall is no stall of a run that does not share."""
    jumpy = uneven(transfer_ns=2_000_000)
    said = ran(replace(jumpy, wake=500_000)).planner().predict(candidate("none", 0))

    assert said.stall_ratio is not None
    assert said.stall_ratio.high == 0.0


def test_a_run_whose_transfers_change_is_refused() -> None:
    """If the second half of the steps is unlike the first, no number is given."""
    group = uneven()
    sudden = replace(
        group, transfer=lambda rank, step, layer: group.transfer(rank, step, layer) * (1 + 4 * (step > 15))
    )

    said = ran(sudden, "all", 1).planner().predict(candidate("all", 2))

    assert said.step_ns is None
    assert said.stall_ratio is None
    assert "does not fit this run" in said.refusal


def test_an_unknown_transport_is_refused_without_a_profile() -> None:
    """Broadcasts say nothing about copies."""
    said = ran(uneven()).planner().predict(candidate("all", 1, pull=True))

    assert said.refusal == "how long a copy takes is unknown: pass a profile that `swtrace probe` wrote"
    assert said.saved_bytes > 0


def test_an_unknown_stretch_is_that_of_the_other_sizes() -> None:
    """If the probe could not know how copies of the layer's size slow compute down, other sizes say it."""

    def probed(*stretches: Spread) -> float:
        said = before.planner(pull_profile(*stretches)).predict(candidate("all", 1, pull=True))
        assert said.step_ns is not None
        return said.step_ns.value

    before = ran(uneven())
    unknown, free, held = Spread(1.0, 1.0, 1.0, 1.0), Spread(0.9, 1.0, 1.1, 1.0), Spread(1.4, 1.5, 1.6, 1.5)

    assert probed(unknown, held) == probed(held, held) > probed(unknown) == probed(free)


def test_a_transport_that_the_run_lacked_is_predicted_with_more_doubt() -> None:
    """The longer the probed copies, the more it matters that the model's may take longer."""
    before = ran(uneven())

    def widths(seconds: float) -> tuple[float, float]:
        said = before.planner(pull_profile(Spread(1.4, 1.5, 1.6, 1.5), seconds=seconds)).predict(
            candidate("all", 1, pull=True)
        )
        assert said.step_ns is not None
        assert said.stall_ratio is not None
        return (said.step_ns.high - said.step_ns.low) / said.step_ns.value, said.stall_ratio.high - said.stall_ratio.low

    short, middle, long = widths(1e-5), widths(5e-4), widths(1e-3)

    assert short[0] < middle[0] < long[0]
    assert short[1] < 3 * 1.645 * DRIFT_OF_STALL[PULL]
    assert long[1] > short[1]


def test_ranks_that_ran_on_their_own_may_wait_for_each_other_once_they_broadcast() -> None:
    """How far they then differ is as uncertain as the step time of each."""
    profile = pull_profile(Spread(1.0, 1.0, 1.0, 1.0))
    timings = tuple(replace(each, family="broadcast", seconds=Spread(*4 * [1e-5])) for each in profile.timings)
    said = ran(uneven(pull=True)).planner(replace(profile, timings=timings)).predict(candidate("all", 4))

    assert said.stall_ratio is not None
    assert said.stall_ratio.high - said.stall_ratio.value > 1.645 * DRIFT


def test_a_prefetch_step_needs_enough_shared_layers() -> None:
    """Six shared layers allow up to four ahead."""
    planner = ran(uneven()).planner()

    assert planner.predict(candidate("1/2", 4)).step_ns is not None
    assert planner.predict(candidate("1/2", 5)).refusal == "prefetch step 5 needs at least 7 shared layers, not 6"


def test_few_steps_are_no_basis() -> None:
    """There is no planner of fewer consecutive steps, nor across a missing one."""
    steps = ran(uneven()).steps

    assert SharedPlanner.of(steps[-FEWEST_STEPS:]) is None
    assert SharedPlanner.of((*steps[-FEWEST_STEPS - 3 : -4], *steps[-3:])) is None
    assert SharedPlanner.of(steps[-FEWEST_STEPS - 1 :]) is not None


@pytest.mark.parametrize(
    ("share", "prefetch_step", "windows", "layers"),
    [
        ("all", 1, "static", 6 + 1),
        ("all", 2, "rolling", 6 + 3),
        ("1/2", 1, "static", 6 + 3 + 1),
        ("none", 0, "static", 12),
    ],
)
def test_memory_counts_resident_and_owned_layers_and_windows(
    share: str, prefetch_step: int, windows: str, layers: int
) -> None:
    """On the rank that holds most."""
    planner = ran(uneven()).planner()

    held = planner.memory_bytes(replace(candidate(share, prefetch_step), share=Share(share), windows=windows))

    assert held == layers * BYTES
