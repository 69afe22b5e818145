"""What a series on a device records, against what follows from the injected durations: to the nanosecond."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.trace.schema import Observed
from tests.support.device.claims import check, uneven
from tests.support.device.expected import Schedule
from tests.support.device.lone_rank import Program
from tests.support.device.rig import SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import DeviceClock

STEPS = 6
"""Fewer than there are sheets: the host may be as far ahead as it likes."""
GRIDS = [(layers, k) for layers in (*range(2, 10), 61) for k in range(4) if k <= layers - 2]


def exact_rig() -> SimulatedRig:
    """Return a device whose clock has an origin of its own but no drift, and whose calls cost nothing."""
    return SimulatedRig(SimulatedDevice(clock=DeviceClock(drift_ppb=0), call_ns=0))


@pytest.mark.parametrize("windows", ["static", "rolling"])
@pytest.mark.parametrize(("layers", "k"), GRIDS)
def test_eager_steps_are_recorded_as_the_durations_make_them(tmp_path: Path, layers: int, k: int, windows: str) -> None:
    """Host far ahead: issued, ready, wait begin, wait end, stall and slack of every wait are exact."""
    durations = uneven(layers, seed=layers * 10 + k)
    rig = exact_rig()
    program = Program(rig, tmp_path, durations, prefetch_step=k, windows=windows, rank=(layers + k) % 2)
    program.eager(STEPS)
    rig.catch_up()
    program.close()
    check(program, Observed.EVENT)
    assert rig.readings() == (2 * STEPS * layers, 0)
    assert rig.overlaps == 0


@pytest.mark.parametrize("pause_ns", [60_000, 250_000])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_late_host_is_no_stall(tmp_path: Path, k: int, pause_ns: int) -> None:
    """Where the host launches late, waits begin late: only what the broadcast held the device for is stall."""
    durations = uneven(8, seed=k)
    rig = exact_rig()
    program = Program(rig, tmp_path, durations, prefetch_step=k)
    program.eager(STEPS, pause_ns)
    rig.catch_up()
    program.close()
    check(program, Observed.EVENT)
    in_time = Schedule(durations, k, program.owned)
    for _ in range(STEPS):
        in_time.eager()
    assert program.truth.waits != in_time.waits, "the host is to be late indeed"


@pytest.mark.parametrize(("layers", "k"), GRIDS)
def test_replays_are_recorded_as_the_durations_make_them(tmp_path: Path, layers: int, k: int) -> None:
    """Under graph replay the same facts are exact, as complete as in eager; the first k are waited for outside."""
    durations = uneven(layers, seed=layers * 10 + k)
    rig = exact_rig()
    program = Program(rig, tmp_path, durations, prefetch_step=k, rank=(layers + k) % 2)
    program.capture()
    program.replay(STEPS)
    rig.catch_up()
    program.close()
    check(program, Observed.EVENT, Observed.STAMP)
    assert rig.readings() == (2 * STEPS * layers, 0)
    assert rig.overlaps == 0


@pytest.mark.parametrize("between_ns", [0, 300_000, 5_000_000])
@pytest.mark.parametrize("k", [0, 2])
def test_a_host_that_comes_late_to_a_replay_is_no_stall(tmp_path: Path, k: int, between_ns: int) -> None:
    """However long the device lay idle between replays and eager steps: stall is what a broadcast held it for."""
    durations = uneven(8, seed=k)
    rig = exact_rig()
    program = Program(rig, tmp_path, durations, prefetch_step=k)
    program.capture()
    for _ in range(2):
        program.replay(2)
        rig.pause(between_ns)
        program.eager(1)
        rig.pause(between_ns)
    rig.catch_up()
    program.close()
    check(program, Observed.EVENT, Observed.STAMP)
