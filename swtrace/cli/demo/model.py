"""The computation of a demo rank: a stack of real linears whose outputs can be checked bit for bit.

Weights and activations are small whole numbers stored as floats. A matmul's sums are therefore exact in
any order, and any wrong byte of a weight changes the output. A rank generates any layer's weight from
the seed, so it can compute the expected output without keeping a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from swtrace.cli.demo.scenarios import Dials

COLUMNS = 512
_BYTES_PER_ROW = COLUMNS * 4
_WEIGHTS = 8
"""Weights are whole numbers of at most this magnitude."""
_ACTIVATIONS = 7
"""Activations are at most this: 512 products of 8 * 7 stay far below 2**24, where float32 is exact."""
_INPUTS = 4
"""Different inputs, used in turn, so that a stale window cannot pass by repeating the previous step."""


@dataclass(frozen=True, slots=True)
class Check:
    """Expected output of each layer, ``[input][layer]``."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[tuple[Tensor, ...], ...]


def build(dials: Dials, layer: int) -> nn.Linear:
    """Return a linear of the stack with its true weight."""
    from torch import nn

    linear = nn.Linear(COLUMNS, _rows(dials), bias=False, device="meta")
    linear.weight = nn.Parameter(_weight(dials, layer), requires_grad=False)
    return linear


def expect(dials: Dials) -> Check:
    """Compute every layer's output for every input, with weights generated from the seed."""
    import torch

    generator = torch.Generator().manual_seed(dials.seed)
    inputs = tuple(_whole_numbers((COLUMNS,), _ACTIVATIONS, generator) for _ in range(_INPUTS))
    outputs: list[list[Tensor]] = [[] for _ in inputs]
    activations = list(inputs)
    for layer in range(dials.layers):
        weight = _weight(dials, layer)
        for i, activation in enumerate(activations):
            outputs[i].append(weight @ activation)
            activations[i] = following(outputs[i][-1])
    return Check(inputs, tuple(tuple(column) for column in outputs))


def following(output: Tensor) -> Tensor:
    """Return the next layer's input: the output reduced to small whole numbers."""
    import torch

    folded = torch.remainder(output, 2 * _ACTIVATIONS + 1) - _ACTIVATIONS
    return folded.repeat(-(-COLUMNS // len(folded)))[:COLUMNS]


def _rows(dials: Dials) -> int:
    return max(1, round(dials.mib * (1 << 20) / _BYTES_PER_ROW))


def _weight(dials: Dials, layer: int) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed((dials.seed << 16) + layer + 1)
    return _whole_numbers((_rows(dials), COLUMNS), _WEIGHTS, generator)


def _whole_numbers(shape: tuple[int, ...], magnitude: int, generator: Generator) -> Tensor:
    import torch

    return torch.randint(-magnitude, magnitude + 1, shape, generator=generator, dtype=torch.float32)
