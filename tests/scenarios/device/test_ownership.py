"""The ownership check on a device checks what the device has in memory at the time of the check."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swtrace.errors import StaleWindowError
from swtrace.series import post_processing
from swtrace.series.ownership import OwnershipCheck, tag_of
from swtrace.series.payload import ALIGNMENT
from tests.support.device import lone_rank
from tests.support.device.expected import Durations
from tests.support.device.lone_rank import ForwardDiedError, LonePeerMover, Program
from tests.support.device.rig import SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice, SimulatedEvent, SimulatedStream

LAYERS = 7
TRANSFERS = {"slow": 200_000, "about as long as a linear": 27_000, "fast": 500}


class TaggedPeerMover(LonePeerMover):
    """Simulates peers that also send their tags."""

    def describe(self, start_layer: int, ranks: int) -> None:
        """Set the layers, for their tags."""
        super().describe(start_layer, ranks)
        self._contents = [
            torch.cat([content, _tail(tag_of(start_layer + position))])
            for position, content in enumerate(self._contents)
        ]
        self._sink = self._contents[0].clone()


def _tail(tag: int) -> Tensor:
    """Return the bytes of a tag and of the room around it."""
    tail = torch.zeros(ALIGNMENT // 8, dtype=torch.int64)
    tail[0] = tag
    return tail.view(torch.uint8)


class SimulatedCheck(OwnershipCheck):
    """Its operations are work of the simulated device, which torch does not know: they come in stream order."""

    looks = 0

    def _then(self, work: Callable[[], None]) -> None:
        device: Any = self._device
        device.compute(0, at_start=lambda _: work())

    def _compare_tags(self, look: int, position: int, tag: Tensor, should_be: Tensor) -> None:
        def work() -> None:
            SimulatedCheck.looks += 1
            OwnershipCheck._compare_tags(self, look, position, tag, should_be)

        self._then(work)

    def _add_up(self) -> None:
        self._then(lambda: OwnershipCheck._add_up(self))

    def _copy_out(self) -> None:
        self._then(lambda: OwnershipCheck._copy_out(self))

    def discard_first_checks(self) -> None:
        """As work of the device."""
        self._then(lambda: OwnershipCheck.discard_first_checks(self))


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every series of these tests check on the simulated device."""
    monkeypatch.setattr(post_processing, "OwnershipCheck", SimulatedCheck)
    monkeypatch.setattr(lone_rank, "LonePeerMover", TaggedPeerMover)
    monkeypatch.setattr(SimulatedCheck, "looks", 0)


def make(folder: Path, pace: str, *, layers: int = LAYERS, check: bool = True, **options: Any) -> Program:
    """Return a program with transfers that are waited for (slow), or that would overtake their readers."""
    durations = Durations.even(layers, before=20_000, linear=30_000, transfer=TRANSFERS[pace])
    return Program(SimulatedRig(SimulatedDevice()), folder, durations, check=check, start_layer=1, **options)


@pytest.mark.parametrize("pace", ["slow", "fast"])
@pytest.mark.parametrize("windows", ["static", "rolling"])
@pytest.mark.parametrize(("ranks", "k"), [(2, 0), (2, 1), (3, 2)])
def test_no_alarm_in_eager_steps(tmp_path: Path, ranks: int, k: int, windows: str, pace: str) -> None:
    """Where every read is right, nothing is found, whether the host is ahead or late; and each wait is looked at."""
    program = make(tmp_path, pace, prefetch_step=k, ranks=ranks, windows=windows)
    chance = random.Random(k)  # noqa: S311 - reproducible pauses
    for _ in range(50):
        program.eager(1, pause_ns=chance.choice([0, 1_000, 50_000]))
    assert program.rig.readings() == (2 * 50 * LAYERS, 0)
    assert SimulatedCheck.looks > 1.5 * 50 * program.waits_per_step
    program.close()


@pytest.mark.parametrize("pace", ["slow", "fast"])
@pytest.mark.parametrize(("layers", "k"), [(6, 0), (7, 1), (8, 1), (7, 2), (8, 3)])
def test_no_alarm_where_everything_mixes(tmp_path: Path, layers: int, k: int, pace: str) -> None:
    """Eager steps, replays marked and noticed late, captures and deaths, in any order: nothing is found."""
    program = make(tmp_path, pace, layers=layers, prefetch_step=k, rank=k % 2)
    chance = random.Random(10 * layers + k)  # noqa: S311 - reproducible order
    program.capture()
    reads = 0
    for _ in range(150):
        what = chance.choice(["eager", "replay", "replay", "unseen", "capture", "die"])
        if what == "eager":
            program.eager(1)
        elif what == "replay":
            program.replay(1)
        elif what == "unseen":
            program.series.announce_graph()
            program.rig.replay(program.graph)
            program.mover.next = 0
        elif what == "capture":
            program.series.announce_graph()
            program.capture()
        else:
            with pytest.raises(ForwardDiedError), program.series.step():
                program.forward(stop_at=layers // 2)
            reads += layers // 2
        reads += layers * (what in {"eager", "replay", "unseen"})
    assert program.rig.readings() == (2 * reads, 0)
    assert SimulatedCheck.looks > reads // 2
    program.close()


Heed = Callable[[SimulatedStream, SimulatedEvent], None]


@contextmanager
def deaf(monkeypatch: pytest.MonkeyPatch, unheard: Callable[[SimulatedStream, SimulatedEvent], bool]) -> Iterator[None]:
    """Let streams not heed some events: orders that a transport forgot."""
    heed: Heed = SimulatedStream.wait_event

    def wait_event(stream: SimulatedStream, event: SimulatedEvent) -> None:
        if not unheard(stream, event):
            heed(stream, event)

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedStream, "wait_event", wait_event)
        yield


def unordered_reader(program: Program) -> Callable[[SimulatedStream, SimulatedEvent], bool]:
    """A reader does not wait for its captured broadcast."""
    graphs: Any = program.series._circle
    return lambda stream, event: stream.session is not None and event in graphs._done


def unordered_broadcast(program: Program) -> Callable[[SimulatedStream, SimulatedEvent], bool]:
    """A captured broadcast does not wait for the last reader of its window; the first one joins the capture."""
    graphs: Any = program.series._circle
    return lambda stream, _: stream is graphs._transport.stream and stream.session is not None


@pytest.mark.parametrize(
    ("fault", "pace", "when"),
    [
        (unordered_reader, "slow", "when it was read"),
        (unordered_broadcast, "about as long as a linear", "before it was freed"),
    ],
)
def test_stale_reads_in_a_replayed_graph_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, pace: str, when: str
) -> None:
    """An order that is missing in a graph is found when it is replayed, a step late at most, with its layers."""
    program = make(tmp_path, pace)
    with deaf(monkeypatch, fault(program)):
        program.capture()
    program.eager(2)
    assert program.rig.readings()[1] == 0
    program.replay(1)
    program.rig.catch_up()
    with pytest.raises(StaleWindowError) as caught:
        program.replay(1)
    said = str(caught.value)
    assert said.startswith("series 's', rank 0: the ownership check found, by the end of step 2: layer ")
    assert when in said
    assert program.rig.readings()[1] > 0
    program.rig.catch_up()
    with pytest.raises(StaleWindowError, match="by the end of step 3"):
        program.close()


def test_without_the_check_a_replay_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same graph reads stale weights in every replay, without an error."""
    monkeypatch.setattr(lone_rank, "LonePeerMover", LonePeerMover)
    program = make(tmp_path, "slow", check=False)
    with deaf(monkeypatch, unordered_reader(program)):
        program.capture()
    program.replay(5)
    assert program.rig.readings()[1] > 0
    program.close()


def test_it_never_waits_for_the_device(tmp_path: Path) -> None:
    """While the device hangs, steps are launched and nothing is read; findings are reported once it goes on."""
    program = make(tmp_path, "slow", traced=False)
    device: Any = program.rig.device
    program.eager(1)
    work = device.current_stream().hang()
    for _ in range(20):
        program.eager(1)
    assert device.calls["synchronise"] == 0
    device.release(work)
    program.eager(1)
    assert program.rig.readings()[1] == 0
    program.close()
