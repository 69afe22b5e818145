"""The rank test agrees with counting, and raises no false alarm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from swtrace.recording.significance import compare


def test_the_rank_test_agrees_with_counting_all_arrangements() -> None:
    """For small samples without ties, the p-value is close to the exact one from enumeration."""
    chance = np.random.default_rng(5)
    for _ in range(5):
        values = chance.permutation(16).astype(float)
        a, b = values[:8], values[8:]
        statistic = abs(sum(y > x for x in a for y in b) - 32)
        ranks = np.argsort(np.argsort(values)) + 1
        counted = [
            abs(sum(ranks[list(chosen)]) - 36 - 32) >= statistic for chosen in itertools.combinations(range(16), 8)
        ]
        assert compare(a, b).p == pytest.approx(np.mean(counted), abs=0.02)
