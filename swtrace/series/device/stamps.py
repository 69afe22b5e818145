"""Instants that the device writes down by itself: for captured graphs, whose events tell no time.

A stamp is a kernel that writes the device's time into a slot of one row in device memory; a graph that
captured it writes the same slot at every replay. After each replay the row is shipped: copied to a free
row in pinned host memory, then cleared, both in stream order, so that what a row says was written since
the row before, and a slot that says 0 was not. Nothing here waits for the device once it is set up.
"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import torch

from swtrace.errors import OrderError, StampsUnavailable
from swtrace.series.device.stamp_clock import EXCHANGES, PATIENCE_NS, StampClock, Words

__all__ = ["Shipment", "StampClock", "Stamps", "StampsUnavailable"]

_READINGS = 4096
"""Of the clock, in a row: over 100 us, some 100 of the longest ticks that are known."""
_ALONE = (1,)
"""The grid of one block."""


class Shipment:
    """One row on its way to the host, and then there."""

    __slots__ = ("_armed", "_event", "_free", "_row")

    def __init__(self, row: torch.Tensor, free: list[Shipment]) -> None:
        self._row = row
        self._free = free
        self._event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._armed = False
        free.append(self)

    def load(self, row: torch.Tensor, stream: torch.cuda.Stream) -> None:
        """Enqueue the copy."""
        self._row.copy_(row, non_blocking=True)
        self._event.record(stream)
        self._armed = True

    def done(self) -> bool:
        """Whether the row is there. Not to be asked while a graph is being captured."""
        if self._armed and self._event.query():
            self._armed = False
        return not self._armed

    def instants(self) -> list[int]:
        """Return each slot's device time in ns, 0 where none was written.

        Raises:
            OrderError: the row is not there yet.
        """
        if self._armed:
            raise OrderError("a shipment was read before it arrived")
        instants: list[int] = self._row.tolist()
        return instants

    def release(self) -> None:
        """Give the row back, read or not; it is used again once it is there."""
        self._free.append(self)


class Stamps:
    """A row of slots for one device's stamps, the rows that it is shipped to, and the clock that explains them.

    Args:
        device: a CUDA device.
        slots: how many instants there are in a row.
        rows: how many rows can be under way or unread at once.

    Raises:
        StampsUnavailable: the device has no such clock, or Triton cannot make kernels for it.
    """

    def __init__(self, device: torch.device, slots: int, rows: int = 8) -> None:
        kernels = _kernels(device)
        self.unshipped = 0
        """Rows that were cleared unread, since no free row was left to ship them to."""
        self._device = device
        self._stamp = kernels.stamp
        self._slots = slots
        self._free: list[Shipment] = []
        # Tensors made under inference mode could not be written outside of it.
        with torch.inference_mode(mode=False), torch.cuda.device(device):
            self._row = torch.zeros(slots, dtype=torch.int64, device=device)
            self._host_rows = torch.zeros(rows, slots, dtype=torch.int64, device="cpu", pin_memory=True)
            for number in range(rows):
                Shipment(self._host_rows[number], self._free)
            try:
                # Compiled and loaded now: neither may happen in a capture.
                self._stamp[_ALONE](self._row, 0, num_warps=1)
                correspondent = _Correspondent(device, kernels)
            except Exception as error:  # the compiler's, the driver's and the C compiler's share no base
                raise StampsUnavailable(f"device {device}: Triton could not make kernels for it: {error}") from error
            first = int(self._row[0])
            self._row.zero_()
            torch.cuda.synchronize(device)
        if not first or not correspondent.tick_ns:
            raise StampsUnavailable(f"device {device}: its %globaltimer does not advance from {first}")
        self.clock = StampClock(correspondent)
        """The device's clock, against the host's."""

    def stamp(self, slot: int) -> None:
        """Enqueue a stamp on the current stream; in a capture, for every replay.

        Raises:
            IndexError: there is no such slot.
        """
        if not 0 <= slot < self._slots:
            raise IndexError(f"stamp slot {slot}: must be from 0 to {self._slots - 1}")
        with torch.cuda.device(self._device):
            self._stamp[_ALONE](self._row, slot, num_warps=1)

    def ship(self) -> Shipment | None:
        """Send off what was stamped so far, and clear the row; None, and the row is lost, if no row is free.

        Work on the current stream, eagerly after a replay. All stamping streams must have been joined to
        it, and further stamps must come after it.

        Raises:
            OrderError: a graph is being captured.
        """
        if torch.cuda.is_current_stream_capturing():
            raise OrderError("stamps cannot be shipped while a graph is being captured; ship them after its replays")
        shipment = self._take()
        if shipment is None:
            self.unshipped += 1
        else:
            shipment.load(self._row, torch.cuda.current_stream(self._device))
        self._row.zero_()
        return shipment

    def _take(self) -> Shipment | None:
        # A row that was released before it was there may still be written to; the oldest is the likeliest to be free.
        if self._free and self._free[0].done():
            return self._free.pop(0)
        return None


class _Correspondent:
    """Words in pinned host memory, and a kernel that answers through them."""

    def __init__(self, device: torch.device, kernels: ModuleType) -> None:
        self._device = device
        self._answer = kernels.answer
        # High priority: it is to be let in between the blocks of whatever else runs.
        self._stream: Any = torch.cuda.Stream(device=device, priority=-1)  # type: ignore[no-untyped-call]
        self._listening: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._words = torch.zeros(1 + EXCHANGES, dtype=torch.int64, device="cpu", pin_memory=True)
        # Through ctypes a word is one move, and no tensor is made for it.
        words = (ctypes.c_int64 * (1 + EXCHANGES)).from_address(self._words.data_ptr())
        self.question: Words = (ctypes.c_int64 * 1).from_buffer(words)
        self.answers: Words = (ctypes.c_int64 * EXCHANGES).from_buffer(words, ctypes.sizeof(ctypes.c_int64))
        self.tick_ns = self._tick_ns(kernels)
        self._launch()
        self._listening.synchronize()

    def _tick_ns(self, kernels: ModuleType) -> int:
        readings = torch.zeros(_READINGS, dtype=torch.int64, device=self._device)
        kernels.read_clock[_ALONE](readings, _READINGS, num_warps=1)
        steps = readings.diff()
        steps = steps[steps > 0]
        return int(steps.min()) if steps.numel() else 0

    def listen(self) -> bool:
        """Clear the words and launch the kernel, unless the last one still runs or a graph is being captured."""
        if torch.cuda.is_current_stream_capturing() or not self._listening.query():
            return False
        ctypes.memset(self._words.data_ptr(), 0, (1 + EXCHANGES) * ctypes.sizeof(ctypes.c_int64))
        self._launch()
        return True

    def _launch(self) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._answer[_ALONE](self._words[:1], self._words[1:], EXCHANGES, PATIENCE_NS, num_warps=1)
            self._listening.record(self._stream)


def _kernels(device: torch.device) -> ModuleType:
    """Return the kernels' module, which loads Triton.

    Raises:
        StampsUnavailable: it cannot work on such a device.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        raise StampsUnavailable(f"device {device}: only CUDA devices have a %globaltimer")
    if not torch.cuda.is_available():
        raise StampsUnavailable(f"device {device}: torch {torch.__version__} finds no CUDA device here")
    if torch.cuda.is_current_stream_capturing():
        raise StampsUnavailable(f"device {device}: stamps cannot be set up while a graph is being captured")
    try:
        from swtrace.series.device import kernels
    except ImportError as error:
        raise StampsUnavailable(f"device {device}: stamps need Triton (pip install triton): {error}") from error
    return kernels
