"""Compiled forwards in plain torch: reaches and waits are operators in the graph."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from swtrace.errors import OrderError, StaleWindowError
from swtrace.series import (
    RankGroup,
    Series,
    post_process_after_loading_for_shared_weight_series,
    reach_layer_for_shared_weight_series,
    register_layer_to_shared_weight_series,
)
from swtrace.series.functions import close_all
from swtrace.settings import Settings
from swtrace.share import Share
from tests.support.ranks import run_ranks
from tests.support.stacks import WIDTH, load, plain_linear, true_weights

LAYERS = 5
FEW = 3
"""Fewer layers for forwards that compile each layer separately, which is slow."""
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


def _made(windows: str, k: int, count: int, *, original: bool) -> tuple[Any, nn.Module, Any]:
    """Return a shared model, in some cases with a resident layer, an unshared one, and how to end the series."""
    resident = 1 if k and not original else None
    count += resident or 0
    weights = true_weights(count)
    layers: list[Any] = [plain_linear(position) for position in range(count)]
    if original:
        for position, layer in enumerate(layers):
            register_layer_to_shared_weight_series(
                f"o{k}", RankGroup.world(), START, START + count, START + position, layer, k
            )
    else:
        shared = [START + position for position in range(count) if position != resident]
        series = Series("s", RankGroup.world(), START, START + count, layers=shared, prefetch_step=k, windows=windows)
        for position, layer in enumerate(layers):
            series.register(START + position, layer)
    for layer, weight in zip(layers, weights, strict=True):
        load(layer.weight, weight)
    unshared: list[Any] = [plain_linear(position) for position in range(count)]
    for layer, weight in zip(unshared, weights, strict=True):
        layer.weight.data.copy_(weight)
    control = Model(unshared, lambda *_: None)
    if original:
        for layer in layers:
            post_process_after_loading_for_shared_weight_series(layer)
        return Model(layers, lambda _, layer: reach_layer_for_shared_weight_series(layer)), control, close_all
    series.post_process()
    return Model(layers, lambda position, _: series.reach(START + position)), control, series.close


def _run(windows: str, k: int, backend: str, *, fullgraph: bool, original: bool) -> str:
    torch._dynamo.reset()
    model, control, close = _made(windows, k, LAYERS if backend == "inductor" else FEW, original=original)
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
            with torch.no_grad():
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
    """As one graph or in pieces, bit by bit. One graph with rolling windows is refused, with the setting to change."""
    for *told, refused in run_ranks(2, compiled_steps, *CASES, REFUSED):
        assert told == ["right, 1 graphs", "right, 1 graphs", "right, 1 graphs", "right"]
        assert "swtrace: rolling windows move weights" in refused
        assert "SWTRACE_WINDOWS=static" in refused


NEEDS_COMPILER = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler"
)
GAIN = torch.rand(WIDTH, generator=torch.Generator().manual_seed(5))


class Scaled(nn.Linear):
    """A forward that computes with the weight alone, and an operand that all layers share."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the scaled weight."""
        return nn.functional.linear(x, self.weight * GAIN, self.bias)


class Applied(nn.Linear):
    """A forward through a quant method of the program."""

    class Method:
        """Computes with the weight alone."""

        def apply(self, layer: nn.Linear, x: Tensor) -> Tensor:
            """Apply the scaled weight."""
            return nn.functional.linear(x, layer.weight * GAIN, layer.bias)

    quant_method = Method()

    def forward(self, x: Tensor) -> Tensor:
        """Let the method apply it."""
        return self.quant_method.apply(self, x)


class Autocast(nn.Linear):
    """A forward within autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the weight in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.linear(x, self.weight, self.bias).float()


def _with(change: Any) -> Any:
    def made() -> nn.Module:
        linear = nn.Linear(WIDTH, WIDTH)
        change(linear)
        return linear

    return made


class ReadsAround(nn.Module):
    """Reads the weight of a linear that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the weight."""
        return x @ self.linear.weight.T


OWN: dict[str, Any] = {
    "scaled": lambda: Scaled(WIDTH, WIDTH),
    "applied": lambda: Applied(WIDTH, WIDTH),
    "autocast": lambda: Autocast(WIDTH, WIDTH),
    "weight norm": _with(nn.utils.weight_norm),
    "parametrized": _with(nn.utils.parametrizations.weight_norm),
}


class Shared:
    """The same layers in a series and resident."""

    def __init__(self, make: Any, linear_of: Any = lambda layer: layer, *, count: int = FEW) -> None:
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # weight_norm's own
            resident = [make() for _ in range(count)]
            layers = [make() for _ in range(count)]
        for layer, same in zip(layers, resident, strict=True):
            layer.load_state_dict(same.state_dict())
        self.series = Series("s", RankGroup.world(), START, START + count)
        for position, layer in enumerate(layers):
            self.series.register(START + position, linear_of(layer))
        self.series.post_process()
        self.model = Model(layers, lambda position, _: self.series.reach(START + position))
        self.control = Model(resident, lambda *_: None)


def _own_forward(rank: int, kind: str, backend: str, *, fullgraph: bool = False, count: int = FEW) -> str:
    torch._dynamo.reset()
    shared = Shared(OWN[kind], count=count)
    compiled: Any = torch.compile(shared.model, backend=backend, fullgraph=fullgraph)
    try:
        with torch.no_grad():
            for step in range(2):
                x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(step))
                with shared.series.step():
                    if rank == 0 and step:
                        time.sleep(0.1)  # so that rank 1 has to wait for its weights
                    y = compiled(x.clone())
                if not torch.allclose(y, shared.control(x.clone()), atol=1e-5):
                    return f"wrong in step {step}"
    except Exception as error:  # noqa: BLE001 (whatever it is, the test says it)
        return str(error)
    else:
        return "right"
    finally:
        shared.series.close()


def own_forwards(rank: int) -> dict[str, str]:
    """Run compiled forwards that compute with their weights alone."""
    return {kind: _own_forward(rank, kind, "aot_eager") for kind in OWN}


def scaled_by_inductor(rank: int) -> str:
    """Run one kind with generated code. With three layers inductor would not move the arithmetic."""
    return _own_forward(rank, "scaled", "inductor", count=LAYERS)


def own_forwards_as_one_graph(rank: int) -> list[str]:
    """Request the impossible: such a forward within one graph."""
    return [_own_forward(rank, kind, "eager", fullgraph=True) for kind in ("scaled", "applied")]


def test_a_forward_that_computes_with_its_weight_alone_runs_outside_the_graph() -> None:
    """So no compiler can move that before the wait. As one graph it is refused, with the reason."""
    assert run_ranks(2, own_forwards) == [dict.fromkeys(OWN, "right")] * 2
    for told in run_ranks(2, own_forwards_as_one_graph):
        assert len(told) == 2
        for refused in told:
            assert "swtrace: this linear's forward may compute with its weight alone" in refused


@NEEDS_COMPILER
def test_inductor_moves_no_weight_arithmetic_before_a_wait() -> None:
    """Inductor computes layers that share an operand together, and once did so before the waits."""
    assert run_ranks(2, scaled_by_inductor) == ["right"] * 2


class NormThenCall(ReadsAround):
    """Reads the weight before it calls the linear."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        out: Tensor = self.linear(x / self.linear.weight.norm())
        return out


class CallThenNorm(ReadsAround):
    """Reads the weight in a hook of the linear."""

    def __init__(self) -> None:
        super().__init__()
        self.linear.register_forward_hook(lambda linear, _args, out: out / linear.weight.norm())

    def forward(self, x: Tensor) -> Tensor:
        """Call the linear."""
        out: Tensor = self.linear(x)
        return out


class Attention(nn.Module):
    """Reads ``out_proj``, and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)
        self.linear = self.attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """Attend to itself."""
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class HookedLate(ReadsAround):
    """Gets a pre-hook that reads the weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Call the linear."""
        out: Tensor = self.linear(x)
        return out


AROUND: dict[str, Any] = {
    "around": ReadsAround,
    "norm, then call": NormThenCall,
    "call, then norm": CallThenNorm,
    "attention": Attention,
    "hooked late": HookedLate,
}


def _around(rank: int, make: Any, how: str, *, fullgraph: bool = False) -> str:
    torch._dynamo.reset()
    shared = Shared(make, lambda layer: layer.linear)
    for layer in (*shared.model.layers, *shared.control.layers) if make is HookedLate else ():
        layer.linear.register_forward_pre_hook(lambda linear, args: args[0] * linear.weight.sum())
    whole = (shared.model, shared.control)
    for module in whole if how == "model" else (*shared.model.layers, *shared.control.layers):
        module.compile(backend="aot_eager", fullgraph=fullgraph)
    try:
        with torch.no_grad():
            for step in range(3):
                x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(step))
                with shared.series.step():
                    if rank == step % 2:
                        time.sleep(0.05)  # so that the other rank has to wait for its weights
                    y = shared.model(x.clone())
                if not torch.allclose(y, shared.control(x.clone()), atol=1e-6):
                    return f"wrong in step {step}"
    except Exception as error:  # noqa: BLE001 (whatever it is, the test says it)
        return str(error)
    finally:
        shared.series.close()
    return "right"


def reads_around_the_linear(rank: int) -> dict[str, str]:
    """Read weights in compiled code without calling their linears; compile the model, or each block."""
    return {f"{name}, {how}": _around(rank, make, how) for name, make in AROUND.items() for how in ("model", "blocks")}


def reads_around_in_one_graph(rank: int) -> str:
    """Request such a read within one graph."""
    return _around(rank, ReadsAround, "model", fullgraph=True)


def test_every_read_of_a_weight_in_compiled_code_waits_for_it() -> None:
    """Outside the graph, if the model or its blocks are compiled. As one graph it is refused, with the reason."""
    for told in run_ranks(2, reads_around_the_linear):
        assert told == dict.fromkeys(told, "right")
        assert len(told) == 2 * len(AROUND)
    for refused in run_ranks(2, reads_around_in_one_graph):
        assert "swtrace: a shared weight that is read without calling its linear" in refused


class ReadsParameters(ReadsAround):
    """Reads all parameters, whatever they are called."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply them."""
        return nn.functional.linear(x, *self.linear.parameters())


def reads_parameters(_rank: int) -> tuple[str, str]:
    """Compute with what ``parameters()`` gives, compiled and eagerly."""
    torch._dynamo.reset()
    told = []
    for compile_it in (True, False):
        shared = Shared(ReadsParameters, lambda layer: layer.linear)
        if compile_it:
            shared.model.compile(backend="aot_eager")
        x = torch.ones(3, WIDTH)
        try:
            with torch.no_grad(), shared.series.step():
                y = shared.model(x.clone())
            told.append("right" if torch.equal(y, shared.control(x.clone())) else "wrong")
        except OrderError as error:
            told.append(str(error))
        finally:
            shared.series.close()
    return told[0], told[1]


def test_compiled_code_that_reads_weights_by_parameters_is_refused() -> None:
    """A compiler bypasses the table, so the step ends with an error; eagerly the result is right."""
    for refused, eagerly in run_ranks(2, reads_parameters):
        assert f"compiled code did not wait for {FEW} of {FEW} layers" in refused
        assert "call the linear itself, or read the attribute" in refused
        assert eagerly == "right"


def out_of_turn(_rank: int) -> list[str]:
    """Read all weights in a compiled function, after a step; first only their dtype."""
    torch._dynamo.reset()
    shared = Shared(ReadsAround, lambda layer: layer.linear, count=LAYERS)
    with torch.no_grad(), shared.series.step():
        shared.model(torch.ones(3, WIDTH))

    @torch.compile(backend="aot_eager")
    def known(x: Tensor, layers: Any) -> Tensor:
        return x.to(layers[0].linear.weight.dtype) + 1

    @torch.compile(backend="aot_eager")
    def norms(layers: Any) -> Tensor:
        return torch.stack([layer.linear.weight.norm() for layer in layers])

    told = ["right" if torch.equal(known(torch.ones(2), shared.model.layers), torch.full((2,), 2.0)) else "wrong"]
    try:
        norms(shared.model.layers)
        told.append("not refused")
    except StaleWindowError as error:
        told.append(str(error))
    finally:
        shared.series.close()
    return told


def test_compiled_code_that_reads_weights_out_of_turn_is_refused_as_eager_code_is() -> None:
    """Their dtype may be read at any time."""
    for rank, (known, refused) in enumerate(run_ranks(2, out_of_turn)):
        assert known == "right"
        assert refused.startswith(f"series 's', rank {rank}, layer ")
        assert "comes to this rank only in a step that has reached the layer" in refused


def _of_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3, WIDTH)


def _file() -> str:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(np.ones(3 * WIDTH, "f4").tobytes())
    return file.name


INPUTS: dict[str, Any] = {
    "expanded": lambda: torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3)).expand(3, WIDTH),
    "of inference mode": _of_inference_mode,
    "read-only": lambda: torch.from_numpy(np.memmap(_file(), dtype="f4", mode="r", shape=(3, WIDTH))),
}


def inputs_of_others(_rank: int) -> dict[str, str]:
    """Call compiled linears with inputs that must not be written to."""
    told = {}
    for name, make in INPUTS.items():
        torch._dynamo.reset()
        shared = Shared(lambda: nn.Linear(WIDTH, WIDTH))
        for layer in (*shared.model.layers, *shared.control.layers):
            layer.compile(backend="aot_eager")
        x = make()
        version = 0 if x.is_inference() else x._version
        with torch.no_grad(), shared.series.step(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, about read-only arrays
            shared.series.reach(START)
            y = shared.model.layers[0](x)
        untouched = x.is_inference() or x._version == version
        with torch.no_grad():
            right = torch.equal(y, shared.control.layers[0](x))
        told[name] = "right" if right and untouched else f"equal {right}, untouched {untouched}"
        shared.series.close()
    return told


def test_compiled_code_does_not_write_to_its_input() -> None:
    """It may be shared, read-only, or in use elsewhere."""
    assert run_ranks(2, inputs_of_others) == [dict.fromkeys(INPUTS, "right")] * 2


def backward(_rank: int) -> str:
    """Compile with gradients, and request them."""
    torch._dynamo.reset()
    shared = Shared(lambda: nn.Linear(WIDTH, WIDTH))
    compiled: Any = torch.compile(shared.model, backend="aot_eager")
    try:
        with shared.series.step():
            y = compiled(torch.ones(3, WIDTH))
        y.sum().backward()
    except OrderError as error:
        return str(error)
    finally:
        shared.series.close()
    return "no error"


def test_gradients_of_compiled_code_are_refused_as_those_of_eager_code_are() -> None:
    """They would be computed from the weights that the windows hold by then."""
    for refused in run_ranks(2, backward):
        assert "a series serves inference only" in refused


@NEEDS_COMPILER
def test_what_inductor_generates_gives_what_resident_weights_give() -> None:
    """The same with generated code, through the original names."""
    assert run_ranks(2, compiled_steps, WITH_INDUCTOR) == [["right, 1 graphs"]] * 2


def test_an_observed_forward_compiles_to_one_graph_that_waits() -> None:
    """Reach and wait are operators in it, and every linear is waited for. Without a series it computes the same."""
    series = Series("s", RankGroup((0,), 0), 0, 3, settings=Settings(share=Share("none")))
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(x: Tensor) -> Tensor:
        for index, layer in enumerate(layers):
            series.reach(index)
            x = layer(x)
        return x

    x = torch.ones(1, 8)
    with torch.no_grad():
        expected = forward(x)
        for index, layer in enumerate(layers):
            series.register(index, layer)
        series.post_process()
        compiled: Any = torch.compile(forward, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            with series.step():
                assert torch.equal(compiled(x), expected)
    assert (series.statistics().steps, series.most_unwaited) == (2, 0)
    series.close()
