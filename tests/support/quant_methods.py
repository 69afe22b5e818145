"""Quant methods that change a layer's tensors as vLLM's do, and the linear that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.stacks import WIDTH


class QuantMethod:
    """Like vLLM's, one object that may serve many layers."""

    def __init__(self) -> None:
        self.processed: list[int] = []

    def process_weights_after_loading(self, layer: Any) -> None:
        """Leave the layout alone."""
        self.processed.append(id(layer))

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """Compute with what the layer holds."""
        return nn.functional.linear(x, layer.weight)


class Replacing(QuantMethod):
    """Replaces the Parameter with a new one of the same layout."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        super().process_weights_after_loading(layer)
        layer.weight = nn.Parameter(layer.weight.data * 2, requires_grad=False)

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.linear(x, layer.weight) / 2


class Transposing(QuantMethod):
    """Keeps a view with swapped strides, as fp8 kernels want it."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        super().process_weights_after_loading(layer)
        layer.weight = nn.Parameter(layer.weight.data.t(), requires_grad=False)

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        assert layer.weight.stride() == (1, WIDTH)
        return nn.functional.linear(x, layer.weight.t())


class Quantising(QuantMethod):
    """Makes an int8 weight, a scale per row, and a constant as a buffer."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        super().process_weights_after_loading(layer)
        weight = layer.weight.data
        scale = weight.abs().amax(dim=1) / 127
        layer.weight = nn.Parameter((weight / scale[:, None]).round().to(torch.int8), requires_grad=False)
        layer.scale = nn.Parameter(scale[:7].clone(), requires_grad=False)
        layer.register_buffer("rest", scale[7:].clone())

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        scale = torch.cat([layer.scale, layer.rest])
        return nn.functional.linear(x, layer.weight.to(x.dtype) * scale[:, None])


class Float8(QuantMethod):
    """Stores the weight as float8, which gloo would refuse to move as such."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        super().process_weights_after_loading(layer)
        layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.linear(x, layer.weight.to(x.dtype))


class QuantisedLinear(nn.Module):
    """Like vLLM's linears, computes through its quant method."""

    def __init__(self, quant_method: QuantMethod, *, bias: bool = False) -> None:
        super().__init__()
        self.quant_method = quant_method
        self.weight = nn.Parameter(torch.empty(WIDTH, WIDTH), requires_grad=False)
        if bias:
            self.bias = nn.Parameter(torch.empty(WIDTH, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.quant_method.apply(self, x)


def resident(make: Callable[[], QuantMethod], weight: Tensor) -> QuantisedLinear:
    layer = QuantisedLinear(make())
    layer.weight.data.copy_(weight)
    layer.quant_method.process_weights_after_loading(layer)
    return layer
