"""The timing events of a step, from a pool that never grows.

A *sheet* holds every event that one step can record; *marks* hold only those that show when the step ran. Both are
made once, because creating an event can stall a device and destroying one waits for it. A sheet is reused: it is taken
when the first broadcast of its step is issued, filled while the forward is launched, read when the device has passed
all of its events, and then given back. An event is never recorded again before it was passed and read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from swtrace.series.device.accelerator import Device, Event, Stream

NS_PER_MS = 1_000_000


class TransferEvents(NamedTuple):
    """The events that order a broadcast and also time it."""

    issued: Event
    """On the caller's stream: the broadcast may begin."""
    ready: Event
    """On the prefetch stream: the bytes are there."""


class Entry(NamedTuple):
    """The fields of a transfer's record, without its instants."""

    position: int
    operation: int
    reach_position: int
    source: int
    window: int
    flags: int
    issue_launched_ns: int = 0
    """When the host launched the issue; 0 for work in a graph."""
    wait_launched_ns: int = 0


class Marks:
    """The events that show when a step ran, but not what happened in it."""

    __slots__ = ("_armed", "_passed", "arrival", "begin", "end", "marked")

    def __init__(self, device: Device) -> None:
        """Create the events."""
        self.begin = device.event(timed=True)
        self.arrival = device.event(timed=True)
        self.end = device.event(timed=True)
        self.clear()

    def clear(self) -> None:
        """Count no event as recorded."""
        self.marked = False
        """Whether the step's beginning was recorded separately from its arrival."""
        self._armed: list[Event] = []
        self._passed = 0

    def create_events(self, stream: Stream) -> None:
        """Record every event once, so that the device creates them now and not in a step."""
        for event in (self.begin, self.arrival, self.end):
            event.record(stream)

    def record(self, event: Event, stream: Stream) -> None:
        """Record one of the step's own events."""
        event.record(stream)
        self._armed.append(event)

    def passed(self) -> bool:
        """Return whether the device has passed every recorded event, querying from where the last call stopped."""
        armed = self._armed
        while self._passed < len(armed):
            if not armed[self._passed].query():
                return False
            self._passed += 1
        return True

    def since_arrival(self, event: Event) -> int:
        """Return the device's time from the arrival at the first layer to ``event``, in ns."""
        return round(self.arrival.elapsed_time(event) * NS_PER_MS)


class Sheet(Marks):
    """The events and the entries of one step."""

    __slots__ = ("_ready", "_transfers", "_waits", "entries", "waited")

    def __init__(self, device: Device, num_layers: int) -> None:
        """Create all events of a step with ``num_layers`` layers."""
        super().__init__(device)
        self._transfers = tuple(
            TransferEvents(device.event(timed=True), device.event(timed=True)) for _ in range(num_layers)
        )
        self._waits = tuple(device.event(timed=True) for _ in range(num_layers))

    def clear(self) -> None:
        """Count no event as recorded."""
        super().clear()
        self.entries: list[Entry] = []
        self.waited: set[int] = set()
        """Positions whose wait was launched."""
        self._ready: Event | None = None

    def create_events(self, stream: Stream) -> None:
        """Record every event once, so that the device creates them now and not in a step."""
        super().create_events(stream)
        for event in self._waits:
            event.record(stream)
        for events in self._transfers:
            events.issued.record(stream)
            events.ready.record(stream)

    def transfer(self, position: int) -> TransferEvents:
        """Return the events for the broadcast of ``position``, which is issued now.

        The prefetch stream runs broadcasts one by one, each after its issue. So once it has passed *ready* of the last
        one, it has passed the events of all.
        """
        events = self._transfers[position]
        self._ready = events.ready
        return events

    def events(self, position: int) -> TransferEvents:
        """Return the events that the broadcast of ``position`` has recorded."""
        return self._transfers[position]

    def wait(self, position: int, stream: Stream) -> None:
        """Record that the forward needs ``position``."""
        self.waited.add(position)
        self.record(self._waits[position], stream)

    def passed(self) -> bool:
        """Return whether the device has passed every recorded event."""
        return super().passed() and (self._ready is None or self._ready.query())

    def issued_ns(self, position: int) -> int:
        """Return the time from the arrival to the issue of ``position``, in ns."""
        return self.since_arrival(self._transfers[position].issued)

    def ready_ns(self, position: int) -> int:
        """Return the time from the arrival to *ready* of ``position``, in ns."""
        return self.since_arrival(self._transfers[position].ready)

    def wait_ns(self, position: int) -> int:
        """Return the time from the arrival to the wait for ``position``, in ns."""
        return self.since_arrival(self._waits[position])


class SheetPool:
    """All sheets of a series, and as many marks for untimed steps."""

    def __init__(self, device: Device, num_layers: int, count: int) -> None:
        """Create ``count`` of each, and have the device create their events."""
        stream = device.current_stream()
        self._sheets = [Sheet(device, num_layers) for _ in range(count)]
        self._marks = [Marks(device) for _ in range(count)]
        for each in (*self._sheets, *self._marks):
            each.create_events(stream)

    def take_sheet(self) -> Sheet | None:
        """Return an empty sheet; None if all are in use."""
        return self._sheets.pop() if self._sheets else None

    def take_marks(self) -> Marks | None:
        """Return empty marks; None if all are in use."""
        return self._marks.pop() if self._marks else None

    def give_back(self, marks: Marks) -> None:
        """Take back a sheet or marks, once all events were passed and the needed ones read."""
        marks.clear()
        if isinstance(marks, Sheet):
            self._sheets.append(marks)
        else:
            self._marks.append(marks)
