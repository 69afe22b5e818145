"""The simulated device itself: where it were wrong, tests on it would prove nothing."""

from __future__ import annotations

import pytest

from tests.support.device.simulated_device import SimulatedDevice, SimulatedEvent, SimulatedStream
from tests.support.device.simulated_stamps import ANSWER_NS, SimulatedStamps
from tests.support.device.simulated_work import DeviceClock, Effect, SimulatedGraph, Work

CALL = 1_000


@pytest.fixture
def device() -> SimulatedDevice:
    """Return a device whose clock shows true time, so that instants can be read off."""
    return SimulatedDevice(clock=DeviceClock(0, 0), call_ns=CALL)


def instants(work: Work) -> tuple[int | None, int | None]:
    return work.start_ns, work.end_ns


class Log:
    """What happened on the device, in the order in which it did."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int]] = []

    def note(self, what: str) -> Effect:
        """Return an effect that enters ``what`` and its instant."""
        return lambda true_ns: self.entries.append((what, true_ns))

    @property
    def order(self) -> list[str]:
        """Return what happened, without the instants."""
        return [what for what, _ in self.entries]


def recorded(device: SimulatedDevice, stream: SimulatedStream) -> SimulatedEvent:
    event = device.event(timed=True)
    event.record(stream)
    return event


# ---- streams --------------------------------------------------------------------------------------


def test_a_stream_runs_its_work_in_order_and_not_before_it_was_enqueued(device: SimulatedDevice) -> None:
    """Work starts at its call, or at the end of the work before it, whichever is later."""
    begin = device.host.now_ns
    first, second = device.compute(5_000), device.compute(100)
    device.host.advance(50_000)
    third = device.compute(7)
    assert instants(first) == (begin + CALL, begin + CALL + 5_000)
    assert instants(second) == (begin + CALL + 5_000, begin + CALL + 5_100)
    assert instants(third) == (begin + 3 * CALL + 50_000, begin + 3 * CALL + 50_007)


def test_streams_run_beside_each_other_unless_an_event_orders_them(device: SimulatedDevice) -> None:
    """Without a wait, two streams' work overlaps; behind a wait for an event it does not."""
    side = device.prefetch_stream()
    long = device.compute(1_000_000)
    with device.on(side):
        beside = device.compute(10)
    side.wait_event(recorded(device, device.current_stream()))
    with device.on(side):
        behind = device.compute(10)
    assert beside.end_ns is not None
    assert long.end_ns is not None
    assert beside.end_ns < long.end_ns == behind.start_ns


def test_a_wait_is_for_the_event_as_it_was_recorded_at_the_call(device: SimulatedDevice) -> None:
    """A later record of the same event moves neither the wait nor, of course, the work behind it."""
    side = device.prefetch_stream()
    first = device.compute(10_000)
    event = recorded(device, device.current_stream())
    side.wait_event(event)
    device.compute(10_000_000)
    event.record(device.current_stream())
    with device.on(side):
        behind = device.compute(10)
    assert behind.start_ns == first.end_ns


def test_a_wait_for_an_event_that_was_never_recorded_stops_nothing(device: SimulatedDevice) -> None:
    """As in CUDA, where it is a fault that shows only as a stale read."""
    device.compute(1_000_000)
    side = device.prefetch_stream()
    side.wait_event(device.event(timed=False))
    with device.on(side):
        work = device.compute(1)
    assert work.start_ns == device.host.now_ns


def test_effects_happen_in_the_order_of_the_device_not_of_the_calls(device: SimulatedDevice) -> None:
    """What is called first and ends last, takes effect last; and nothing takes effect before its instant."""
    log = Log()
    side = device.prefetch_stream()
    device.compute(90_000, at_start=log.note("long begins"), at_end=log.note("long ends"))
    with device.on(side):
        device.compute(10_000, at_end=log.note("short ends"))
    device.catch_up()
    assert log.order == ["long begins"]
    device.host.advance(20_000)
    device.catch_up()
    assert log.order == ["long begins", "short ends"]
    device.synchronise()
    assert log.order == ["long begins", "short ends", "long ends"]
    assert [at for _, at in log.entries] == sorted(at for _, at in log.entries)


def test_a_reader_that_nothing_orders_reads_what_is_there(device: SimulatedDevice) -> None:
    """Bytes that are under way are not there yet: a read without a wait is stale, one with it is not."""
    memory = bytearray(b"old")
    seen: list[bytes] = []

    def arrive(_true_ns: int) -> None:
        memory[:] = b"new"

    def read(_true_ns: int) -> None:
        seen.append(bytes(memory))

    side = device.prefetch_stream()
    with device.on(side):
        device.compute(5_000, at_end=arrive)
    device.compute(1, at_start=read)
    device.current_stream().wait_event(recorded(device, side))
    device.compute(1, at_start=read)
    device.synchronise()
    assert seen == [b"old", b"new"]


# ---- events ---------------------------------------------------------------------------------------


def test_an_event_is_passed_when_the_work_before_it_has_ended(device: SimulatedDevice) -> None:
    """A query asks for the last record only, and does not wait."""
    event = device.event(timed=False)
    assert event.query(), "never recorded, an event answers True"
    device.compute(10_000)
    event.record(device.current_stream())
    assert not event.query()
    device.host.advance(10_000)
    assert event.query()
    device.compute(10_000)
    event.record(device.current_stream())
    assert not event.query(), "recorded again, it must be passed again"


def test_elapsed_time_is_the_devices_and_signed() -> None:
    """Between two passed events: the difference on the device's drifting clock, whichever stream they are on."""
    device = SimulatedDevice(clock=DeviceClock(origin_ns=77, drift_ppb=100_000_000))
    side = device.prefetch_stream()
    begin = recorded(device, device.current_stream())
    device.compute(10_000_000)
    late = recorded(device, device.current_stream())
    early = recorded(device, side)
    device.synchronise()
    assert begin.elapsed_time(late) == pytest.approx(11.0, abs=0.01)
    assert late.elapsed_time(early) == -early.elapsed_time(late) < -10
    assert begin.marker is not None
    assert late.marker is not None
    assert begin.marker.end_ns is not None
    assert late.marker.end_ns is not None
    exact = device.clock.at(late.marker.end_ns) - device.clock.at(begin.marker.end_ns)
    assert round(begin.elapsed_time(late) * 1e6) == exact


def test_elapsed_time_is_refused_where_it_is_not_known(device: SimulatedDevice) -> None:
    """Never recorded: ValueError. Not passed: RuntimeError. Not made for timing: ValueError."""
    stream = device.current_stream()
    begin = recorded(device, stream)
    with pytest.raises(ValueError, match="must be recorded"):
        begin.elapsed_time(device.event(timed=True))
    device.compute(1_000_000)
    end = recorded(device, stream)
    with pytest.raises(RuntimeError, match="not ready"):
        begin.elapsed_time(end)
    device.synchronise()
    assert begin.elapsed_time(end) > 0
    plain = device.event(timed=False)
    plain.record(stream)
    with pytest.raises(ValueError, match="for timing"):
        begin.elapsed_time(plain)


def test_coarse_events_are_off_by_their_resolution_at_most() -> None:
    """Events as coarse as CUDA's: multiples of 0.5 us, in float32."""
    device = SimulatedDevice(exact_events=False)
    begin = recorded(device, device.current_stream())
    device.compute(1_234_567)
    end = recorded(device, device.current_stream())
    device.synchronise()
    told = begin.elapsed_time(end) * 1e6
    assert told == pytest.approx(1_234_567, abs=2_000 + 500)
    assert round(told) % 500 == 0


# ---- graphs ---------------------------------------------------------------------------------------


def test_captured_work_runs_at_each_replay_and_not_at_capture(device: SimulatedDevice) -> None:
    """Nothing happens while capturing; each replay does everything once, at instants of its own."""
    log = Log()
    graph = SimulatedGraph()
    assert not device.capturing()
    with device.capture(graph):
        assert device.capturing()
        device.compute(30, at_start=log.note("in"))
        device.compute(40, at_end=log.note("out"))
    device.synchronise()
    assert log.entries == []
    launches = [device.replay(graph) for _ in range(3)]
    behind = device.compute(1)
    device.synchronise()
    assert log.order == ["in", "out"] * 3
    begins = [at for what, at in log.entries if what == "in"]
    assert begins == [work.start_ns for work in launches]
    assert all(work.end_ns == begin + 70 for work, begin in zip(launches, begins, strict=True))
    assert behind.start_ns is not None
    assert behind.start_ns >= begins[-1] + 70


def test_dependencies_of_a_capture_hold_in_each_replay(device: SimulatedDevice) -> None:
    """A stream that joined by an event runs beside the origin, behind its fork, and is waited for at its join."""
    log = Log()
    graph = SimulatedGraph()
    side = device.prefetch_stream()
    fork, done = device.event(timed=False), device.event(timed=False)
    with device.capture(graph):
        origin = device.current_stream()
        device.compute(10, at_end=log.note("before the fork"))
        fork.record(origin)
        side.wait_event(fork)
        with device.on(side):
            assert device.capturing()
            device.compute(1_000, at_start=log.note("side begins"), at_end=log.note("side ends"))
        done.record(side)
        device.compute(100, at_end=log.note("beside"))
        origin.wait_event(done)
        device.compute(1, at_end=log.note("behind the join"))
    for _ in range(2):
        log.entries.clear()
        begin = device.replay(graph).start_ns
        device.synchronise()
        assert begin is not None
        assert [(what, at - begin) for what, at in log.entries] == [
            ("before the fork", 10),
            ("side begins", 10),
            ("beside", 110),
            ("side ends", 1_010),
            ("behind the join", 1_011),
        ]


def test_durations_may_change_from_replay_to_replay(device: SimulatedDevice) -> None:
    """A duration that is a function is asked at each replay, and what comes after moves with it."""
    durations = iter([5, 50])
    graph = SimulatedGraph()
    log = Log()
    with device.capture(graph):
        device.compute(lambda: next(durations))
        device.compute(1, at_end=log.note("end"))
    begins = [device.replay(graph).start_ns for _ in range(2)]
    device.synchronise()
    assert [at - (begin or 0) for (_, at), begin in zip(log.entries, begins, strict=True)] == [6, 51]


def test_a_stream_that_is_not_joined_spoils_the_capture(device: SimulatedDevice) -> None:
    """Work on a forked stream that the origin does not wait for is an error at the capture's end."""
    side = device.prefetch_stream()
    graph = SimulatedGraph()
    event = device.event(timed=False)
    with pytest.raises(RuntimeError, match="1 captured works are not j"), device.capture(graph):  # noqa: PT012 - at its end
        event.record(device.current_stream())
        side.wait_event(event)
        with device.on(side):
            device.compute(1)
    with pytest.raises(RuntimeError, match="cannot be launched"):
        device.replay(graph)
    with device.on(side):
        assert not device.capturing(), "the stream is free again"


def test_an_event_cannot_cross_a_captures_border(device: SimulatedDevice) -> None:
    """Recorded inside, it can be neither asked nor waited for outside; recorded outside, not waited for inside."""
    inside, outside = device.event(timed=True), recorded(device, device.current_stream())
    graph = SimulatedGraph()
    with device.capture(graph):
        device.compute(1)
        inside.record(device.current_stream())
    device.replay(graph)
    device.synchronise()
    for forbidden in (inside.query, lambda: inside.elapsed_time(outside), lambda: outside.elapsed_time(inside)):
        with pytest.raises(RuntimeError, match="last recorded in a capture"):
            forbidden()
    with pytest.raises(RuntimeError, match="capture that is over"):
        device.current_stream().wait_event(inside)
    with pytest.raises(RuntimeError, match="was spoiled"), device.capture(graph):  # noqa: PT012 - dies at its end
        with pytest.raises(RuntimeError, match="recorded outside of it"):
            device.current_stream().wait_event(outside)
        device.compute(1)
    inside.record(device.current_stream())
    device.synchronise()
    assert inside.query(), "recorded eagerly, it is an event like any other"


@pytest.mark.parametrize("forbidden", ["query", "elapsed_time", "synchronise", "ship", "done", "renew"])
def test_what_only_eager_code_may_do_spoils_a_capture(device: SimulatedDevice, forbidden: str) -> None:
    """Any such call during a capture raises, and so does the capture's end, even if the call's error is swallowed."""
    stamps = SimulatedStamps(device, 1)
    shipment = stamps.ship()
    assert shipment is not None
    one, two = recorded(device, device.current_stream()), recorded(device, device.current_stream())
    device.synchronise()
    calls = {
        "query": one.query,
        "elapsed_time": lambda: one.elapsed_time(two),
        "synchronise": device.synchronise,
        "ship": stamps.ship,
        "done": shipment.done,
        "renew": stamps.clock.renew,
    }
    with pytest.raises(RuntimeError, match="was spoiled"), device.capture(SimulatedGraph()):  # noqa: PT012 - as above
        with pytest.raises(RuntimeError, match="not permitted while a stream is capturing"):
            calls[forbidden]()
        device.compute(1)


# ---- hostile schedules ----------------------------------------------------------------------------


def test_work_that_hangs_holds_what_comes_after_it_and_nothing_else(device: SimulatedDevice) -> None:
    """Behind it nothing happens, on another stream everything; once released, all goes on from that instant."""
    log = Log()
    side = device.prefetch_stream()
    hung = side.hang()
    held = recorded(device, side)
    device.current_stream().wait_event(held)
    behind = device.compute(10, at_end=log.note("behind"))
    other = device.prefetch_stream()
    with device.on(other):
        device.compute(10, at_end=log.note("other"))
    free = recorded(device, other)
    device.host.advance(1_000_000)
    assert not held.query()
    assert free.query(), "a later event on another stream is passed first"
    device.catch_up()
    assert log.order == ["other"]
    with pytest.raises(RuntimeError, match="forever"):
        device.synchronise()
    now = device.host.now_ns
    device.release(hung)
    assert hung.end_ns == now == behind.start_ns
    device.synchronise()
    assert log.order == ["other", "behind"]


def test_a_host_far_ahead_costs_the_device_nothing(device: SimulatedDevice) -> None:
    """A thousand calls later the device is still at the first: the host pays its calls and never waits."""
    begin = device.host.now_ns
    for _ in range(1_000):
        device.compute(1_000_000)
    assert device.host.now_ns - begin == 1_000 * CALL
    event = recorded(device, device.current_stream())
    assert not event.query()
    device.synchronise()
    assert event.query()
    assert device.host.now_ns - begin >= 1_000 * 1_000_000


# ---- stamps ---------------------------------------------------------------------------------------


def test_stamps_are_written_by_the_device_at_each_replay() -> None:
    """A shipped row holds the device's instants of the last replay, once it has arrived; unwritten slots are 0."""
    device = SimulatedDevice()
    stamps = SimulatedStamps(device, 3, rows=2)
    graph = SimulatedGraph()
    with device.capture(graph):
        stamps.stamp(0)
        device.compute(500_000)
        stamps.stamp(2)
    for _ in range(2):
        launch = device.replay(graph)
        shipment = stamps.ship()
        assert shipment is not None
        assert not shipment.done()
        with pytest.raises(RuntimeError, match="not arrived"):
            shipment.instants()
        device.host.advance(600_000)
        assert shipment.done()
        begin, nothing, end = shipment.instants()
        assert launch.start_ns is not None
        assert begin == device.clock.at(launch.start_ns)
        assert end == device.clock.at(launch.start_ns + 500_000)
        assert nothing == 0
        assert stamps.clock.renew()
        assert abs(stamps.clock.to_host(begin) - launch.start_ns) < ANSWER_NS
        shipment.release()
    ships = [stamps.ship() for _ in range(3)]
    assert ships[2] is None, "no row is left"
    device.synchronise()
    assert ships[1] is not None
    assert ships[1].instants() == [0, 0, 0], "a row is cleared when it was shipped"
