"""Do two samples differ? The Mann-Whitney test. And by how much: the difference of medians, with its interval.

Neither assumes a distribution, and a single outlier moves neither. Many comparisons at once are
corrected by Holm's method.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_Float = npt.NDArray[np.float64]

FEWEST = 8
"""Observations below which the normal approximation says nothing."""
_RESAMPLED = 1000
_SEED = 20
"""Two people who compare the same recordings read the same interval."""


class Compared(NamedTuple):
    """Two samples beside each other."""

    p: float
    """Two-sided; 1 where there are too few observations to tell."""
    higher: float
    """Chance that an observation of b lies above one of a; ties count half."""


def compare(a: _Float, b: _Float) -> Compared:
    """Compare two samples, one value per observation each."""
    if not len(a) or not len(b):
        return Compared(1.0, 0.5)
    differences = b[np.newaxis, :] - a[:, np.newaxis]
    above = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    higher = above / differences.size
    if min(len(a), len(b)) < FEWEST:
        return Compared(1.0, higher)
    n, m = len(a), len(b)
    total = n + m
    ties = np.unique(np.concatenate((a, b)), return_counts=True)[1].astype(np.float64)
    spread = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if spread <= 0:
        return Compared(1.0, higher)
    distance = max(0.0, abs(above - n * m / 2) - 0.5)
    return Compared(math.erfc(distance / math.sqrt(2 * spread)), higher)


def interval(a: _Float, b: _Float) -> tuple[float, float]:
    """Return the bootstrap's 95 % interval of ``median(b) - median(a)``."""
    chance = np.random.default_rng(_SEED)
    shifts = np.median(chance.choice(b, (_RESAMPLED, len(b))), axis=1) - np.median(
        chance.choice(a, (_RESAMPLED, len(a))), axis=1
    )
    low, high = np.quantile(shifts, (0.025, 0.975))
    return float(low), float(high)


def holm(p: _Float) -> _Float:
    """Return p-values corrected for their number: the chance of even one false alarm among them stays bounded."""
    order = np.argsort(p)
    corrected = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    result = np.empty_like(corrected)
    result[order] = corrected
    return result
