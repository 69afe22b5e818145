"""Compiled forwards in plain torch: reaches and waits are operators in the graph, where they belong."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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
WITH_INDUCTOR = (("static", 1, "inductor", True, True),)


def compiled_steps(_rank: int, cases: Sequence[tuple[str, int, str, bool, bool]]) -> dict[str, str]:
    """Run compiled forwards of every kind."""
    return {
        f"{windows} k={k} {backend} fullgraph={fullgraph} original={original}": _run(
            windows, k, backend, fullgraph=fullgraph, original=original
        )
        for windows, k, backend, fullgraph, original in cases
    }


@pytest.mark.parametrize("cases", [CASES, WITH_INDUCTOR], ids=["traced", "inductor"])
def test_compiled_forwards_give_what_resident_weights_give(
    cases: Sequence[tuple[str, int, str, bool, bool]],
) -> None:
    """By every backend, as one graph or in pieces, with the object API and the original names, bit by bit."""
    if cases is WITH_INDUCTOR and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch's inductor needs a C++ compiler")
    for told in run_ranks(2, compiled_steps, cases):
        expected = {case: "right" if case.startswith("rolling") else "right, 1 graphs" for case in told}
        assert told == expected


def rolling_as_one_graph(_rank: int) -> str:
    """Ask for one graph where windows roll."""
    return _run("rolling", 1, "eager", fullgraph=True, original=False)


def test_rolling_windows_in_one_graph_are_refused_with_the_setting_that_helps() -> None:
    """``fullgraph=True`` with rolling windows raises and says why."""
    for told in run_ranks(2, rolling_as_one_graph):
        assert "swtrace: rolling windows move weights" in told
        assert "SWTRACE_WINDOWS=static" in told
