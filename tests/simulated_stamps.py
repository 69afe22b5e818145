"""Time stamps that a simulated device writes: the same interface as ``swtrace.series.device.stamps``.

A stamp is work like any other: captured into a graph it is written anew at each launch. The row it is written
into is the device's; the host sees a copy that was shipped, once the copying is over.
"""

from __future__ import annotations

from simulated_device import SimulatedDevice
from simulated_work import Effect, Work


class SimulatedStampClock:
    """The device's clock as the host knows it: exactly, unless a test tells an error."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.renewals = 0
        self.tick_ns = device.clock.tick_ns
        self._device = device

    def renew(self) -> None:
        """Take an anchor."""
        self._device.called("renew")
        self._device.refuse_in_capture("an anchor")
        self.renewals += 1

    def to_host(self, ns: int) -> int:
        """Return the host's instant at which the device's clock showed ``ns``."""
        clock = self._device.clock
        true_ns = (ns - clock.origin_ns) * 1_000_000_000 // (1_000_000_000 + clock.drift_ppb)
        while clock.at(true_ns) < ns:  # the division rounds down
            true_ns += 1
        return true_ns


class SimulatedShipment:
    """One row on its way to the host."""

    def __init__(self, stamps: SimulatedStamps, row: list[int]) -> None:
        self._stamps = stamps
        self._row = row
        self.copy: Work | None = None

    def done(self) -> bool:
        """Whether the row has arrived."""
        device = self._stamps.device
        device.called("query")
        device.refuse_in_capture("the query of a shipment")
        return self.copy is not None and self.copy.done(device.host.now_ns)

    def instants(self) -> list[int]:
        """Return the row; 0 where nothing was stamped."""
        if self.copy is None or not self.copy.done(self._stamps.device.host.now_ns):
            raise RuntimeError("a row was read that has not arrived")
        self._stamps.device.catch_up()
        return list(self._row)

    def release(self) -> None:
        """Give the host's row back."""
        self._stamps.free.append(self._row)


class SimulatedStamps:
    """One row of stamps on the device, and a few on the host for its copies."""

    def __init__(self, device: SimulatedDevice, slots: int, rows: int = 8) -> None:
        self.device = device
        self.clock = SimulatedStampClock(device)
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
        if not self.free:
            return None
        row, mine = self.free.pop(), self._row

        def copy(_true_ns: int) -> None:
            row[:] = mine
            mine[:] = [0] * len(mine)

        shipment = SimulatedShipment(self, row)
        shipment.copy = self._enqueue(copy)
        return shipment

    def _enqueue(self, effect: Effect) -> Work:
        stream = self.device.current_stream()
        return self.device.enqueue(stream, Work(self.device.host.now_ns, stream.tail(), 0, None, effect))
