"""Host time of timing events, on a device in virtual time whose truth is known."""

from __future__ import annotations

import random

import pytest

from swtrace.series.device import event_clock
from swtrace.series.device.event_clock import EventClock
from tests.support.device.simulated_device import SimulatedDevice, SimulatedEvent, SimulatedStream
from tests.support.device.simulated_work import DeviceClock, SimulatedGraph

SECOND_NS = 1_000_000_000
STEP_NS = 20_000_000


class InterruptedDevice(SimulatedDevice):
    """A device whose host is interrupted in one call of eight, for up to 30 us."""

    def __init__(self, seed: int, clock: DeviceClock) -> None:
        super().__init__(clock=clock, call_ns=600, exact_events=False)
        self._noise = random.Random(seed)  # noqa: S311 (repeatable, not secret)

    def called(self, name: str) -> None:
        """Let some calls take longer."""
        super().called(name)
        if self._noise.random() < 1 / 8:
            self.host.advance(self._noise.randrange(30_000))


def private_stream(clock: EventClock) -> SimulatedStream:
    stream = clock._stream
    assert isinstance(stream, SimulatedStream)
    return stream


def passed_event(device: SimulatedDevice) -> tuple[SimulatedEvent, int]:
    """Return an event that was just passed, and the host's time when it was."""
    event = device.event(timed=True)
    event.record(device.current_stream())
    assert event.marker is not None
    assert event.marker.end_ns is not None
    return event, event.marker.end_ns


def run_steps(device: SimulatedDevice, clock: EventClock, seconds: float) -> list[int]:
    """Run short steps; return the mapping error of each one's event."""
    errors = []
    for _ in range(round(seconds * SECOND_NS / STEP_NS)):
        event, true_ns = passed_event(device)
        device.host.advance(STEP_NS)
        clock.renew_if_due(device.host_ns())
        errors.append(abs(clock.to_host(event) - true_ns))
    return errors


@pytest.mark.parametrize("drift_ppb", [10_000, 100_000, -100_000])
@pytest.mark.parametrize("seed", range(5))
def test_events_are_mapped_within_five_microseconds(seed: int, drift_ppb: int) -> None:
    """Coarse events, float32 ms and an interrupted host, for a minute: no event is off by 5 us or by more than said."""
    device = InterruptedDevice(seed, DeviceClock(drift_ppb=drift_ppb))
    clock = EventClock(device)
    assert clock.renew()
    errors = run_steps(device, clock, 60)
    assert max(errors) < 5_000
    assert max(errors[-100:]) <= clock.error_ns
    assert clock.error_ns < 8_000
    assert -clock._map.drift * 1e9 == pytest.approx(drift_ppb, abs=2_500)
    assert clock.passed_over == 0


def test_a_renewal_is_due_once_a_second() -> None:
    """While steps run, the launching thread pays for an anchor once a second, and for no more than a few calls then."""
    device = SimulatedDevice(call_ns=600)
    clock = EventClock(device)
    run_steps(device, clock, 10)
    before = device.calls["record"]
    steps = len(run_steps(device, clock, 20))
    anchors = device.calls["record"] - before - steps
    assert 19 <= anchors <= 21


def test_the_clock_makes_no_event_after_its_first_four() -> None:
    """Events are made when the clock is, and never again."""
    device = SimulatedDevice()
    clock = EventClock(device)
    made = device.calls["event"]
    for _ in range(50):
        device.host.advance(SECOND_NS)
        assert clock.renew()
    assert device.calls["event"] == made == 4
    assert device.calls["synchronise"] == 0


def test_the_best_of_several_tries_is_taken() -> None:
    """A host that is interrupted in most tries gets the same anchor as a quiet one, from the one good try."""

    class Unlucky(SimulatedDevice):
        def called(self, name: str) -> None:
            super().called(name)
            if name == "query" and self.calls["query"] != 11:
                self.host.advance(40_000)

    device = Unlucky(clock=DeviceClock(drift_ppb=0), call_ns=500)
    clock = EventClock(device)
    assert clock.renew()
    assert clock._map._newest().error_ns < 2_000
    assert device.calls["record"] == event_clock.TRIES


def test_before_the_first_anchor_nothing_is_mapped() -> None:
    """A clock without an anchor is not ready, and refuses to map."""
    device = SimulatedDevice()
    clock = EventClock(device)
    ready = [clock.ready]
    event, true_ns = passed_event(device)
    with pytest.raises(ValueError, match="not ready"):
        clock.to_host(event)
    assert clock.renew()
    assert [*ready, clock.ready] == [False, True]
    assert clock.to_host(event) == pytest.approx(true_ns, abs=5_000)


def test_no_anchor_is_taken_while_a_graph_is_captured() -> None:
    """In a capture the clock makes no call at all into the device, and the capture comes out whole."""
    device = SimulatedDevice()
    clock = EventClock(device)
    graph = SimulatedGraph()
    with device.capture(graph):
        before = device.calls.copy()
        device.host.advance(10 * SECOND_NS)
        assert not clock.renew()
        clock.renew_if_due(device.host_ns())
        assert device.calls == before
        device.compute(1_000)
    assert graph.ready
    assert clock.renew()


def test_a_stuck_device_is_given_up_soon() -> None:
    """Behind work without an end no anchor comes: each attempt ends within its patience, and never queues a second."""
    device = SimulatedDevice(call_ns=500)
    clock = EventClock(device)
    assert clock.renew()
    event, true_ns = passed_event(device)
    work = private_stream(clock).hang()
    for attempt in range(5):
        device.host.advance(SECOND_NS)
        records, before_ns = device.calls["record"], device.host_ns()
        clock.renew_if_due(before_ns)
        assert device.host_ns() - before_ns < 2 * event_clock.PATIENCE_NS
        assert device.calls["record"] - records == (1 if attempt == 0 else 0)
    assert clock.to_host(event) == pytest.approx(true_ns, abs=5_000), "the old anchor still serves"
    device.release(work)
    for _ in range(3):
        assert clock.renew()
        device.host.advance(SECOND_NS)
    event, true_ns = passed_event(device)
    assert clock.to_host(event) == pytest.approx(true_ns, abs=5_000)


def test_a_failed_attempt_is_not_repeated_at_every_step() -> None:
    """While the device is stuck, steps of 1 ms ask it 10 times a second at most."""
    device = SimulatedDevice(call_ns=500)
    clock = EventClock(device)
    for _ in range(10):
        assert clock.renew()
        device.host.advance(SECOND_NS)
    private_stream(clock).hang()
    clock.renew_if_due(device.host_ns())
    before = device.calls["query"]
    for _ in range(1_000):
        device.host.advance(1_000_000)
        clock.renew_if_due(device.host_ns())
    assert 5 <= device.calls["query"] - before <= 11


@pytest.mark.parametrize("pause_s", [5, 60, 3_600])
def test_events_before_and_after_a_pause_are_mapped_alike(pause_s: int) -> None:
    """An idle engine's last step is mapped by the anchor before the pause, its next by the one after."""
    device = SimulatedDevice(clock=DeviceClock(drift_ppb=70_000), call_ns=600, exact_events=False)
    clock = EventClock(device)
    run_steps(device, clock, 5)
    last, last_ns = passed_event(device)
    device.host.advance(pause_s * SECOND_NS)
    clock.renew_if_due(device.host_ns())
    assert clock.to_host(last) == pytest.approx(last_ns, abs=5_000)
    assert max(run_steps(device, clock, 10)) < 5_000
    assert clock.passed_over == 0
