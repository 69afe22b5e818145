"""Durations, sizes and shares as people read them."""

from __future__ import annotations

import pytest

from swtrace import units
from swtrace.units import milliseconds


@pytest.mark.parametrize(("which", "text"), [([1], "rank 1"), ([1, 2], "ranks 1, 2"), (["a"], "rank a")])
def test_what_a_noun_refers_to_is_listed(which: list[object], text: str) -> None:
    """The noun is in the plural if it refers to several, and in the singular if it refers to one."""
    assert units.listed("rank", which) == text


@pytest.mark.parametrize(
    ("ranks", "text"),
    [((0, 1, 2, 3), "0-3"), ((0, 2), "0,2"), ((4, 5, 9, 11, 12), "4-5,9,11-12"), ((3, 2), "3,2"), ((7,), "7")],
)
def test_consecutive_numbers_are_a_range(ranks: tuple[int, ...], text: str) -> None:
    """Consecutive ranks are a range; the order of the group stays."""
    assert units.ranges(ranks) == text


def test_hosts_are_listed_with_their_ranks() -> None:
    """Each host is named with its ranks, up to eight hosts; the others are counted."""
    assert units.placed({"gpu-a": (0, 1, 4), "gpu-b": [2, 3]}) == "ranks 0-1,4 on gpu-a, 2-3 on gpu-b"
    assert units.placed({str(host): [host] for host in range(20)}).endswith("6 on 6, 7 on 7 and 12 more hosts")


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0"), (7_820, "7.82 us"), (99_999, "100 us"), (421_000, "0.42 ms"), (14_400_000, "14.4 ms"), (2e9, "2000 ms")],
)
def test_durations_have_three_digits(ns: float, text: str) -> None:
    """Sentences write durations with two or three significant digits."""
    assert milliseconds(ns) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.seconds(0.00000125), "1.25 us"),
        (units.seconds(0.0125), "12.5 ms"),
        (units.seconds(125.0), "125 s"),
        (units.seconds(None), "-"),
        (units.size(1023), "1023 B"),
        (units.size(1536), "1.50 KiB"),
        (units.size(1 << 50), "1024 TiB"),
        (units.bandwidth(1 << 30), "1.00 GiB/s"),
        (units.ratio(0.4567), "45.7 %"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(text: str, expected: str) -> None:
    """A figure shows what can be read at a glance, and its unit."""
    assert text == expected
