"""Real ranks, real bytes: the series computes what resident weights compute."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
from torch import nn

from swtrace.series import RankGroup, Series
from tests.support.ranks import run_ranks
from tests.support.stacks import ForwardDiedError, Stack, plain_linear, true_weights

LAYERS = (*range(2, 10), 61)
STEPS = 6


def matrix(rank: int, layers: Sequence[int] = LAYERS, device: str = "cpu") -> tuple[int, list[str]]:
    """Run every combination over one communicator; return how many there were, and what went wrong."""

    def linear(position: int) -> nn.Module:
        return plain_linear(position).to(device)

    from swtrace.series.torch_transport import TorchTransport

    class KeptTransport(TorchTransport):
        def close(self) -> None:
            """Stay open for the next series."""

    group = RankGroup.world()
    transport = KeptTransport(group, description="swtrace", timeout_s=600.0)
    wrong = []
    count = 0
    for num_layers in layers:
        weights = [weight.to(device) for weight in true_weights(num_layers)]
        for prefetch_step in range(min(4, num_layers - 1)):
            for start_layer in start_layers(num_layers):
                for windows in ("static", "rolling"):
                    case = f"L={num_layers} k={prefetch_step} start={start_layer} {windows}"
                    series = Series(
                        case,
                        group,
                        start_layer,
                        start_layer + num_layers,
                        prefetch_step=prefetch_step,
                        windows=windows,
                        transport=transport,
                    )
                    stack = Stack(series, start_layer, weights, linear)
                    series.post_process()
                    wrong += run_steps(case, stack, rank, count)
                    count += 1
                    operations = series.statistics().operations
                    if operations != STEPS * num_layers:
                        wrong.append(f"{case}: {operations} operations")
                    series.close()
    return count, wrong


def run_steps(case: str, stack: Stack, rank: int, variant: int) -> list[str]:
    """Run steps with one that dies in between: on all ranks at different layers, or on one rank only.

    Half of the series mark their steps and half leave it to the first reach, which cannot tell a forward
    that died before its first layer: such a one must be marked.
    """
    wrong = []
    for step in range(STEPS):
        dies = step == 3 and (variant % 2 == 0 or rank == 1)
        with suppress(ForwardDiedError):
            stop_at = (variant + rank) % len(stack.layers) if dies else None
            if variant % 4 < 2 or stop_at == 0:
                with stack.series.step():
                    equal = stack.forward(step, stop_at=stop_at)
            else:
                equal = stack.forward(step, stop_at=stop_at)
            if not equal:
                wrong.append(f"{case} step {step}")
    stack.series.begin_step()
    stack.series.end_step()
    return wrong


def start_layers(num_layers: int) -> Sequence[int]:
    """Return first layers, which turn the sources: all turns where steps are short, one where they are long."""
    return (0, 1, 3) if num_layers < 10 else (1,)


def combinations(layers: Sequence[int]) -> int:
    """Return how many combinations the matrix has."""
    return sum(min(4, num_layers - 1) * len(start_layers(num_layers)) for num_layers in layers) * 2


@pytest.mark.parametrize("world_size", [2, 3])
def test_outputs_equal_resident_weights_bit_by_bit(world_size: int) -> None:
    """For every L, k, start layer and policy, all steps equal resident weights, even after a forward that failed."""
    for count, wrong in run_ranks(world_size, matrix):
        assert wrong == []
        assert count == combinations(LAYERS)


def two_series(_rank: int) -> list[bool]:
    """Two series in the same layers, with different shapes, steps and policies, used in turn."""
    group = RankGroup.world()
    first = Series("attention", group, 2, 8, prefetch_step=1)
    second = Series("mlp", group, 2, 8, prefetch_step=2, windows="rolling")
    stacks = [Stack(first, 2, true_weights(6, seed=1)), Stack(second, 2, true_weights(6, seed=2))]
    for series in (first, second):
        series.post_process()
    equal = []
    for _ in range(5):
        for position in range(6):
            for stack in stacks:
                stack.series.reach(2 + position)
            for stack in reversed(stacks):
                stack.series.wait(2 + position)
                equal.append(bool((stack.layers[position].weight == stack.weights[position]).all()))
    communicators = {id(series._transport._process_group) for series in (first, second)}  # type: ignore[union-attr]
    return [*equal, len(communicators) == 2]


def test_each_series_has_a_communicator_of_its_own() -> None:
    """Two series in one model do not disturb each other: their operations match within each communicator."""
    for equal in run_ranks(2, two_series):
        assert all(equal)


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
