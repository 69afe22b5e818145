"""Means over blocks of consecutive steps, in bounded memory for any number of steps.

Consecutive steps resemble each other, so a statistical test that treated each as an independent
observation would find differences everywhere. Means over long blocks are nearly independent. When there
are too many blocks, they are joined in pairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_BLOCKS = 64

_Float = npt.NDArray[np.float64]


class BlockMeans:
    """Means of arrays over consecutive blocks. Once there are 32 steps, there are 32 to 63 whole blocks.

    Args:
        shape: The shape of the arrays.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sums = np.zeros((MAX_BLOCKS, *shape))
        self._whole = 0
        self.block_steps = 1
        """Steps per block."""
        self._partial = np.zeros(shape)
        self._in_partial = 0
        self.steps = 0

    def add(self, values: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> None:
        """Add one step."""
        self._partial += values
        self._in_partial += 1
        self.steps += 1
        if self._in_partial < self.block_steps:
            return
        self._sums[self._whole] = self._partial
        self._partial[...] = 0
        self._in_partial = 0
        self._whole += 1
        if self._whole == MAX_BLOCKS:
            half = MAX_BLOCKS // 2
            self._sums[:half] = self._sums[0::2] + self._sums[1::2]
            self._sums[half:] = 0
            self._whole, self.block_steps = half, 2 * self.block_steps

    def means(self) -> _Float:
        """Return the means, ``[block, ...]``, without the last steps if they do not fill a block."""
        return self._sums[: self._whole] / self.block_steps

    def mean(self) -> _Float:
        """Return the mean over all steps."""
        total = self._sums[: self._whole].sum(axis=0) + self._partial
        return np.asarray(total / max(1, self.steps), np.float64)
