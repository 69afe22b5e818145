"""vLLM's linears in compiled code: one graph where the weight is read only with its activation, else a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from swtrace.series import RankGroup, Series
from swtrace.series.circle import Circle
from tests.support.ranks import run_ranks
from tests.support.stacks import load
from tests.support.vllm_linears import (
    ColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    ScalingMethod,
    UnquantizedLinearMethod,
    as_vllms,
)

WIDTH, LAYERS, STEPS = 64, 4, 3
ONE_GRAPH = {
    "replicated": {"kind": ReplicatedLinear},
    "column": {"kind": ColumnParallelLinear},
    "row": {"kind": RowParallelLinear},
    "apply": {"direct": True},
    "on a device": {"device": True},
}
REFUSED = {
    "bias": {"bias": True},
    "scaled": {"method": ScalingMethod},
    "autocast": {"autocast": True},
    "replaced before post-processing": {"replaced": "before"},
    "replaced": {"replaced": "after"},
    "replaced on a device": {"replaced": "after", "device": True},
}


class _Model(nn.Module):
    def __init__(self, layers: list[Any], reach: Callable[[int], None], *, direct: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._reach, self._direct = reach, direct

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer: Any
        for index, layer in enumerate(self.layers):
            self._reach(index)
            y = nn.functional.silu(x)
            x = x + (layer.quant_method.apply(layer, y) if self._direct else layer(y))
        return x


def _differences(
    kind: type = RowParallelLinear,
    method: type = UnquantizedLinearMethod,
    replaced: str = "",
    *,
    bias: bool = False,
    direct: bool = False,
    device: bool = False,
    autocast: bool = False,
) -> list[float] | str:
    """Return the largest difference of each step from a model without sharing, or why it is not one graph."""
    made = torch.Generator().manual_seed(0)
    weights = [torch.randn(WIDTH, WIDTH, generator=made) / 8 for _ in range(LAYERS)]
    layers = [kind(WIDTH, bias=bias, method=method) for _ in weights]
    own = [kind(WIDTH, bias=bias, method=method) for _ in weights]
    captures, Circle.captures_graphs = Circle.captures_graphs, device
    series = Series("o_proj", RankGroup.world(), 0, LAYERS)
    try:
        for index, layer in enumerate(layers):
            series.register(index, layer)
        for layer, control, weight in zip(layers, own, weights, strict=True):
            load(layer.weight, weight)
            control.weight.data.copy_(weight)
        _replace(layers, replaced == "before")
        series.post_process()
        _replace(layers, replaced == "after")
        model = torch.compile(_Model(layers, series.reach, direct=direct), backend="aot_eager", fullgraph=True)
        control = _Model(own, lambda _index: None, direct=direct)
        found = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for step in range(STEPS):
                x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(step))
                found.append(float((model(x) - control(x)).abs().max()))
    except torch._dynamo.exc.Unsupported as refusal:
        return str(refusal)
    else:
        return found
    finally:
        series.close()
        Circle.captures_graphs = captures


def _replace(layers: list[Any], due: bool) -> None:  # noqa: FBT001
    for layer in layers if due else ():
        layer.quant_method = UnquantizedLinearMethod()


def _all(_rank: int) -> dict[str, list[float] | str]:
    found = {}
    with as_vllms():
        for name, case in {**ONE_GRAPH, **REFUSED}.items():
            torch._dynamo.reset()
            found[name] = _differences(**case)  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, list[float] | str]]:
    """What two ranks found for every case."""
    return run_ranks(2, _all)


@pytest.mark.parametrize("name", ONE_GRAPH)
def test_a_product_of_weight_and_activation_waits_within_the_graph(found: list[Any], name: str) -> None:
    """The outputs are those of resident weights, whichever class of linear, and whoever calls its quant method."""
    assert [each[name] for each in found] == [[0.0] * STEPS] * 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_read_the_weight_otherwise_is_refused_in_one_graph(found: list[Any], name: str) -> None:
    """A bias, another quant method, or one that was replaced: the error says that it must run outside the graph."""
    for each in found:
        assert "so it must wait and run outside the graph" in each[name]
