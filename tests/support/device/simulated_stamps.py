"""Time stamps that a simulated device writes: the same interface as ``swtrace.series.device.stamps``.

A stamp is work like any other: captured into a graph, it is written again at each launch. The row it is written
into is the device's; the host sees a copy that was shipped, once the copying is over. The host's map of the
device's clock is the real one, fed by a simulated device that answers questions.
"""

from __future__ import annotations

from typing import Any

from swtrace.series.device.stamp_clock import StampClock
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import Effect, Work

LOOK_NS = 100
"""What it costs the host to look into memory that it shares with the device."""
ANSWER_NS = 900
"""From a question until its answer can be seen; the device reads its clock in the middle."""


class _Question:
    """The word that the host asks with."""

    def __init__(self, correspondent: SimulatedCorrespondent) -> None:
        self._correspondent = correspondent

    def __setitem__(self, index: int, number: int) -> None:
        """Ask question ``number``."""
        self._correspondent.asked(number)


class _Answers:
    """The words that the device answers in."""

    def __init__(self, correspondent: SimulatedCorrespondent) -> None:
        self._correspondent = correspondent

    def __getitem__(self, index: int) -> int:
        """Look for the answer to question ``index + 1``."""
        return self._correspondent.seen(index)


class SimulatedCorrespondent:
    """A kernel on an idle stream that answers questions with the device's time."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.tick_ns = device.clock.tick_ns
        self.question: Any = _Question(self)
        self.answers: Any = _Answers(self)
        self.mute = False
        """Whether the device leaves questions unanswered."""
        self._device = device
        self._told: dict[int, tuple[int, int]] = {}
        """By question, from when on the answer can be seen, and what it is."""

    def listen(self) -> bool:
        """Launch the kernel."""
        self._device.called("listen")
        self._device.refuse_in_capture("an anchor")
        self._told.clear()
        return True

    def asked(self, number: int) -> None:
        """Answer in a while."""
        now_ns = self._device.host.now_ns
        if not self.mute:
            self._told.setdefault(number - 1, (now_ns + ANSWER_NS, self._device.clock.at(now_ns + ANSWER_NS // 2)))

    def seen(self, index: int) -> int:
        """Return an answer as the host sees it now: 0 as long as there is none."""
        self._device.host.advance(LOOK_NS)
        from_ns, answer = self._told.get(index, (0, 0))
        return answer if from_ns <= self._device.host.now_ns else 0


class SimulatedShipment:
    """One row on its way to the host."""

    def __init__(self, stamps: SimulatedStamps, row: list[int], copy: Work) -> None:
        self._stamps = stamps
        self._row = row
        self._copy = copy

    def done(self) -> bool:
        """Return whether the row has arrived."""
        device = self._stamps.device
        device.called("query")
        device.refuse_in_capture("the query of a shipment")
        return self._copy.done(device.host.now_ns)

    def instants(self) -> list[int]:
        """Return the row; 0 where nothing was stamped."""
        device = self._stamps.device
        if not self._copy.done(device.host.now_ns):
            raise RuntimeError("a row was read that has not arrived")
        device.catch_up()
        return list(self._row)

    def release(self) -> None:
        """Give the host's row back."""
        self._stamps.free.append(self._row)


class SimulatedStamps:
    """One row of stamps on the device, and a few on the host for its copies."""

    def __init__(self, device: SimulatedDevice, slots: int, rows: int = 8) -> None:
        self.device = device
        self.correspondent = SimulatedCorrespondent(device)
        self.clock = StampClock(self.correspondent, device.host_ns)
        self.free = [[0] * slots for _ in range(rows)]
        self._row = [0] * slots

    def stamp(self, slot: int) -> None:
        """Let the current stream write the device's time into a slot."""
        row, at = self._row, self.device.clock.at

        def write(true_ns: int) -> None:
            row[slot] = at(true_ns)

        self.device.called("stamp")
        self._enqueue(write)

    def ship(self) -> SimulatedShipment | None:
        """Copy the row to the host, behind the current stream's work, and clear it; None without a free row."""
        self.device.called("ship")
        self.device.refuse_in_capture("a shipment")
        row = self.free.pop() if self.free else None
        mine = self._row

        def copy(_true_ns: int) -> None:
            if row is not None:
                row[:] = mine
            mine[:] = [0] * len(mine)

        work = self._enqueue(copy)
        return None if row is None else SimulatedShipment(self, row, work)

    def _enqueue(self, effect: Effect) -> Work:
        stream = self.device.current_stream()
        return self.device.enqueue(stream, Work(self.device.host.now_ns, stream.tail(), 0, None, effect))
