"""What a test on a device needs of it: work of known length, bytes that move, and reads that are checked.

The scenarios are written for this and run on a simulated device and on a real one alike. On either, a read is
part of the device's work: what is compared is what memory holds when the device comes to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from swtrace.series.device.accelerator import Device
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import SimulatedGraph

Action = Callable[[], None] | None
POISON = 0xA5
"""In every byte of a window while its broadcast is under way."""


class Task(NamedTuple):
    """Names one of the things that a device does again and again."""

    what: str
    position: int


class Span(NamedTuple):
    """When a task was done, by the device's own clock."""

    begin_ns: int
    end_ns: int


class Rig(Protocol):
    """A device and its surroundings."""

    memory: torch.device
    """Where weights and windows lie."""
    width: int
    """Of a layer, which is square."""
    keep: bool
    """Whether spans are kept; a long run is not to keep millions."""

    @property
    def device(self) -> Device:
        """The device."""

    def compute(self, task: Task, ns: int) -> None:
        """Enqueue work of known length on the current stream."""

    def fill(self, task: Task, buffer: Tensor, content: Tensor, ns: int) -> None:
        """Enqueue a transfer: ``buffer`` is poisoned, and holds ``content`` when ``ns`` have passed."""

    def spans(self, task: Task) -> list[Span]:
        """Return when a task was done, in order. What is captured may be there for the last replay only."""

    def read(self, weight: Tensor, expected: Tensor, ns: int) -> None:
        """Enqueue a linear: compare ``weight`` bytewise with ``expected``, work, and compare again."""

    def readings(self) -> tuple[int, int]:
        """Return how many comparisons were made, and how many of them failed. Waits for the device."""

    def graph(self) -> Any:
        """Return an empty graph."""

    def capture(self, graph: Any) -> AbstractContextManager[None]:
        """Capture the block's work into a graph."""

    def replay(self, graph: Any) -> None:
        """Launch a graph on the current stream."""

    def catch_up(self) -> None:
        """Block the host until the device has nothing left to do."""

    def pause(self, ns: int) -> None:
        """Let the host be busy with something else."""


class SimulatedRig:
    """A simulated device, which also knows the truth about everything that happened on it."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.memory = torch.device("cpu")
        self.width = 4
        self.overlaps = 0
        """Transfers that began before the one before had ended: a communicator runs one at a time."""
        self.keep = True
        self._spans: defaultdict[Task, list[Span]] = defaultdict(list)
        self._compared = 0
        self._wrong = 0
        self._moving = 0

    def compute(self, task: Task, ns: int) -> None:
        """Enqueue work."""
        self._run(task, ns)

    def fill(self, task: Task, buffer: Tensor, content: Tensor, ns: int) -> None:
        """Enqueue a transfer: poison at its start, the bytes at its end."""
        target, source = buffer.numpy().data, content.numpy().data
        poison = bytes([POISON]) * len(target)

        def begin() -> None:
            target[:] = poison
            self._moving += 1
            self.overlaps += self._moving > 1

        def end() -> None:
            target[:] = source
            self._moving -= 1

        self._run(task, ns, begin, end)

    def read(self, weight: Tensor, expected: Tensor, ns: int) -> None:
        """Enqueue a linear: it looks at its first and at its last instant."""
        memory, right = weight.detach().view(-1).view(torch.uint8).numpy().data, bytes(expected.numpy())

        def look() -> None:
            self._compared += 1
            self._wrong += bytes(memory) != right

        self._run(None, ns, look, look)

    def _run(self, task: Task | None, ns: int, begin: Action = None, end: Action = None) -> None:
        begun: list[int] = []

        def begins(true_ns: int) -> None:
            begun.append(true_ns)
            if begin is not None:
                begin()

        def ends(true_ns: int) -> None:
            if end is not None:
                end()
            begun_ns = begun.pop()
            if self.keep and task is not None:
                self._spans[task].append(Span(self.device.clock.at(begun_ns), self.device.clock.at(true_ns)))

        self.device.compute(ns, at_start=begins, at_end=ends)

    def spans(self, task: Task) -> list[Span]:
        """Return when a task was done, in order."""
        self.catch_up()
        return self._spans[task]

    def readings(self) -> tuple[int, int]:
        """Return how many comparisons were made, and how many of them failed."""
        self.catch_up()
        return self._compared, self._wrong

    def graph(self) -> SimulatedGraph:
        """Return an empty graph."""
        return SimulatedGraph()

    def capture(self, graph: SimulatedGraph) -> AbstractContextManager[None]:
        """Capture the block's work."""
        return self.device.capture(graph)

    def replay(self, graph: SimulatedGraph) -> None:
        """Launch a graph."""
        self.device.replay(graph)

    def catch_up(self) -> None:
        """Let the host wait for the device."""
        self.device.synchronise()

    def pause(self, ns: int) -> None:
        """Let the host's time pass."""
        self.device.host.advance(ns)
