"""Durations, sizes and shares as people read them."""

from __future__ import annotations

import pytest

from swtrace import units


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
