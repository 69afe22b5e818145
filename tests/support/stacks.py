"""Stacks of linears for the tests: one shared as a series, one resident, and the forward through both."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swtrace.series import Series
from swtrace.series.ideal import IdealChannel, IdealTransport

WIDTH = 16


def true_weights(num_layers: int, seed: int = 0) -> list[Tensor]:
    """Return the weights of a checkpoint, different in every layer."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(WIDTH, WIDTH, generator=generator) for _ in range(num_layers)]


def some_layers(count: int, start_layer: int, seed: int) -> tuple[tuple[int, ...], int]:
    """Return ``count`` layers from ``start_layer`` on, with resident ones among them, and one past the last layer."""
    chance = random.Random(seed)  # noqa: S311 (reproducible shapes)
    end_layer = start_layer + count + chance.randrange(1, count + 2)
    return tuple(sorted(chance.sample(range(start_layer, end_layer), count))), end_layer


def load(parameter: nn.Parameter, weight: Tensor) -> None:
    """Load a weight as vLLM does: through the parameter's loader if it has one."""
    loader = getattr(parameter, "weight_loader", None)
    if loader is None:
        parameter.data.copy_(weight)
    else:
        loader(parameter, weight)


def plain_linear(_position: int) -> nn.Linear:
    """Return an unquantised linear whose weight is not loaded yet."""
    linear = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.constant_(linear.weight, float("nan"))
    return linear


class Stack:
    """The layers of a series and the resident ones among them, and weights to compare with."""

    def __init__(
        self,
        series: Series,
        start_layer: int,
        weights: Sequence[Tensor],
        make: Callable[[int], nn.Module] = plain_linear,
    ) -> None:
        self.series = series
        self.start_layer = start_layer
        self.weights = list(weights)
        self.layers: list[Any] = []
        for position, weight in enumerate(self.weights):
            layer: Any = make(position)
            series.register(start_layer + position, layer)
            load(layer.weight, weight)
            self.layers.append(layer)

    def forward(self, seed: int, *, stop_at: int | None = None, before: Callable[[], None] | None = None) -> bool:
        """Run one forward; return whether every layer's output was bit-identical to resident weights.

        With ``stop_at`` it dies where that position would be reached.
        """
        x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed)).to(self.weights[0].device)
        equal = True
        with torch.inference_mode():
            for position, (layer, weight) in enumerate(zip(self.layers, self.weights, strict=True)):
                if position == stop_at:
                    raise ForwardDiedError
                self.series.reach(self.start_layer + position)
                if before is not None:
                    before()
                shared = layer(x)
                equal &= torch.equal(shared, nn.functional.linear(x, weight))
                x = torch.tanh(shared)
        return equal


class ForwardDiedError(Exception):
    """The forward ended early."""


def with_series(program: Callable[[Series], None], prefetch_step: int = 1, windows: str = "static") -> None:
    """Run ``program`` on two ranks, each with a ready series of layers 3 to 7."""

    def body(transport: IdealTransport) -> None:
        series = Series("s", transport.group, 3, 8, prefetch_step=prefetch_step, windows=windows, transport=transport)
        Stack(series, 3, true_weights(5))
        series.post_process()
        program(series)

    IdealChannel(2).run(body)
