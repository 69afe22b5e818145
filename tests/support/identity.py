"""A matrix of series on real ranks, of which every output is compared with that of resident weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from torch import nn

from swtrace.series import RankGroup, Series
from swtrace.share import runs
from tests.support.stacks import ForwardDiedError, Stack, plain_linear, some_layers, true_weights

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
        weights = [weight.to(device) for weight in true_weights(2 * num_layers + 1)]
        for prefetch_step in range(min(4, num_layers - 1)):
            for start_layer in start_layers(num_layers):
                for windows in ("static", "rolling"):
                    case = f"L={num_layers} k={prefetch_step} start={start_layer} {windows}"
                    shared, end_layer = tuple(range(start_layer, start_layer + num_layers)), start_layer + num_layers
                    if count // 2 % 2:  # in half of the cases of each policy
                        shared, end_layer = some_layers(num_layers, start_layer, count)
                        case += f" of {end_layer - start_layer}: {runs(shared)}"
                    series = Series(
                        case,
                        group,
                        start_layer,
                        end_layer,
                        layers=shared,
                        prefetch_step=prefetch_step,
                        windows=windows,
                        transport=transport,
                    )
                    stack = Stack(series, start_layer, weights[: end_layer - start_layer], linear)
                    series.post_process()
                    wrong += run_steps(case, stack, shared[0] - start_layer, rank, count)
                    count += 1
                    operations = series.statistics().operations
                    if operations != STEPS * num_layers:
                        wrong.append(f"{case}: {operations} operations")
                    series.close()
    return count, wrong


def run_steps(case: str, stack: Stack, first: int, rank: int, variant: int) -> list[str]:
    """Run steps with one that dies in between: on all ranks at different layers, or on one rank only.

    Half of the series mark their steps and half leave it to the first reach, which cannot tell a forward
    that died before its first shared layer, at position ``first``: such a one must be marked.
    """
    wrong = []
    for step in range(STEPS):
        dies = step == 3 and (variant % 2 == 0 or rank == 1)
        with suppress(ForwardDiedError):
            stop_at = (variant + rank) % len(stack.layers) if dies else None
            if variant % 4 < 2 or (stop_at is not None and stop_at <= first):
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
