"""What a test on a device needs of it: work of known length, bytes that move, and reads that are checked.

The scenarios are written for this and run on a simulated device and on a real one alike. On either, a read is
part of the device's work: what is compared is what memory holds when the device comes to it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from simulated_device import SimulatedDevice
from simulated_stamps import SimulatedStamps
from simulated_work import SimulatedGraph
from torch import Tensor

from swtrace.series.device.accelerator import Device

POISON = 0xA5
"""In every byte of a window while its broadcast is under way."""


class Rig(Protocol):
    """A device and its surroundings."""

    memory: torch.device
    """Where weights and windows lie."""

    @property
    def device(self) -> Device:
        """The device."""

    def compute(self, ns: int) -> None:
        """Enqueue work of known length on the current stream."""

    def fill(self, buffer: Tensor, content: Tensor, ns: int) -> None:
        """Enqueue a transfer: ``buffer`` is poisoned, and holds ``content`` when ``ns`` have passed."""

    def send(self, content: Tensor, ns: int) -> None:
        """Enqueue the source's part of a transfer."""

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

    def stamps(self, slots: int) -> Any:
        """Return stamps of this device."""

    def catch_up(self) -> None:
        """Block the host until the device has nothing left to do."""

    def pause(self, ns: int) -> None:
        """Let the host be busy with something else."""


class SimulatedRig:
    """A simulated device, which also knows the truth about everything that happened on it."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.memory = torch.device("cpu")
        self.read_instants: list[tuple[int, int]] = []
        """Of each linear, in the order of the device: true begin and end."""
        self.moved_instants: list[tuple[int, int]] = []
        """Of each transfer, likewise."""
        self.overlaps = 0
        """Transfers that began before the one before had ended: a communicator runs one at a time."""
        self.keep = True
        """Whether instants are kept; a long run is not to keep millions."""
        self._compared = 0
        self._wrong = 0
        self._moving = 0
        self._begun: list[int] = []

    def compute(self, ns: int) -> None:
        """Enqueue work."""
        self.device.compute(ns)

    def fill(self, buffer: Tensor, content: Tensor, ns: int) -> None:
        """Enqueue a transfer: poison at its start, the bytes at its end."""
        target, whole = buffer.numpy().data, bytes(content.numpy())
        poison = bytes([POISON]) * len(whole)
        begun: list[int] = []

        def begin(true_ns: int) -> None:
            begun.append(true_ns)
            target[:] = poison
            self._moves(+1)

        def end(true_ns: int) -> None:
            target[:] = whole
            self._moves(-1)
            self._moved(begun.pop(), true_ns)

        self.device.compute(ns, at_start=begin, at_end=end)

    def send(self, content: Tensor, ns: int) -> None:
        """Enqueue the source's part."""
        del content
        begun: list[int] = []

        def begin(true_ns: int) -> None:
            begun.append(true_ns)
            self._moves(+1)

        def end(true_ns: int) -> None:
            self._moves(-1)
            self._moved(begun.pop(), true_ns)

        self.device.compute(ns, at_start=begin, at_end=end)

    def read(self, weight: Tensor, expected: Tensor, ns: int) -> None:
        """Enqueue a linear: it looks at its first and at its last instant."""
        memory, right = weight.detach().view(-1).view(torch.uint8).numpy().data, bytes(expected.numpy())
        begun: list[int] = []

        def begin(true_ns: int) -> None:
            begun.append(true_ns)
            self._compared += 1
            self._wrong += bytes(memory) != right

        def end(true_ns: int) -> None:
            self._compared += 1
            self._wrong += bytes(memory) != right
            began_ns = begun.pop()
            if self.keep:
                self.read_instants.append((began_ns, true_ns))

        self.device.compute(ns, at_start=begin, at_end=end)

    def _moves(self, change: int) -> None:
        self._moving += change
        self.overlaps += self._moving > 1

    def _moved(self, begin_ns: int, end_ns: int) -> None:
        if self.keep:
            self.moved_instants.append((begin_ns, end_ns))

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

    def stamps(self, slots: int) -> SimulatedStamps:
        """Return stamps of this device."""
        return SimulatedStamps(self.device, slots)

    def catch_up(self) -> None:
        """Let the host wait for the device."""
        self.device.synchronise()

    def pause(self, ns: int) -> None:
        """Let the host's time pass."""
        self.device.host.advance(ns)
