"""Every linear reads its own layer's bytes when the device comes to it, whatever host and device are up to."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from swtrace.trace import records as columns
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import Kind, Untimed
from tests.support.device.claims import mixture
from tests.support.device.expected import Durations
from tests.support.device.lone_rank import Program
from tests.support.device.rig import SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice, SimulatedEvent, SimulatedStream

LAYERS = 7
REPLAYS = 1_000
TRANSFERS = {"slow": 200_000, "fast": 500}
"""Transfers that are waited for, and such as would overtake their readers, in ns."""


def rig(call_ns: int = 1_000) -> SimulatedRig:
    return SimulatedRig(SimulatedDevice(call_ns=call_ns))


def even(pace: str, layers: int = LAYERS) -> Durations:
    """Return durations with transfers of one of the two paces."""
    return Durations.even(layers, before=20_000, linear=30_000, transfer=TRANSFERS[pace])


@pytest.mark.parametrize("pace", ["slow", "fast"])
@pytest.mark.parametrize("windows", ["static", "rolling"])
@pytest.mark.parametrize(("ranks", "k"), [(2, 0), (2, 1), (2, 3), (3, 1), (3, 2)])
def test_no_eager_read_is_stale(tmp_path: Path, ranks: int, k: int, windows: str, pace: str) -> None:
    """Host ahead, level or late by chance: every read finds its layer, and transfers never overlap."""
    at = rig()
    chance = random.Random(k)  # noqa: S311 - reproducible pauses
    program = Program(at, tmp_path, even(pace), prefetch_step=k, ranks=ranks, rank=ranks - 1, windows=windows)
    for _ in range(100):
        program.eager(1, pause_ns=chance.choice([0, 1_000, 50_000, 300_000]))
        at.pause(chance.choice([0, 5_000_000]))
    assert at.readings() == (2 * 100 * LAYERS, 0)
    assert at.overlaps == 0
    program.close()


@pytest.mark.parametrize("pace", ["slow", "fast"])
@pytest.mark.parametrize(("layers", "k"), [(6, 0), (7, 1), (8, 1), (6, 2), (7, 2), (8, 3)])
def test_no_read_is_stale_where_eager_steps_replays_and_deaths_mix(
    tmp_path: Path, layers: int, k: int, pace: str
) -> None:
    """Eager steps, replays of two graphs, new captures and forwards that die, in any order: every read is right."""
    at = rig()
    reads, made, failed = mixture(
        at, tmp_path, layers=layers, prefetch_step=k, transfer_ns=TRANSFERS[pace], steps=150, rank=k % 2
    )
    assert (made, failed) == (reads, 0)
    assert at.overlaps == 0


def test_a_thousand_replays_neither_read_stale_weights_nor_lose_the_clock(tmp_path: Path) -> None:
    """61 layers, k = 2, replayed for virtual seconds on a clock that drifts: all reads right, all instants in 5 us."""
    at = rig()
    at.keep = False
    durations = Durations.even(61, before=20_000, linear=30_000, transfer=40_000)
    program = Program(at, tmp_path, durations, prefetch_step=2)
    program.capture()
    begins: list[int] = []
    timed = 0
    worst_ns = 0
    assert program.recorder is not None
    with RingReader.open(program.recorder.path) as reader:
        for replay in range(REPLAYS):
            at.device.compute(0, at_end=begins.append)
            program.replay(1)
            at.pause(61 * 50_000 + 100_000)
            if replay % 100 == 99:
                records = reader.read()
                for step in records[records["kind"] == Kind.STEP].view(columns.STEP):
                    if step["untimed"] == Untimed.TIMED:
                        timed += 1
                        worst_ns = max(worst_ns, abs(int(step["begin_ns"]) - begins[step["step"]]))
    assert at.readings() == (2 * 61 * REPLAYS, 0)
    assert at.overlaps == 0
    assert timed >= REPLAYS - 2, "the last steps are told later"
    assert worst_ns < 5_000
    program.close()


def dropping(of: Callable[[SimulatedStream], bool]) -> Callable[[SimulatedStream, SimulatedEvent], None]:
    """Return a ``wait_event`` that some streams do not heed."""
    heed = SimulatedStream.wait_event

    def wait_event(stream: SimulatedStream, event: SimulatedEvent) -> None:
        if not of(stream) or stream.session is not None or event.session is not None:
            heed(stream, event)

    return wait_event


@pytest.mark.parametrize("who", ["prefetch", "default"])
@pytest.mark.parametrize("windows", ["static", "rolling"])
def test_a_missing_order_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: str, who: str) -> None:
    """Without the prefetch stream's wait for the window's last reader, or the reader's for the bytes, it shows."""
    at = rig()
    program = Program(at, tmp_path, even("fast" if who == "prefetch" else "slow"), windows=windows)
    monkeypatch.setattr(SimulatedStream, "wait_event", dropping(lambda stream: stream.name.startswith(who)))
    program.eager(5)
    reads, wrong = at.readings()
    assert reads == 2 * 5 * LAYERS
    assert wrong > 0
    monkeypatch.undo()
    program.close()
