"""The map between two clocks that drift apart, against clocks whose truth is known."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtrace.series.device.anchors import Renewals
from swtrace.trace import clock_map
from swtrace.trace.clock_map import ClockMap

EPOCH_NS = 1_790_000_000_000_000_000
"""Where a device's clock may stand: too large for a float to count single ns."""
BOOT_NS = 20_000_000_000_000_001
"""And the host's, after 231 days."""
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Clocks:
    """A host's clock that gains ``middle +- swing`` on the device's, swinging slowly."""

    middle: float
    swing: float
    period_s: float

    def host_ns(self, since_ns: int) -> int:
        """Return the host's time when the device's shows ``since_ns`` more than at the start."""
        turn = 2 * math.pi / self.period_s
        since_s = since_ns / 1e9
        gained_s = self.middle * since_s + self.swing / turn * (1 - math.cos(turn * since_s))
        return BOOT_NS + since_ns + round(gained_s * 1e9)


@st.composite
def clocks(draw: st.DrawFn) -> Clocks:
    """Clocks with a drift of 10 to 100 us per second, of either sign, that wanders no faster than the map allows."""
    low = draw(st.floats(10e-6, 100e-6))
    high = draw(st.floats(low, 100e-6))
    swing = (high - low) / 2
    fastest = 2 * math.pi * swing / (clock_map.WANDER * 1e9)
    period_s = max(1.0, fastest * draw(st.floats(1.0, 20.0)))
    return Clocks(draw(st.sampled_from([-1, 1])) * (low + high) / 2, swing, period_s)


def worst_error_ns(clocks_map: ClockMap, truth: Clocks, since_ns: int, until_ns: int) -> int:
    return max(
        abs(clocks_map.there(EPOCH_NS + at_ns) - truth.host_ns(at_ns))
        for at_ns in range(since_ns, until_ns + 1, max(1, (until_ns - since_ns) // 7))
    )


@settings(max_examples=150)
@given(truth=clocks(), seed=st.integers(0, 2**32), disturbed=st.sampled_from([0.0, 0.1, 0.5]))
def test_the_map_stays_within_five_microseconds(truth: Clocks, seed: int, disturbed: float) -> None:
    """Anchors off by up to 1.5 us, some by up to 300 us and saying so, keep every instant within 5 us."""
    noise = random.Random(seed)  # noqa: S311 (repeatable, not secret)
    clocks_map, renewals = ClockMap(), Renewals()
    now_ns = settled_ns = 0
    last = False  # the disturbed ones come alone: between two good anchors lie 2.2 s at most
    for _ in range(80):
        last = not last and noise.random() < disturbed and clocks_map.ready
        error_ns = noise.randrange(10_000, 300_000) if last else noise.randrange(200, 1_500)
        off_ns = error_ns if last else noise.randint(-error_ns, error_ns)
        read_ns = truth.host_ns(now_ns) + off_ns
        clocks_map.add(EPOCH_NS + now_ns, read_ns - error_ns, read_ns + error_ns)
        renewals.taken(truth.host_ns(now_ns))
        next_ns = now_ns + renewals._due_ns - renewals._taken_ns
        next_ns += noise.randrange(SECOND_NS // 10) if next_ns - now_ns >= SECOND_NS else 0
        if now_ns > 6 * SECOND_NS:
            settled_ns += 1
            assert worst_error_ns(clocks_map, truth, now_ns, next_ns) < (5_000 if not last else 10_000)
        now_ns = next_ns
    assert settled_ns > 50
    assert clocks_map.passed_over == 0


@settings(max_examples=150)
@given(truth=clocks(), seed=st.integers(0, 2**32))
def test_the_bound_holds(truth: Clocks, seed: int) -> None:
    """For any honest anchors at any spacing, no instant of the next second is off by more than the bound."""
    noise = random.Random(seed)  # noqa: S311 (repeatable, not secret)
    clocks_map = ClockMap()
    now_ns = 0
    for _ in range(60):
        error_ns = int(10 ** noise.uniform(2, 5))
        read_ns = truth.host_ns(now_ns) + noise.randint(-error_ns, error_ns)
        clocks_map.add(EPOCH_NS + now_ns, read_ns - error_ns, read_ns + error_ns)
        assert worst_error_ns(clocks_map, truth, now_ns, now_ns + SECOND_NS) <= clocks_map.error_ns + 1
        now_ns += int(10 ** noise.uniform(6, 10))


@settings(max_examples=150)
@given(truth=clocks(), seed=st.integers(0, 2**32))
def test_the_bound_holds_at_earlier_instants(truth: Clocks, seed: int) -> None:
    """An instant between two anchors is off by no more than its bound, even if only the later anchor is precise."""
    noise = random.Random(seed)  # noqa: S311 (repeatable, not secret)
    clocks_map = ClockMap()
    now_ns = 0
    for _ in range(60):
        error_ns = int(10 ** noise.uniform(2, 5))
        read_ns = truth.host_ns(now_ns) + noise.randint(-error_ns, error_ns)
        clocks_map.add(EPOCH_NS + now_ns, read_ns - error_ns, read_ns + error_ns)
        earlier_ns = noise.randint(max(0, now_ns - 20 * SECOND_NS), now_ns)
        assert (
            worst_error_ns(clocks_map, truth, earlier_ns, earlier_ns) <= clocks_map.error_at(EPOCH_NS + earlier_ns) + 1
        )
        now_ns += int(10 ** noise.uniform(6, 10))


@pytest.mark.parametrize("lie_ns", [-400_000, -40_000, 40_000, 400_000])
def test_one_wrong_anchor_is_skipped(lie_ns: int) -> None:
    """An anchor that contradicts all others, and claims to be as good as they are, changes nothing; it is counted."""
    truth = Clocks(60e-6, 0, 1)
    clocks_map = ClockMap()
    for second in range(20):
        at_ns = second * SECOND_NS
        read_ns = truth.host_ns(at_ns) + (lie_ns if second in {9, 15} else 0)
        clocks_map.add(EPOCH_NS + at_ns, read_ns - 1_000, read_ns + 1_000)
        if second >= 5:
            assert worst_error_ns(clocks_map, truth, at_ns, at_ns + SECOND_NS) < 5_000
    assert clocks_map.passed_over == 2


def test_a_clock_that_was_set_is_believed_at_the_second_anchor() -> None:
    """After a jump, one anchor is skipped, the next one is used, and the map is right again."""
    truth = Clocks(30e-6, 0, 1)
    clocks_map = ClockMap()
    for second in range(20):
        at_ns = second * SECOND_NS
        jump_ns = 5_000_000 if second >= 10 else 0
        read_ns = truth.host_ns(at_ns) + jump_ns
        clocks_map.add(EPOCH_NS + at_ns, read_ns - 1_000, read_ns + 1_000)
        told_ns = clocks_map.there(EPOCH_NS + at_ns) - truth.host_ns(at_ns)
        assert abs(told_ns - (0 if second <= 10 else jump_ns)) <= 5_000, second
    assert clocks_map.passed_over == 1


def test_a_device_clock_that_goes_back_is_doubted_first() -> None:
    """Anchors out of order contradict: the first is skipped, and the second restarts the map."""
    clocks_map = ClockMap()
    clocks_map.add(1_000_000, 999_990, 1_000_010)
    clocks_map.add(900_000, 1_099_990, 1_100_010)
    assert clocks_map.there(1_000_000) == 1_000_000
    clocks_map.add(950_000, 1_149_990, 1_150_010)
    assert clocks_map.there(950_000) == 1_150_000
    assert clocks_map.passed_over == 1


def test_instants_between_anchors_are_interpolated() -> None:
    """An instant between two anchors is mapped by these two, not by later drift."""
    truth = Clocks(55e-6, 45e-6, 2 * math.pi * 45e-6 / (clock_map.WANDER * 1e9))
    clocks_map = ClockMap()
    for second in range(100, 114):
        read_ns = truth.host_ns(second * SECOND_NS)
        clocks_map.add(EPOCH_NS + second * SECOND_NS, read_ns - 100, read_ns + 100)
    assert worst_error_ns(clocks_map, truth, 100 * SECOND_NS, 114 * SECOND_NS) < 1_000


def test_whole_instants_lose_no_nanosecond() -> None:
    """Clocks that agree map without rounding, although both count more ns than a float can represent."""
    clocks_map = ClockMap()
    for second in range(4):
        read_ns = BOOT_NS + second * SECOND_NS
        clocks_map.add(EPOCH_NS + 1 + second * SECOND_NS, read_ns, read_ns)
    later = [0, 1, 2, 3, 10**10, 10**10 + 1, 10**10 + 2]
    assert [clocks_map.there(EPOCH_NS + 1 + ns) - BOOT_NS for ns in later] == later


def test_without_an_anchor_nothing_is_mapped() -> None:
    """An empty map is not ready, and refuses to map."""
    clocks_map = ClockMap()
    assert not clocks_map.ready
    with pytest.raises(ValueError, match="no anchor"):
        clocks_map.there(1)
    with pytest.raises(ValueError, match="no anchor"):
        _ = clocks_map.error_ns
