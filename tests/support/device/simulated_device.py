"""A device in virtual time: streams, events and graphs as CUDA has them, exact to the nanosecond.

It has the shape of :class:`swtrace.series.device.accelerator.Device`. One thread drives it. True time is the
host's CLOCK_MONOTONIC; it moves only while the host is made to do something else, and by
``call_ns`` with each call into the device. Work that the host enqueues at instant *t* runs

    from ``max(t, end of the work before it on its stream, ends of what its stream was told to wait for)``

for its own duration. Nothing else orders work: what a program forgot to order runs at once. The effects of work
(bytes that are written, bytes that are read, time stamps) are carried out in the order of their instants **on
the device**, whatever the order of the calls was; so a weight that is read too early, or overwritten too early,
is really read wrong.

The device's own clock has another origin than the host's, drifts, and may tick coarsely: events and stamps show
that clock and nothing else. Where CUDA would refuse a call, or let a capture die of it, so does this device.
"""

from __future__ import annotations

import heapq
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swtrace.series.device.accelerator import COUNTER_RANGE
from tests.support.device.simulated_work import DeviceClock, Duration, Effect, Launch, Session, SimulatedGraph, Work

if TYPE_CHECKING:
    from tests.support.device.simulated_stamps import SimulatedStamps

HOST_START_NS = 50_000_000_000
"""Where the host's clock begins."""
COARSE_EVENT_NS = 500
"""Resolution of events, where they are as coarse as CUDA's."""


class HostClock:
    """The host's CLOCK_MONOTONIC, which is true time."""

    def __init__(self) -> None:
        self.now_ns = HOST_START_NS

    def advance(self, ns: int) -> None:
        """Let the host do something else for a while."""
        self.now_ns += ns


class SimulatedEvent:
    """A point in a stream's work."""

    def __init__(self, device: SimulatedDevice, *, timed: bool) -> None:
        self._device = device
        self._timed = timed
        self.marker: Work | None = None
        """Of the last record, unless that was captured."""
        self.session: Session | None = None
        """The capture that the last record went into."""
        self.captured: tuple[Work, ...] = ()
        """What the stream's further work would have come after, in that capture."""

    def record(self, stream: SimulatedStream) -> None:
        """Put the point behind all work that ``stream`` was given so far; the point before is forgotten."""
        device = self._device
        device.called("record")
        if self._timed and self.marker is not None and not self.marker.done(device.host.now_ns):
            device.lost_instants += 1
        self.session = stream.session
        if stream.session is not None:
            self.captured, self.marker = stream.tail(), None
        else:
            self.marker = device.enqueue(stream, Work(device.host.now_ns, stream.tail(), 0))

    def query(self) -> bool:
        """Whether the point has been passed."""
        self._device.called("query")
        self._device.refuse_in_capture("an event query")
        if self.session is not None:
            raise RuntimeError("event query: the event was last recorded in a capture")
        return self.marker is None or self.marker.done(self._device.host.now_ns)

    def elapsed_time(self, end: SimulatedEvent) -> float:
        """Return the device's time from this point to ``end``, in ms."""
        device = self._device
        device.called("elapsed_time")
        device.refuse_in_capture("an event's elapsed time")
        if not (self._timed and end._timed):
            raise ValueError("both events must be made for timing")
        if self.session is not None or end.session is not None:
            raise RuntimeError("elapsed time: an event was last recorded in a capture")
        if self.marker is None or end.marker is None:
            raise ValueError("both events must be recorded before the time between them can be told")
        return device.milliseconds(self.marker, end.marker)


class SimulatedStream:
    """Work in order."""

    def __init__(self, device: SimulatedDevice, name: str) -> None:
        self.name = name
        self._device = device
        self.session: Session | None = None
        """The capture that the stream takes part in."""
        self.last: tuple[Work, ...] = ()
        """The last work, if there was any; while capturing, the last captured work."""
        self.waits: tuple[Work, ...] = ()
        """What further work was told to come after."""

    def tail(self) -> tuple[Work, ...]:
        """Return what further work comes after."""
        return self.last + self.waits

    def wait_event(self, event: SimulatedEvent) -> None:
        """Let further work come after ``event``, as it was recorded last. Never recorded, it stops nothing."""
        self._device.called("wait_event")
        if event.session is not None:
            if event.session is not self._device.session:
                raise RuntimeError("wait for an event of a capture that is over")
            if self.session is None:
                self._device.join(self)
            self.waits += event.captured
        elif event.marker is not None:
            if self.session is not None:
                raise self._device.spoil("wait in a capture for an event that was recorded outside of it")
            self.waits += (event.marker,)

    def record_event(self, event: SimulatedEvent) -> SimulatedEvent:
        """Record ``event`` behind all work so far, as ``torch.cuda.Stream`` does."""
        event.record(self)
        return event

    def wait_stream(self, stream: SimulatedStream) -> None:
        """Let further work come after all that ``stream`` was given so far."""
        self.wait_event(stream.record_event(SimulatedEvent(self._device, timed=False)))

    def hang(self) -> Work:
        """Enqueue work that does not end before :meth:`SimulatedDevice.release`."""
        return self._device.enqueue(self, Work(self._device.host.now_ns, self.tail(), None))


class SimulatedCounter:
    """A number in host memory that work on the device changes."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self._shown = 0

    def show(self, number: int) -> None:
        """Store the number once the current stream has run what it was given so far."""
        device = self._device
        device.called("show")
        stream = device.current_stream()

        def store(_true_ns: int) -> None:
            self._shown = number % COUNTER_RANGE

        device.enqueue(stream, Work(device.host.now_ns, stream.tail(), 0, None, store))

    def shown(self) -> int:
        """Return what was stored last, as far as the device's effects were carried out."""
        return self._shown


class SimulatedDevice:
    """Streams, events, graphs and a clock."""

    def __init__(
        self,
        *,
        clock: DeviceClock | None = None,
        call_ns: int = 1_000,
        exact_events: bool = True,
        name: str = "simulated:0",
    ) -> None:
        """Begin with one stream and nothing on it.

        Args:
            clock: the device's own.
            call_ns: what each call into the device costs the host.
            exact_events: whether events show time to the ns; otherwise to 0.5 us, and in float32 as CUDA's do.
            name: as the device calls itself.
        """
        self.name = name
        self.host = HostClock()
        self.clock = clock or DeviceClock()
        self.calls: Counter[str] = Counter()
        self.session: Session | None = None
        """The capture under way. There is one at a time, and it is as strict as CUDA's default (global) mode."""
        self.lost_instants = 0
        """Timed events that were recorded again before they were passed, so their times were never read."""
        self._joined: list[tuple[SimulatedStream, tuple[Work, ...], tuple[Work, ...]]] = []
        self._call_ns = call_ns
        self._exact_events = exact_events
        self._default = SimulatedStream(self, "default")
        self._streams = [self._default]
        self._current = [self._default]
        self._effects: list[tuple[int, int, Effect]] = []
        self._order = 0
        """Effects so far: of two at one instant, the one whose work was enqueued first comes first."""
        self._unsettled: list[Work] = []

    # ---- what the program under test may call -------------------------------------------------

    def host_ns(self) -> int:
        """Return the host's CLOCK_MONOTONIC."""
        return self.host.now_ns

    def current_stream(self) -> SimulatedStream:
        """Return the stream that the caller's work goes into."""
        return self._current[-1]

    def prefetch_stream(self) -> SimulatedStream:
        """Return a new stream. Priorities mean nothing here: there is always room for one more work."""
        return self.stream(f"prefetch {len(self._streams)}")

    @contextmanager
    def on(self, stream: SimulatedStream) -> Iterator[None]:
        """Make ``stream`` the current one, for a while."""
        self._current.append(stream)
        try:
            yield
        finally:
            self._current.pop()

    def event(self, *, timed: bool) -> SimulatedEvent:
        """Return a new event."""
        self.calls["event"] += 1
        return SimulatedEvent(self, timed=timed)

    def capturing(self) -> bool:
        """Return whether the current stream's work is being captured."""
        return self.current_stream().session is not None

    def hold(self, tensor: object, stream: SimulatedStream) -> None:
        """Record that ``stream`` uses a tensor's memory. Nothing frees memory here."""

    def counter(self) -> SimulatedCounter:
        """Return a counter that shows 0."""
        return SimulatedCounter(self)

    def stamps(self, slots: int) -> SimulatedStamps:
        """Return what times captured work."""
        from tests.support.device.simulated_stamps import SimulatedStamps  # it stands on this module

        return SimulatedStamps(self, slots)

    # ---- work ---------------------------------------------------------------------------------

    def stream(self, name: str) -> SimulatedStream:
        """Return a new stream."""
        self._streams.append(SimulatedStream(self, name))
        return self._streams[-1]

    def compute(self, duration: Duration, *, at_start: Effect | None = None, at_end: Effect | None = None) -> Work:
        """Enqueue work on the current stream."""
        self.called("compute")
        stream = self.current_stream()
        return self.enqueue(stream, Work(self.host.now_ns, stream.tail(), duration, at_start, at_end))

    def enqueue(self, stream: SimulatedStream, work: Work) -> Work:
        """Append ``work`` to a stream, or to the graph that it is being captured into."""
        stream.last, stream.waits = (work,), ()
        if stream.session is not None:
            stream.session.nodes.append(work)
        elif not self._settle(work):
            self._unsettled.append(work)
        if len(self._effects) > 1 and self._effects[0][0] < self.host.now_ns:
            self.catch_up()
        return work

    def release(self, work: Work) -> None:
        """Let a work without an end finish now, or when its turn comes."""
        now_ns, started_ns = self.host.now_ns, work.start_ns
        work.duration = 0 if started_ns is None else max(0, now_ns - started_ns)
        self._unsettled = [unsettled for unsettled in self._unsettled if not self._settle(unsettled)]

    def catch_up(self) -> None:
        """Carry out every effect that is in the past; no work that is still to come can be before them."""
        now_ns = self.host.now_ns
        while self._effects and self._effects[0][0] < now_ns:
            instant_ns, _, effect = heapq.heappop(self._effects)
            effect(instant_ns)

    def synchronise(self) -> None:
        """Block the host until all work has ended. For tests: nothing under test may do so."""
        self.called("synchronise")
        self.refuse_in_capture("a synchronisation")
        if self._unsettled:
            raise RuntimeError("the host would wait forever: work does not end")
        ends = [work.end_ns for stream in self._streams for work in stream.tail() if work.end_ns is not None]
        self.host.now_ns = max([self.host.now_ns, *ends]) + 1
        self.catch_up()

    def wait_for_computes(self) -> None:
        """Block the host until all work of the current stream has ended. For tests."""
        last = self.compute(0)
        if last.end_ns is None:
            raise RuntimeError("the host would wait forever: work does not end")
        self.host.now_ns = max(self.host.now_ns, last.end_ns)
        self.catch_up()

    def _settle(self, work: Work) -> bool:
        for instant_ns, effect in work.settle() or ():
            self._order += 1
            heapq.heappush(self._effects, (instant_ns, self._order, effect))
        return work.end_ns is not None

    # ---- graphs -------------------------------------------------------------------------------

    @contextmanager
    def capture(self, graph: SimulatedGraph) -> Iterator[None]:
        """Capture the block's work into ``graph``, on a stream of its own, as ``torch.cuda.graph`` does."""
        if self.session is not None:
            raise RuntimeError("a capture is under way already")
        self.session = session = Session()
        origin = self.stream("capture")
        self.join(origin)
        try:
            with self.on(origin):
                yield
            if session.broken:
                raise RuntimeError(f"the capture was spoiled: {session.broken}")
            leftover = session.leftover(origin.tail())
            if leftover:
                raise RuntimeError(f"{leftover} captured works are not joined to the stream that the capture began on")
            graph.finish(session)
        finally:
            self.session = None
            for stream, last, waits in self._joined:
                stream.session, stream.last, stream.waits = None, last, waits
            self._joined.clear()
            self._streams.remove(origin)

    def replay(self, graph: SimulatedGraph) -> Work:
        """Launch a graph on the current stream: what follows there comes after all of the graph's work."""
        self.called("replay")
        stream = self.current_stream()
        if stream.session is not None or not graph.ready:
            raise RuntimeError("the graph cannot be launched: it is not captured, or a capture is under way")
        graph.launches += 1
        return self.enqueue(stream, Launch(self.host.now_ns, stream.tail(), graph))

    def join(self, stream: SimulatedStream) -> None:
        """Let a stream take part in the capture under way. What it ran before does not belong to it."""
        self._joined.append((stream, stream.last, stream.waits))
        stream.session, stream.last, stream.waits = self.session, (), ()

    def refuse_in_capture(self, what: str) -> None:
        """Raise while anything is being captured, and spoil that capture: CUDA's global mode."""
        if self.session is not None:
            raise self.spoil(f"{what} is not permitted while a stream is capturing")

    def spoil(self, why: str) -> RuntimeError:
        """Let the capture under way end in an error; return the one to raise now."""
        if self.session is not None:
            self.session.broken = self.session.broken or why
        return RuntimeError(why)

    # ---- time ---------------------------------------------------------------------------------

    def called(self, name: str) -> None:
        """Count a call, and let the host pay for it."""
        self.calls[name] += 1
        self.host.now_ns += self._call_ns

    def milliseconds(self, begin: Work, end: Work) -> float:
        """Return the device's time between the ends of two finished works, as shown by events."""
        now_ns = self.host.now_ns
        if begin.end_ns is None or end.end_ns is None or max(begin.end_ns, end.end_ns) > now_ns:
            raise RuntimeError("device not ready")
        begin_ns, end_ns = self.clock.at(begin.end_ns), self.clock.at(end.end_ns)
        if self._exact_events:
            return (end_ns - begin_ns) / 1e6
        coarse_ns = end_ns // COARSE_EVENT_NS * COARSE_EVENT_NS - begin_ns // COARSE_EVENT_NS * COARSE_EVENT_NS
        told: float = struct.unpack("f", struct.pack("f", coarse_ns / 1e6))[0]
        return told
