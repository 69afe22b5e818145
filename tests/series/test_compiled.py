"""Compiled forwards in plain torch: reaches and waits are operators in the graph, where they belong."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
import torch._dynamo
from ranks import run_ranks
from torch import Tensor, nn

from series.stacks import WIDTH, load, plain_linear, true_weights
from swtrace.series import (
    RankGroup,
    Series,
    post_process_after_loading_for_shared_weight_series,
    reach_layer_for_shared_weight_series,
    register_layer_to_shared_weight_series,
)
from swtrace.series.functions import close_all

LAYERS = 5
START = 2
STEPS = 4


class Model(nn.Module):
    """A forward that reaches, and linears that wait."""

    def __init__(self, layers: list[Any], reach: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers, each with a residual."""
        for position, layer in enumerate(self.layers):
            self.reach(position, layer)
            y = torch.nn.functional.silu(x) * 0.5
            x = x + layer(y)
        return x


def _made(windows: str, k: int, *, original: bool) -> tuple[Any, nn.Module, Any]:
    """Return a shared model, the same resident, and how to end the series."""
    weights = true_weights(LAYERS)
    layers: list[Any] = [plain_linear(position) for position in range(LAYERS)]
    if original:
        for position, layer in enumerate(layers):
            register_layer_to_shared_weight_series(
                f"o{k}", RankGroup.world(), START, START + LAYERS, START + position, layer, k
            )
    else:
        series = Series("s", RankGroup.world(), START, START + LAYERS, prefetch_step=k, windows=windows)
        for position, layer in enumerate(layers):
            series.register(START + position, layer)
    for layer, weight in zip(layers, weights, strict=True):
        load(layer.weight, weight)
    resident: list[Any] = [plain_linear(position) for position in range(LAYERS)]
    for layer, weight in zip(resident, weights, strict=True):
        layer.weight.data.copy_(weight)
    control = Model(resident, lambda *_: None)
    if original:
        for layer in layers:
            post_process_after_loading_for_shared_weight_series(layer)
        return Model(layers, lambda _, layer: reach_layer_for_shared_weight_series(layer)), control, close_all
    series.post_process()
    return Model(layers, lambda position, _: series.reach(START + position)), control, series.close


def _run(windows: str, k: int, backend: str, *, fullgraph: bool, original: bool) -> str:
    torch._dynamo.reset()
    model, control, close = _made(windows, k, original=original)
    compiled: Any = torch.compile(model, backend=backend, fullgraph=fullgraph)
    reference: Any = torch.compile(control, backend=backend, fullgraph=fullgraph)
    try:
        with torch.no_grad():
            for step in range(STEPS):
                x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(step))
                if not torch.equal(compiled(x.clone()), reference(x.clone())):
                    return f"wrong in step {step}"
        if windows == "static":
            torch._dynamo.reset()
            explained = torch._dynamo.explain(model)(torch.ones(3, WIDTH))
            return f"right, {explained.graph_count} graphs"
    except Exception as error:  # noqa: BLE001 (whatever it is, the test says it)
        return f"{type(error).__name__}: {error}"
    else:
        return "right"
    finally:
        close()


CASES = (
    ("static", 0, "eager", True, False),
    ("static", 1, "aot_eager", True, False),
    ("static", 1, "aot_eager", False, False),
    ("rolling", 1, "aot_eager", False, False),
)
REFUSED = ("rolling", 1, "eager", True, False)
WITH_INDUCTOR = ("static", 1, "inductor", True, True)


def compiled_steps(_rank: int, *cases: tuple[str, int, str, bool, bool]) -> list[str]:
    """Run compiled forwards of every kind."""
    return [
        _run(windows, k, backend, fullgraph=fullgraph, original=original)
        for windows, k, backend, fullgraph, original in cases
    ]


def test_compiled_forwards_give_what_resident_weights_give() -> None:
    """As one graph or in pieces, bit by bit; as one graph with rolling windows they are refused, with what helps."""
    for *told, refused in run_ranks(2, compiled_steps, *CASES, REFUSED):
        assert told == ["right, 1 graphs", "right, 1 graphs", "right, 1 graphs", "right"]
        assert "swtrace: rolling windows move weights" in refused
        assert "SWTRACE_WINDOWS=static" in refused


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_what_inductor_generates_gives_what_resident_weights_give() -> None:
    """The same with generated code, through the original names."""
    assert run_ranks(2, compiled_steps, WITH_INDUCTOR) == [["right, 1 graphs"]] * 2
