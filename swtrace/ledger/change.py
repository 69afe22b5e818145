"""Find when the level of a value that is measured once per step changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_LEAST = 4
"""A level needs this many values."""
_CLEAR = 5.0
"""A change counts if the two levels differ by this many standard errors ..."""
_ENOUGH = 0.3
"""... and by this share of the later level."""


def since(values: Sequence[float] | npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> int | None:
    """Return the index of the first value on the present level, ``values[step]``; None if the level never rose.

    The values are split where the two means differ most, measured in standard errors. The present level is the part
    after the last such split. Values far beyond the others are clipped, so that a single one is no level.
    """
    each = np.asarray(values, np.float64)
    begin, found = 0, None
    while len(each) - begin >= 2 * _LEAST:
        split = _split(each[begin:])
        if split is None:
            break
        begin += split
        found = begin
    return found


def _split(values: npt.NDArray[np.float64]) -> int | None:
    """Return where a higher level begins; None if there is no clear rise."""
    count = len(values)
    low, high = np.quantile(values, (0.02, 0.98))
    clipped = np.clip(values, low, high)
    after = np.arange(_LEAST, count - _LEAST + 1)
    total = np.cumsum(clipped)
    before_mean = total[after - 1] / after
    after_mean = (total[-1] - total[after - 1]) / (count - after)
    rise = after_mean - before_mean
    weight = np.sqrt(after * (count - after) / count)
    best = int((rise * weight).argmax())
    split = int(after[best])
    parts = np.concatenate((clipped[:split] - before_mean[best], clipped[split:] - after_mean[best]))
    error = max(float(parts.std()) / weight[best], 1e-12)
    if rise[best] < _CLEAR * error or rise[best] < _ENOUGH * abs(after_mean[best]):
        return None
    return split
