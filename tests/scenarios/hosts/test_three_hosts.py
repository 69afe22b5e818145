"""A series with ranks on three hosts whose clocks are hours apart, as the first of them shows it."""

from __future__ import annotations

import numpy as np
import pytest

from swtrace.ledger.facts import CAUSES, Cause
from tests.support.host_series import HostSeries, run
from tests.support.hosts import Delay, needs_delayed_links, needs_hosts

pytestmark = needs_hosts

HOUR_S = 3600
AHEAD_S = (2 * HOUR_S, 5 * HOUR_S, 0)
"""The clocks of hosts b and c are ahead of that of host a, and behind it."""
LATE = 1
"""The rank on host b."""
FAR = 2
"""The host whose link is delayed."""
DELAY_S = 0.002
STEPS = 100
SKEW = [CAUSES.index(cause) for cause in (Cause.ENTRY_SKEW, Cause.SKEW)]


def share_of_skew(shown: HostSeries, rank: int) -> float:
    """Return the share of all stall that is skew because a rank issued last."""
    skew = [step.cause_ns[SKEW].sum(axis=0)[step.late_rank == rank].sum() for step in shown.steps]
    return float(sum(skew) / sum(step.stall_ns.sum() for step in shown.steps))


def share_explained(shown: HostSeries, rank: int) -> float:
    """Return the share of all stall that came before a rank's issue, by the clocks' true offsets."""
    before = 0
    for step in shown.steps:
        error = shown.error_ns(step)[:, np.newaxis]
        late = (step.issued_ns - error)[rank] - (step.wait_begin_ns - error)
        before += np.clip(late, 0, step.stall_ns).sum()
    return float(before / sum(step.stall_ns.sum() for step in shown.steps))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> HostSeries:
    """Return a series in which no rank is late and no link delayed."""
    return run(tmp_path_factory.mktemp("healthy"), AHEAD_S, steps=STEPS)


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> HostSeries:
    """Return a series in which the rank on host b issues each broadcast 5 ms late, read through a watching daemon."""
    return run(tmp_path_factory.mktemp("late"), AHEAD_S, steps=60, late_s={LATE: 0.005}, watching=True)


@pytest.fixture(scope="module", params=[Delay(towards_s=DELAY_S), Delay(back_s=DELAY_S)], ids=["towards", "back"])
def delayed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HostSeries:
    """Return a series in which the link of host c delays packets in one direction."""
    return run(tmp_path_factory.mktemp("delayed"), AHEAD_S, steps=40, delays={FAR: request.param})


def test_each_host_has_its_own_clock(healthy: HostSeries) -> None:
    """Ranks on three hosts have three clocks, and two of them are aligned to the first rank's."""
    assert healthy.series.clocks == 3
    assert [clock.group_ranks for clock in healthy.series.alignment] == [(1,), (2,)]


def test_clocks_that_are_hours_apart_are_aligned(healthy: HostSeries) -> None:
    """All ranks are compared in all steps but the first ones."""
    assert {step.step for step in healthy.compared} >= set(range(STEPS // 2, STEPS))


def beyond_the_bound(shown: HostSeries) -> list[int]:
    """Return the compared steps in which some rank's instants are misplaced by more than the stated bound."""
    assert shown.compared
    return [step.step for step in shown.compared if (np.abs(shown.error_ns(step)) > step.clock_bound_ns).any()]


def test_the_true_offset_is_within_the_bound_of_every_step(healthy: HostSeries) -> None:
    """No rank's instants are misplaced by more than the stated bound."""
    assert not beyond_the_bound(healthy)


def test_the_bound_holds_if_a_rank_is_always_late(late: HostSeries) -> None:
    """A rank that is late in every operation is misplaced by no more than the bound."""
    assert not beyond_the_bound(late)


@needs_delayed_links
def test_the_bound_holds_if_one_direction_is_slower(delayed: HostSeries) -> None:
    """Where packets take 2 ms longer in one direction, the misplaced rank is within the bound."""
    assert not beyond_the_bound(delayed)


def test_the_error_is_a_small_part_of_the_bound(healthy: HostSeries) -> None:
    """If broadcasts take equally long in both directions, the error settles at less than half of the bound."""
    error, bound = (
        np.array([values(step)[1:] for step in healthy.compared[-STEPS // 2 :]])
        for values in (healthy.error_ns, lambda step: step.clock_bound_ns)
    )
    assert np.median(np.abs(error) / bound) < 0.5


def test_a_late_rank_on_another_host_is_named(late: HostSeries) -> None:
    """The first host's screen names the late rank on host b as the straggler."""
    assert [each["ranks"] for each in late.screen["stragglers"]] == [[LATE]]


def test_the_others_stall_because_of_the_late_rank(late: HostSeries) -> None:
    """Much of all stall certainly is skew because the late rank issued last, and hardly any because another one did."""
    assert share_of_skew(late, LATE) > 0.3
    assert share_of_skew(late, FAR) < 0.1


@needs_delayed_links
def test_a_delayed_link_makes_no_straggler(delayed: HostSeries) -> None:
    """No rank is named a straggler because its link delays packets by 2 ms in one direction."""
    assert delayed.screen["stragglers"] == []
    assert delayed.series.stragglers == ()


@needs_delayed_links
def test_a_delayed_link_makes_no_rank_late(delayed: HostSeries) -> None:
    """A delayed link shifts the estimate of a clock, but no wait is said to wait for a rank that issued no later."""
    wrong = []
    for step in delayed.steps:
        issued = step.issued_ns - delayed.error_ns(step)[:, np.newaxis]
        for rank, position in np.argwhere(step.cause_ns[SKEW].any(axis=0)):
            if issued[step.late_rank[rank, position], position] <= issued[rank, position]:
                wrong.append((step.step, rank, position))
    assert not wrong


@needs_delayed_links
def test_a_delayed_link_stalls_by_transfer(delayed: HostSeries) -> None:
    """The rank behind a delayed link is blamed for no more stall than its own late issues explain."""
    assert share_of_skew(delayed, FAR) <= share_explained(delayed, FAR)
