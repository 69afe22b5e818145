"""Stand-ins for vLLM's linears under the name of vLLM's module, for what swtrace does with them in compiled code.

They hold what swtrace asks about: classes whose forward reads the weight only through ``quant_method.apply``.
``tests/scenarios/vllm`` has tests with the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

NAME = "vllm.model_executor.layers.linear"


class UnquantizedLinearMethod:
    """Multiplies an activation by the weight."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the product."""
        return nn.functional.linear(x, layer.weight, bias)


class ScalingMethod(UnquantizedLinearMethod):
    """Computes with the weight alone, as a quant method does that scales it."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the product with twice the weight."""
        return nn.functional.linear(x, layer.weight * 2, bias)


class _Linear(nn.Module):
    def __init__(self, width: int, *, bias: bool = False, method: type = UnquantizedLinearMethod) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(width), requires_grad=False) if bias else None
        self.quant_method: Any = method()

    def forward(self, x: torch.Tensor) -> Any:
        return self.quant_method.apply(self, x, self.bias)


class ReplicatedLinear(_Linear):
    """Stands for one whose weight is whole on every rank."""


class ColumnParallelLinear(_Linear):
    """Stands for one whose outputs are split."""


class RowParallelLinear(_Linear):
    """Stands for one whose inputs are split."""


@contextmanager
def as_vllms() -> Iterator[None]:
    """Let swtrace take these classes for vLLM's."""
    module = ModuleType(NAME)
    for one in (UnquantizedLinearMethod, ReplicatedLinear, ColumnParallelLinear, RowParallelLinear):
        setattr(module, one.__name__, one)
    with patch.dict(sys.modules, {NAME: module}):
        yield
