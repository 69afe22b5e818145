"""The instant of a change of level is found, and noise has none."""

from __future__ import annotations

import numpy as np
import pytest

from swtrace.ledger.change import since


@pytest.mark.parametrize("begin", [10, 100, 190])
def test_a_rise_is_found_where_it_begins(begin: int) -> None:
    """A level that rises by five standard deviations is found within two values."""
    values = np.random.default_rng(begin).normal(1.0, 0.1, 200)
    values[begin:] += 0.5
    found = since(values)
    assert found is not None
    assert abs(found - begin) <= 2


def test_the_last_of_several_rises_counts() -> None:
    """The present level began with the last rise."""
    values = np.random.default_rng(3).normal(1.0, 0.05, 300)
    values[100:] += 1.0
    values[250:] += 2.0
    assert since(values) == 250


@pytest.mark.parametrize("seed", range(20))
def test_noise_has_no_change(seed: int) -> None:
    """Without a change, none is found; a single value far off is none."""
    values = np.random.default_rng(seed).normal(1.0, 0.3, 200)
    values[seed * 9] = 50.0
    assert since(values) is None


def test_a_fall_is_no_rise() -> None:
    """What got better did not begin."""
    assert since([3.0] * 50 + [1.0] * 50) is None
    assert since([]) is None
