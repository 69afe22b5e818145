"""When transfers and computes overlap, and how much longer that makes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtrace.ledger.planning.contention import SLOWDOWN, Busy, Contention, beside
from swtrace.trace.identity import BROADCAST, PULL

INTERVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12)
"""Begins and lengths."""


@given(INTERVALS, st.integers(0, 80), st.integers(0, 40))
def test_busy_time_counts_once(intervals: list[tuple[int, int]], since: int, length: int) -> None:
    """However intervals overlap, a stretch is as busy as the instants in it that some interval covers."""
    spans = np.array([(begin, begin + size) for begin, size in intervals], float).reshape(-1, 2)
    busy = Busy([spans])
    covered = {instant for begin, size in intervals for instant in range(begin, begin + size)}

    found = busy.within(np.full((1, 1), float(since)), np.full((1, 1), float(since + length)))

    assert found[0, 0] == pytest.approx(len(covered & set(range(since, since + length))))


@given(INTERVALS.filter(bool))
def test_what_is_under_way_beside_a_transfer_is_counted_at_every_instant(intervals: list[tuple[int, int]]) -> None:
    """The mean over the transfer's instants of how many others cover them."""
    start = np.array([[begin for begin, _ in intervals]], float)
    ready = start + np.array([[length for _, length in intervals]], float)

    found = beside(start, ready)[0]

    for number, (begin, length) in enumerate(intervals):
        others = [
            sum(b <= instant < b + size for index, (b, size) in enumerate(intervals) if index != number)
            for instant in range(begin, begin + length)
        ]
        assert found[number] == pytest.approx(np.mean(others))


def test_the_deliveries_of_one_broadcast_are_one_transfer() -> None:
    """They share the sender's time already; owners receive nothing, and what they completed does not count."""
    start = np.array([[np.nan, 10.0], [0.0, 10.0], [2.0, np.nan]])
    ready = np.array([[50.0, 14.0], [8.0, 12.0], [12.0, 50.0]])

    assert beside(start, ready) == pytest.approx(np.array([[0.0, 0.5], [0.0, 1.0], [0.2, 0.0]]))


def test_one_transfer_at_a_time_has_none_beside_it() -> None:
    """Neither has a step without any."""
    start = np.array([[0.0, 10.0, 30.0]])

    assert not beside(start, start + 10).any()
    assert not beside(np.full((2, 3), np.nan), np.full((2, 3), np.nan)).any()


def test_what_slows_a_transfer_down_multiplies() -> None:
    """Beside compute it takes twice as long, half of that time beside it 4/3 times; each other one adds a half."""
    contention = Contention(np.zeros(2), slowdown=1.0, crowding=0.5)

    assert contention.stretch(np.array([0.0, 0.5, 1.0]), np.zeros(3)) == pytest.approx([1.0, 4 / 3, 2.0])
    assert contention.stretch(np.array([0.0, 1.0]), np.array([2.0, 1.0])) == pytest.approx([2.0, 3.0])


def test_a_copy_on_a_host_waits_for_more_than_the_compute_that_it_delays() -> None:
    """On a device it does not, nor does a broadcast."""
    compute = np.array([0.1, 0.3])

    def slowdown(family: str, *, on_device: bool = False) -> float:
        return Contention.like(compute, family, on_device=on_device).slowdown

    assert slowdown(BROADCAST) == slowdown(PULL, on_device=True) == pytest.approx(0.2)
    assert slowdown(PULL) == pytest.approx(0.2 + SLOWDOWN[PULL])


def test_a_stream_of_a_device_carries_one_transfer_at_a_time() -> None:
    """So nothing there needs a second replay if nothing slows computes down."""
    assert not Contention.like(np.zeros(2), BROADCAST, on_device=True).any
    assert Contention.like(np.zeros(2), BROADCAST, on_device=False).any
