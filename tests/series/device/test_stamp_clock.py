"""Host time of stamps: a simulated device answers the host's questions."""

from __future__ import annotations

import pytest

from swtrace.series.device import stamp_clock
from swtrace.series.device.stamp_clock import StampClock, Words
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_stamps import ANSWER_NS, SimulatedCorrespondent
from tests.support.device.simulated_work import DeviceClock

SECOND_NS = 1_000_000_000


class DeafCorrespondent:
    """A device whose kernel has given up by the time it is asked: every answer is there at once, and says so."""

    tick_ns = 1

    def __init__(self) -> None:
        self.question: Words = [0]
        self.answers: Words = [-1] * stamp_clock.EXCHANGES

    def listen(self) -> bool:
        """Give up at once."""
        return True


class BusyCorrespondent(DeafCorrespondent):
    """A device that cannot listen now."""

    def listen(self) -> bool:
        """Refuse."""
        return False


@pytest.mark.parametrize("tick_ns", [1, 32, 1_024])
@pytest.mark.parametrize("drift_ppb", [10_000, 100_000, -100_000])
def test_stamps_are_mapped_within_five_microseconds(tick_ns: int, drift_ppb: int) -> None:
    """For a minute, with the coarsest clocks that are known, no stamp is off by 5 us or by more than said."""
    device = SimulatedDevice(clock=DeviceClock(drift_ppb=drift_ppb, tick_ns=tick_ns))
    clock = StampClock(SimulatedCorrespondent(device), device.host_ns)
    worst_ns = 0
    for _ in range(3_000):
        clock.renew_if_due(device.host_ns())
        true_ns = device.host_ns()
        worst_ns = max(worst_ns, abs(clock.to_host(device.clock.at(true_ns)) - true_ns))
        device.host.advance(20_000_000)
    assert worst_ns < 5_000
    assert worst_ns <= clock.error_ns < 8_000
    assert clock.passed_over == 0


class LopsidedCorrespondent(SimulatedCorrespondent):
    """A device that reads its clock at any instant between the question and the host's sight of the answer."""

    def __init__(self, device: SimulatedDevice, after_ns: int) -> None:
        super().__init__(device)
        self._after_ns = after_ns

    def asked(self, number: int) -> None:
        """Read the clock after some time; let the answer be seen when it always is."""
        now_ns = self._device.host.now_ns
        self._told.setdefault(number - 1, (now_ns + ANSWER_NS, self._device.clock.at(now_ns + self._after_ns)))


@pytest.mark.parametrize("tick_ns", [1, 1_024])
@pytest.mark.parametrize("after_ns", [0, ANSWER_NS // 2, ANSWER_NS])
def test_an_exchange_bounds_the_instant(tick_ns: int, after_ns: int) -> None:
    """A new anchor's bound is half an exchange and half a tick, wherever in the exchange the device read its clock."""
    device = SimulatedDevice(clock=DeviceClock(drift_ppb=0, tick_ns=tick_ns))
    for _ in range(40):
        device.host.advance(33)
        clock = StampClock(LopsidedCorrespondent(device, after_ns), device.host_ns)
        assert clock.renew()
        newest = clock._map._newest()
        assert (ANSWER_NS + tick_ns) // 2 <= newest.error_ns <= ANSWER_NS + tick_ns // 2
        assert abs(newest.there_ns + device.clock.origin_ns - newest.at_ns - tick_ns // 2) <= newest.error_ns


def test_a_device_that_does_not_answer_is_given_up() -> None:
    """Without an answer the host stops asking within its patience, and the clock is not ready."""
    device = SimulatedDevice()
    correspondent = SimulatedCorrespondent(device)
    correspondent.mute = True
    clock = StampClock(correspondent, device.host_ns)
    before_ns = device.host_ns()
    assert not clock.renew()
    assert device.host_ns() - before_ns < 2 * stamp_clock.PATIENCE_NS
    assert not clock.ready
    with pytest.raises(ValueError, match="no anchor"):
        clock.to_host(1)
    correspondent.mute = False
    device.host.advance(SECOND_NS)
    clock.renew_if_due(device.host_ns())
    assert clock.ready


@pytest.mark.parametrize("correspondent", [DeafCorrespondent(), BusyCorrespondent()])
def test_no_answer_is_invented(correspondent: DeafCorrespondent) -> None:
    """A kernel that gave up, or could not be launched, leaves no anchor."""
    clock = StampClock(correspondent)
    assert not clock.renew()
    assert not clock.ready


def test_the_kernel_is_released_when_the_host_has_seen_enough() -> None:
    """The last question is asked in any case, so that the kernel does not wait for it."""
    correspondent = DeafCorrespondent()
    StampClock(correspondent).renew()
    assert correspondent.question[0] == stamp_clock.EXCHANGES
