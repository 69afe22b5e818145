"""Means over blocks of consecutive steps, in bounded number."""

from __future__ import annotations

import numpy as np

from swtrace.recording.blocks import MAX_BLOCKS, BlockMeans


def test_blocks_are_means_of_consecutive_steps_in_bounded_number() -> None:
    """For any number of steps, no more than 64 blocks are kept, and each is the mean of its steps."""
    blocks = BlockMeans((2,))
    values = np.random.default_rng(3).normal(size=(1000, 2))
    for row in values:
        blocks.add(row)
    length = blocks.block_steps
    assert MAX_BLOCKS // 2 <= len(blocks.means()) <= MAX_BLOCKS
    whole = len(values) // length * length
    np.testing.assert_allclose(blocks.means(), values[:whole].reshape(-1, length, 2).mean(axis=1))
    np.testing.assert_allclose(blocks.mean(), values.mean(axis=0))
