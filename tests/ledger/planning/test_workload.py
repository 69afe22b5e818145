"""Measured steps, taken apart: what is found must be what the simulated group was made of."""

from __future__ import annotations

import numpy as np
import pytest

from swtrace.ledger.planning.contention import MOST_CONTENTION
from swtrace.ledger.planning.workload import Workload, consecutive, measure
from swtrace.trace.identity import PULL
from tests.support.planning import LAYERS, Ran, ran, uneven


def workload(each: Ran, overhead_ns: float = 60_000.0) -> Workload:
    """Return the steps of a run, taken apart; of a pull series, those of the last rank."""
    run = consecutive(each.steps)
    info = next(info for info in run[0].infos if info is not None)
    return measure(run, info, overhead_ns=overhead_ns)


@pytest.mark.parametrize("share", ["all", "1/2"])
def test_the_curve_is_the_compute(share: str) -> None:
    """At every knot, it is the compute of all that comes before in the stack, without stalls, wakes and overheads."""
    each = ran(uneven(), share, 1)
    found = workload(each)
    first = consecutive(each.steps)[0].step

    for number in range(found.steps):
        for rank in (0, 1):
            parts = [each.sharing.compute(rank, first + number, layer) for layer in range(LAYERS)]
            for place, compute in zip(found.knots[1:], found.curve[number, rank, 1:], strict=True):
                whole, within = divmod(float(place), 1)
                expected = sum(map(sum, parts[: int(whole)])) + (parts[int(whole)][0] if within else 0.0)
                assert compute == pytest.approx(expected, abs=20_000 * LAYERS)  # wakes that were not paid


@pytest.mark.parametrize("pull", [False, True])
@pytest.mark.parametrize("contention", [0.0, 0.25, 0.5])
def test_contention_is_what_slowed_the_computes(contention: float, pull: bool) -> None:  # noqa: FBT001 - a parameter
    """Found from the time in which the ranks waited for a core."""
    found = workload(ran(uneven(contention=contention, pull=pull), "all", 2))

    assert found.contention == pytest.approx(contention / (1 + contention), abs=0.03)


def test_where_nothing_overlaps_the_contention_is_a_guess() -> None:
    """A rank that copies only while it waits shows nothing about contention, so a typical value is taken."""
    found = workload(ran(uneven(pull=True, contention=0.5), "all", 0))

    assert 0.1 < float(found.contention.mean()) < MOST_CONTENTION[PULL]


def test_a_place_between_knots_is_interpolated() -> None:
    """Layers that are not shared count as equally long."""
    found = workload(ran(uneven(), "1/2", 1))
    left, middle, right = np.moveaxis(found.compute_to(np.array([2.0 + found.linear_at, 3.2, 4.0])), 2, 0)
    share = (3.2 - 2.0 - found.linear_at) / (2.0 - found.linear_at)

    assert middle == pytest.approx(left + share * (right - left))


def test_steps_before_a_hole_are_left_out() -> None:
    """The gap across a missing step is unknown."""
    steps = ran(uneven()).steps

    assert [step.step for step in consecutive((*steps[:-6], *steps[-5:]))] == [step.step for step in steps[-5:]]


def test_steps_that_are_timed_now_and_then_do_not_hide_those_that_all_were() -> None:
    """The newest run that is long enough counts; if there is none, the longest."""
    steps = ran(uneven()).steps
    sparse = (*steps[:12], *steps[14:18], *steps[20:24])

    def numbers(enough: int) -> list[int]:
        return [step.step for step in consecutive(sparse, enough)]

    timed = [step.step for step in steps]
    assert numbers(4) == timed[20:24]
    assert numbers(9) == timed[1:12]  # the first transfers of the first step were filled in at the start
    assert numbers(100) == timed[1:12]
