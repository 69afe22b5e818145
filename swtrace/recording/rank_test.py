"""Do two samples differ? The Mann-Whitney test, and by how much: the Hodges-Lehmann shift.

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


class Compared(NamedTuple):
    """Two samples beside each other."""

    p: float
    """Two-sided; 1 where there are too few observations to tell."""
    shift: float
    """Median of all differences ``b - a``."""
    higher: float
    """Chance that an observation of b lies above one of a; ties count half."""


def compare(a: _Float, b: _Float) -> Compared:
    """Compare two samples, one value per observation each."""
    if not len(a) or not len(b):
        return Compared(1.0, 0.0, 0.5)
    differences = b[np.newaxis, :] - a[:, np.newaxis]
    above = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    shift, higher = float(np.median(differences)), above / differences.size
    if min(len(a), len(b)) < FEWEST:
        return Compared(1.0, shift, higher)
    n, m = len(a), len(b)
    total = n + m
    ties = np.unique(np.concatenate((a, b)), return_counts=True)[1].astype(np.float64)
    spread = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if spread <= 0:
        return Compared(1.0, shift, higher)
    distance = max(0.0, abs(above - n * m / 2) - 0.5)
    return Compared(math.erfc(distance / math.sqrt(2 * spread)), shift, higher)


def holm(p: _Float) -> _Float:
    """Return p-values corrected for their number: the chance of even one false alarm among them stays bounded."""
    order = np.argsort(p)
    corrected = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    result = np.empty_like(corrected)
    result[order] = corrected
    return result
