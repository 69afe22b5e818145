"""Two processes on one GPU, over gloo, which moves a GPU's bytes through the host and blocks it meanwhile."""

from __future__ import annotations

import torch

from tests.support.identity import combinations, matrix
from tests.support.ranks import run_ranks

LAYERS = (2, 3, 5, 8)


def test_outputs_equal_resident_weights_bit_by_bit(device: torch.device) -> None:
    """For every k, start layer and policy, all steps equal resident weights, also after a forward that died."""
    for count, wrong in run_ranks(2, matrix, LAYERS, str(device)):
        assert wrong == []
        assert count == combinations(LAYERS)
