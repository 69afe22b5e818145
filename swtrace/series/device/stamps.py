"""Instants that the device records, for captured graphs, whose events measure no time.

A stamp is a kernel that writes the device's time to a slot of one row in device memory. A graph that
captured it writes the same slot at every replay. After each replay the row is shipped: copied to a free
row in pinned host memory and then cleared, both in stream order. So every value in a row was written since
the previous row was shipped, and a slot with 0 was not written. After set-up, nothing here waits for the device.
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
"""Consecutive readings of the clock: over 100 us, about 100 of the longest known ticks."""
_ALONE = (1,)
"""A grid of one block."""


class Shipment:
    """One row that is copied to the host."""

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
        """Return whether the row has arrived. Do not call this while a graph is being captured."""
        if self._armed and self._event.query():
            self._armed = False
        return not self._armed

    def instants(self) -> list[int]:
        """Return each slot's device time in ns, 0 for a slot that was not written.

        Raises:
            OrderError: the row has not arrived yet.
        """
        if self._armed:
            raise OrderError("a shipment was read before it arrived")
        instants: list[int] = self._row.tolist()
        return instants

    def release(self) -> None:
        """Give the row back, read or not; it is reused once it has arrived."""
        self._free.append(self)


class Stamps:
    """A row of slots for one device's stamps, the host rows that it is shipped to, and the clock that maps stamps.

    Args:
        device: a CUDA device.
        slots: the number of instants in a row.
        rows: the number of rows that can be under way or unread at once.

    Raises:
        StampsUnavailable: the device has no such clock, or Triton cannot make kernels for it.
    """

    def __init__(self, device: torch.device, slots: int, rows: int = 8) -> None:
        kernels = _kernels(device)
        self.unshipped = 0
        """Rows that were cleared unread because no host row was free."""
        self._device = device
        self._stamp = kernels.stamp
        self._slots = slots
        self._free: list[Shipment] = []
        # Tensors made in inference mode could not be written outside it.
        with torch.inference_mode(mode=False), torch.cuda.device(device):
            self._row = torch.zeros(slots, dtype=torch.int64, device=device)
            self._host_rows = torch.zeros(rows, slots, dtype=torch.int64, device="cpu", pin_memory=True)
            for number in range(rows):
                Shipment(self._host_rows[number], self._free)
            try:
                # Compile and load now, because neither may happen during a capture.
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
        """Maps the device's clock to the host's."""

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
        """Ship the stamps made so far and clear the row; if no host row is free, lose them and return None.

        Call it after a replay. It enqueues work on the current stream: all stamping streams must have joined it
        before, and further stamps must come after.

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
        # A row that was released before it arrived may still be written to; the oldest is the likeliest to be free.
        if self._free and self._free[0].done():
            return self._free.pop(0)
        return None


class _Correspondent:
    """Shared words in pinned host memory, and the kernel that answers through them."""

    def __init__(self, device: torch.device, kernels: ModuleType) -> None:
        self._device = device
        self._answer = kernels.answer
        # High priority, so that it is scheduled between the blocks of other kernels.
        self._stream: Any = torch.cuda.Stream(device=device, priority=-1)  # type: ignore[no-untyped-call]
        self._listening: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._words = torch.zeros(1 + EXCHANGES, dtype=torch.int64, device="cpu", pin_memory=True)
        # Through ctypes, access to a word is one move and makes no tensor.
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
        StampsUnavailable: the kernels cannot run on this device.
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
