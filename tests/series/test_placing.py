"""Whatever post-processing does to a layer, its windows hold the right bytes, or all ranks get an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swtrace.errors import DisagreementError, OrderError, RegistrationError, SeriesError
from swtrace.series import RankGroup, Series
from swtrace.series.ideal import IdealChannel, IdealTransport
from tests.support.quant_methods import (
    Float8,
    QuantisedLinear,
    Quantising,
    QuantMethod,
    Replacing,
    Transposing,
    resident,
)
from tests.support.ranks import run_ranks
from tests.support.shared_blocks import RIGHT, Case, outcome
from tests.support.stacks import WIDTH, load, true_weights

LAYERS = 5


@pytest.mark.parametrize("windows", ["static", "rolling"])
@pytest.mark.parametrize("sharing", ["one quant method for all layers", "one each"])
@pytest.mark.parametrize("make", [QuantMethod, Replacing, Transposing, Quantising, Float8])
def test_post_processing_may_replace_transpose_or_repack(
    make: Callable[[], QuantMethod], sharing: str, windows: str
) -> None:
    """Whatever post-processing does to the tensors, every step computes the same as a resident layer.

    One quant method instance may serve all layers, and outsiders: none is processed twice, none chains into another.
    """
    weights = true_weights(LAYERS)
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = [resident(make, weight)(x) for weight in weights]

    def program(transport: IdealTransport) -> None:
        series = Series("q", transport.group, 2, 2 + LAYERS, prefetch_step=1, windows=windows, transport=transport)
        one = make()
        layers = []
        for position, weight in enumerate(weights):
            layer = QuantisedLinear(make() if sharing == "one each" else one)
            series.register(2 + position, layer)
            load(layer.weight, weight)
            layers.append(layer)
        outsider = QuantisedLinear(one)
        outsider.weight.data.copy_(weights[0])
        for layer in [*layers, outsider]:
            layer.quant_method.process_weights_after_loading(layer)
        assert one.processed == [id(outsider)]
        series.post_process()
        for layer in layers:
            assert layer.quant_method.processed.count(id(layer)) == 1
            assert "process_weights_after_loading" not in vars(layer.quant_method)
        assert torch.equal(outsider(x), expected[0])
        for _ in range(4):
            for position, layer in enumerate(layers):
                series.reach(2 + position)
                assert torch.equal(layer(x), expected[position])
        series.close()
        assert torch.equal(outsider(x), expected[0])
        with pytest.raises(OrderError, match="used after close"):
            layers[0](x)

    IdealChannel(2).run(program)


def test_a_weight_that_moves_into_the_kernel_is_refused() -> None:
    """A quant method that leaves no tensor on the layer keeps the weight elsewhere, so nothing can be shared."""

    class Packing(QuantMethod):
        def process_weights_after_loading(self, layer: Any) -> None:
            layer.weight = nn.Parameter(torch.empty(0))

    def program(transport: IdealTransport) -> None:
        series = Series("p", transport.group, 0, 2, prefetch_step=0, transport=transport)
        for position in range(2):
            series.register(position, QuantisedLinear(Packing()))
        said = r"series 'p', rank \d: cannot be shared: Packing left layer 0 without a tensor"
        with pytest.raises(RegistrationError, match=said):
            series.post_process()

    IdealChannel(2).run(program)


SPOILT = 3


class Processed(nn.Linear):
    """A linear whose post-processing may fail or change the weight's type."""

    def __init__(self, how: str) -> None:
        super().__init__(4, 4, bias=False)
        self.how = how

    def process_weights_after_loading(self) -> None:
        """See the class."""
        if self.how == "fails":
            message = "no room for the scales"
            raise ValueError(message)
        if self.how == "differs":
            self.weight.data = self.weight.data.double()


def post_process(rank: int, how: str, where: tuple[int, ...]) -> tuple[str, str]:
    """Share layers of which one fails or differs on some ranks; return the error."""
    series = Series("s", RankGroup.world(), 0, LAYERS)
    for layer_idx in range(LAYERS):
        series.register(layer_idx, Processed(how if layer_idx == SPOILT and rank in where else ""))
    try:
        series.post_process()
    except SeriesError as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize("where", [(0,), (1,), (0, 1)])
def test_a_layer_whose_post_processing_raises_is_an_error_on_all_ranks(where: tuple[int, ...]) -> None:
    """With series, rank and layer where it is raised; elsewhere as a disagreement that quotes it."""
    for rank, (kind, told) in enumerate(run_ranks(2, post_process, "fails", where)):
        assert kind == (RegistrationError if rank in where else DisagreementError).__name__
        assert f", layer {SPOILT}: Processed raised ValueError: no room for the scales" in told
        assert told.startswith("series 's', rank ")


@pytest.mark.parametrize("where", [(0,), (1,)])
def test_a_layer_that_differs_on_one_rank_is_named_on_all(where: tuple[int, ...]) -> None:
    """Post-processing that leaves other tensors on one rank is a disagreement that says which."""
    for kind, told in run_ranks(2, post_process, "differs", where):
        assert kind == DisagreementError.__name__
        assert f"layer {SPOILT} differs from the others after post-processing" in told


class Caching(nn.Module):
    """A linear that computes with something that its post-processing or first forward made from the weight."""

    def __init__(self, make: Callable[[Any], object], *, late: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.make = make
        self.late = late
        self.multiply: Any = None

    def process_weights_after_loading(self) -> None:
        """Make it."""
        if not self.late:
            self.multiply = self.make(self)

    def forward(self, x: Tensor) -> Tensor:
        """Compute with it."""
        if self.multiply is None:
            self.multiply = self.make(self)
        out: Tensor = self.multiply(x)
        return out


class CachingBlock(nn.Module):
    """A block around it."""

    def __init__(self, make: Callable[[Any], object], *, late: bool) -> None:
        super().__init__()
        self.linear = Caching(make, late=late)

    def forward(self, x: Tensor) -> Tensor:
        """See the linear."""
        return torch.tanh(self.linear(x))


def _by_view(linear: Any) -> object:
    view = linear.weight.detach().T
    return lambda x: x @ view


def _by_copy(linear: Any) -> object:
    copied = linear.weight.detach().T.clone()
    return lambda x: x @ copied


def _by_view_and_buffer(linear: Any) -> object:
    linear.register_buffer("zero", torch.zeros(1))  # other tensors than were registered, so the layer moves
    return _by_view(linear)


CACHED: dict[str, tuple[Callable[[Any], object], str]] = {
    "view, static": (_by_view, RIGHT),
    "view, rolling": (_by_view, "view of the weight"),
    "moved view, static": (_by_view_and_buffer, "view of the weight"),
    "moved view, rolling": (_by_view_and_buffer, "view of the weight"),
    "copy, static": (_by_copy, RIGHT),
    "copy, rolling": (_by_copy, RIGHT),
    "late view, static": (_by_view, RIGHT),
    "late view, rolling": (_by_view, RIGHT),
    "late copy, rolling": (_by_copy, RIGHT),
}


def cache(_rank: int) -> dict[str, str]:
    """Share linears that keep something made from their weight."""

    def program(name: str, make: Callable[[Any], object]) -> str:
        def block() -> CachingBlock:
            return CachingBlock(make, late=name.startswith("late"))

        case = Case("s", block, name.rpartition(", ")[2], start=False)
        for kept in case.resident:
            kept.linear.process_weights_after_loading()
        for shared in case.blocks:
            shared.linear.process_weights_after_loading()  # as a model's loader does
        case.series.post_process()
        return case.run()

    return {name: outcome(lambda name=name, make=make: program(name, make)) for name, (make, _) in CACHED.items()}  # type: ignore[misc]


def test_what_a_linear_keeps_of_its_weight_stays_right_or_is_refused() -> None:
    """An attribute that views memory that the layer leaves is found before it shows other bytes."""
    for rank, told in enumerate(run_ranks(2, cache)):
        assert len(told) == len(CACHED)
        for name, text in told.items():
            _, expected = CACHED[name]
            assert expected in text, f"{name}: {text}"
            assert text == RIGHT or f"Error: series 's', rank {rank}: " in text, f"{name}: {text}"
