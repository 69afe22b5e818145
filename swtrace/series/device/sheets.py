"""The timing events of a step, from a pool that never grows.

A *sheet* holds every event that one step can record; *marks* hold those that say when it ran. Both are made
once, because making an event can stall a device and destroying one waits for it. A sheet goes round: taken when
the first broadcast of its step is issued, filled while the forward is launched, read when the device has passed
every event on it, then free again. An event is never recorded anew before it was passed and read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from swtrace.series.device.accelerator import Device, Event, Stream

NS_PER_MS = 1_000_000


class TransferEvents(NamedTuple):
    """The events that order a broadcast and, by the way, time it."""

    issued: Event
    """On the caller's stream: from here the broadcast may begin."""
    ready: Event
    """On the prefetch stream: the bytes are there."""


class Entry(NamedTuple):
    """What a transfer's record says besides its instants."""

    position: int
    operation: int
    reach_position: int
    source: int
    window: int
    flags: int
    issue_launched_ns: int = 0
    """When the host launched its issue; 0 for work in a graph."""
    wait_launched_ns: int = 0


class Marks:
    """The events that say when a step was run, and nothing of what happened in it."""

    __slots__ = ("_armed", "_passed", "arrival", "begin", "end", "marked")

    def __init__(self, device: Device) -> None:
        """Make the events."""
        self.begin = device.event(timed=True)
        self.arrival = device.event(timed=True)
        self.end = device.event(timed=True)
        self.clear()

    def clear(self) -> None:
        """Be empty: no event counts as recorded."""
        self.marked = False
        """The step's beginning was recorded apart from its arrival."""
        self._armed: list[Event] = []
        self._passed = 0

    def rehearse(self, stream: Stream) -> None:
        """Record every event once, so that the device makes them now and not in a step."""
        for event in (self.begin, self.arrival, self.end):
            event.record(stream)

    def record(self, event: Event, stream: Stream) -> None:
        """Record one of the step's own events."""
        event.record(stream)
        self._armed.append(event)

    def passed(self) -> bool:
        """Whether the device has passed every event that was recorded. Asks from where it last stopped."""
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
    """The events and the notes of one step."""

    __slots__ = ("_ready", "_transfers", "_waits", "entries", "waited")

    def __init__(self, device: Device, num_layers: int) -> None:
        """Make all events of a step of ``num_layers`` layers."""
        super().__init__(device)
        self._transfers = tuple(
            TransferEvents(device.event(timed=True), device.event(timed=True)) for _ in range(num_layers)
        )
        self._waits = tuple(device.event(timed=True) for _ in range(num_layers))

    def clear(self) -> None:
        """Be empty: no event counts as recorded."""
        super().clear()
        self.entries: list[Entry] = []
        self.waited: set[int] = set()
        """Positions whose wait was launched."""
        self._ready: Event | None = None

    def rehearse(self, stream: Stream) -> None:
        """Record every event once, so that the device makes them now and not in a step."""
        super().rehearse(stream)
        for event in self._waits:
            event.record(stream)
        for events in self._transfers:
            events.issued.record(stream)
            events.ready.record(stream)

    def transfer(self, position: int) -> TransferEvents:
        """Return the events that the broadcast of ``position`` will record, which is issued now.

        The prefetch stream passes broadcasts one by one, and none before its issue: once it has passed the last one's
        *ready*, it has passed every event of them all.
        """
        events = self._transfers[position]
        self._ready = events.ready
        return events

    def events(self, position: int) -> TransferEvents:
        """Return the events that the broadcast of ``position`` has recorded."""
        return self._transfers[position]

    def wait(self, position: int, stream: Stream) -> None:
        """Record that the forward has come to where it needs ``position``."""
        self.waited.add(position)
        self.record(self._waits[position], stream)

    def passed(self) -> bool:
        """Whether the device has passed every event that was recorded."""
        return super().passed() and (self._ready is None or self._ready.query())

    def issued_ns(self, position: int) -> int:
        """Return the issue of ``position``, from the arrival, in ns."""
        return self.since_arrival(self._transfers[position].issued)

    def ready_ns(self, position: int) -> int:
        """Return when the bytes of ``position`` were there, from the arrival, in ns."""
        return self.since_arrival(self._transfers[position].ready)

    def wait_ns(self, position: int) -> int:
        """Return when the forward needed ``position``, from the arrival, in ns."""
        return self.since_arrival(self._waits[position])


class SheetPool:
    """All sheets of a series, and as many marks for steps that are not timed."""

    def __init__(self, device: Device, num_layers: int, count: int) -> None:
        """Make ``count`` of each, and let the device make their events."""
        stream = device.current_stream()
        self._sheets = [Sheet(device, num_layers) for _ in range(count)]
        self._marks = [Marks(device) for _ in range(count)]
        for each in (*self._sheets, *self._marks):
            each.rehearse(stream)

    def take_sheet(self) -> Sheet | None:
        """Return an empty sheet; None where the device has not passed any of those in use."""
        return self._sheets.pop() if self._sheets else None

    def take_marks(self) -> Marks | None:
        """Return empty marks; None where the device has not passed any of those in use."""
        return self._marks.pop() if self._marks else None

    def give_back(self, marks: Marks) -> None:
        """Take a sheet or marks back whose events were all passed, and read as far as anybody wants."""
        marks.clear()
        if isinstance(marks, Sheet):
            self._sheets.append(marks)
        else:
            self._marks.append(marks)
