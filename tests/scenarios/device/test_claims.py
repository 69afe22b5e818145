"""What is asked of a GPU in ``tests/gpu``, asked of a simulated device: the same scenarios, but exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.device.claims import LAYERS, MS, STEPS, US, close_enough, cost, long_run, mixture, sampled, timing
from tests.support.device.rig import SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import DeviceClock


@pytest.fixture
def rig() -> SimulatedRig:
    """Return a device that drifts, ticks and tells time by events as coarsely as a GPU."""
    return SimulatedRig(SimulatedDevice(clock=DeviceClock(tick_ns=32), exact_events=False, call_ns=5 * US))


@pytest.mark.parametrize("replayed", [False, True], ids=["eager", "replayed"])
@pytest.mark.parametrize("prefetch_step", [1, 2])
@pytest.mark.parametrize("transfer_ns", [100 * US, 1 * MS, 10 * MS])
def test_stall_and_slack_are_the_devices_own(
    tmp_path: Path, rig: SimulatedRig, transfer_ns: int, prefetch_step: int, *, replayed: bool
) -> None:
    """Within 2 us on a coarse, drifting clock (5 us or 1 % are allowed); a host timer sees next to nothing."""
    found = timing(rig, tmp_path, transfer_ns, prefetch_step=prefetch_step, replayed=replayed)
    assert found.waits
    assert found.worst_ns < 2 * US
    assert all(wait.close_enough for wait in found.waits)
    assert found.untimed == 0
    assert found.readings == (2 * STEPS * LAYERS, 0)
    assert rig.overlaps == 0
    if transfer_ns > found.compute_ns:
        inner = [wait for wait in found.waits if wait.position > 2 * prefetch_step]
        assert all(wait.true_stall_ns > 0 for wait in inner)
        assert found.naive_ns < found.stall_ns / 10
    if transfer_ns < found.compute_ns / 2:
        assert not any(wait.true_stall_ns for wait in found.waits)
        # Issued k layers before, each of 1 ms; in a graph's last layers and the next one's first too.
        inner = [wait for wait in found.waits if wait.position > prefetch_step]
        assert all(close_enough(wait.slack_ns, prefetch_step * MS + 500 * US - transfer_ns) for wait in inner)


@pytest.mark.parametrize("transfer_ns", [1 * US, 200 * US])
@pytest.mark.parametrize(("layers", "prefetch_step"), [(7, 1), (8, 2)])
def test_any_mixture_reads_every_layer_right(
    tmp_path: Path, rig: SimulatedRig, layers: int, prefetch_step: int, transfer_ns: int
) -> None:
    """Eager steps, replays of two graphs, captures and forwards that die, in any order."""
    reads, made, failed = mixture(
        rig, tmp_path, layers=layers, prefetch_step=prefetch_step, transfer_ns=transfer_ns, steps=60
    )
    assert (made, failed) == (reads, 0)
    assert rig.overlaps == 0


def test_many_replays_neither_read_stale_weights_nor_lose_the_clock(tmp_path: Path, rig: SimulatedRig) -> None:
    """61 layers, 400 times: every read right, every step's beginning where it must have been."""
    found = long_run(rig, tmp_path, replays=400)
    assert (found.comparisons, found.failed) == (2 * 400 * 61, 0)
    assert found.timed >= 390
    assert found.outside_ns < 5 * US


def test_timing_costs_calls_and_replays_cost_none(tmp_path: Path, rig: SimulatedRig) -> None:
    """An eager layer costs one call more with timing, its wait's; a replay costs the host the same for any layers."""
    found = cost(rig, tmp_path, {"plain": {"traced": False}, "traced": {}}, layers=LAYERS, rounds=2)
    larger = cost(rig, tmp_path, {"larger": {}}, layers=3 * LAYERS, rounds=2)["larger"]
    for plain, traced, large in zip(found["plain"], found["traced"], larger, strict=True):
        assert plain.layer_ns > 0
        assert traced.layer_ns - plain.layer_ns == pytest.approx(5 * US, rel=0.5)
        assert large.replay_ns == pytest.approx(traced.replay_ns, abs=5 * US)


def test_steps_that_are_left_out_are_dated(tmp_path: Path, rig: SimulatedRig) -> None:
    """One step in three is timed: the others say when they ran, and that is when they were launched and done."""
    timed, outside_ns = sampled(rig, tmp_path)
    assert timed == ([True] * 4 + [False] * 8) * 2
    assert outside_ns < 5 * US
