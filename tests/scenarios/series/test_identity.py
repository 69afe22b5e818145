"""Real ranks, real bytes: the series computes what resident weights compute."""

from __future__ import annotations

import pytest

from swtrace.series import RankGroup, Series
from tests.support.identity import LAYERS, combinations, matrix
from tests.support.ranks import run_ranks
from tests.support.stacks import Stack, true_weights


@pytest.mark.parametrize("world_size", [2, 3])
def test_outputs_equal_resident_weights_bit_by_bit(world_size: int) -> None:
    """For every L, k, start layer and policy, all steps equal resident weights, even after a forward that failed.

    In half of the cases, the series shares only some layers of a stack.
    """
    for count, wrong in run_ranks(world_size, matrix):
        assert wrong == []
        assert count == combinations(LAYERS)


def three_layers(_rank: int) -> tuple[int, bool]:
    """Run a series of three layers; return how many this rank owns, and whether all outputs were right."""
    series = Series("few layers", RankGroup.world(), 5, 8, prefetch_step=1)
    stack = Stack(series, 5, true_weights(3))
    series.post_process()
    equal = [stack.forward(step) for step in range(4)]
    series.end_step()
    return series.statistics().owned_layers, all(equal)


def test_a_group_may_be_larger_than_the_series() -> None:
    """With four ranks and three layers, the rank that owns none computes the same as the others."""
    assert run_ranks(4, three_layers) == [(0, True), (1, True), (1, True), (1, True)]
