"""Whether two samples differ (Mann-Whitney test), and by how much (difference of medians, with its interval).

Neither assumes a distribution, and a single outlier moves neither. Holm's method corrects for many
comparisons at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_Float = npt.NDArray[np.float64]

FEWEST = 8
"""Fewest observations for which the normal approximation is used."""
_RESAMPLES = 1000
_SEED = 20
"""Fixed, so that everyone who compares the same recordings gets the same interval."""


class Compared(NamedTuple):
    """The result of comparing two samples, a and b."""

    p: float
    """Two-sided p-value; 1 if there are too few observations to tell."""
    higher: float
    """Probability that an observation of b is above one of a. Ties count half."""


def compare(a: _Float, b: _Float) -> Compared:
    """Compare two samples with one value per observation."""
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
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if variance <= 0:
        return Compared(1.0, higher)
    distance = max(0.0, abs(above - n * m / 2) - 0.5)
    return Compared(math.erfc(distance / math.sqrt(2 * variance)), higher)


def interval(a: _Float, b: _Float) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of ``median(b) - median(a)``."""
    random = np.random.default_rng(_SEED)
    shifts = np.median(random.choice(b, (_RESAMPLES, len(b))), axis=1) - np.median(
        random.choice(a, (_RESAMPLES, len(a))), axis=1
    )
    low, high = np.quantile(shifts, (0.025, 0.975))
    return float(low), float(high)


def holm(p: _Float) -> _Float:
    """Return p-values corrected for their number, so that the chance of even one false alarm stays bounded."""
    order = np.argsort(p)
    corrected = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    result = np.empty_like(corrected)
    result[order] = corrected
    return result
