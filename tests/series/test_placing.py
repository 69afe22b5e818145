"""Layers as sets of tensors: what quant methods do to them, and what must survive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from swtrace.errors import OrderError, RegistrationError
from swtrace.series import Series
from swtrace.series.ideal import IdealChannel, IdealTransport
from swtrace.series.payload import ALIGNMENT, PayloadLayout
from tests.support.quant_methods import (
    Float8,
    QuantisedLinear,
    Quantising,
    QuantMethod,
    Replacing,
    Transposing,
    resident,
)
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


def test_a_layer_is_one_aligned_run_of_bytes() -> None:
    """Tensors of several dtypes, shapes and strides share one byte buffer, each aligned and with its own strides."""
    tensors = {
        "weight": torch.randn(3, 5).t(),
        "scale": torch.tensor(2.0),
        "zeros": torch.arange(7, dtype=torch.int16),
        "big": torch.randn(4, dtype=torch.float64),
    }
    layout = PayloadLayout.of(tensors)
    assert [place.offset % ALIGNMENT for place in layout.places] == [0, 0, 0, 0]
    assert layout.nbytes == layout.places[-1].offset + 32
    views = layout.views(torch.zeros(layout.nbytes, dtype=torch.uint8))
    for view, tensor in zip(views, tensors.values(), strict=True):
        view.copy_(tensor)
        assert (view.dtype, view.shape, view.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert torch.equal(view, tensor)


def test_biases_travel_with_their_weights() -> None:
    """A linear's bias, of another dtype, is part of its payload and arrives with it."""
    biases = [torch.full((WIDTH,), float(position), dtype=torch.float64) for position in range(LAYERS)]

    def program(transport: IdealTransport) -> None:
        series = Series("b", transport.group, 0, LAYERS, transport=transport)
        layers = [QuantisedLinear(QuantMethod(), bias=True) for _ in range(LAYERS)]
        for position, layer in enumerate(layers):
            series.register(position, layer)
            load(layer.bias, biases[position])
        series.post_process()
        for position, layer in enumerate(layers):
            series.reach(position)
            series.wait(position)
            assert torch.equal(layer.bias, biases[position])
        assert series.info.layer_bytes == WIDTH * WIDTH * 4 + WIDTH * 8

    IdealChannel(2).run(program)


def test_a_rank_that_is_not_the_source_loads_nothing() -> None:
    """Its bytes are freed at registration. Its loader is a no-op, and is restored after post-processing."""

    def program(transport: IdealTransport) -> None:
        series = Series("l", transport.group, 0, 2, prefetch_step=0, transport=transport)
        layers = [QuantisedLinear(QuantMethod()) for _ in range(2)]
        loaded: list[int] = []
        for position, layer in enumerate(layers):
            parameter: Any = layer.weight
            parameter.weight_loader = lambda _, __, position=position: loaded.append(position)
            before = parameter.weight_loader
            series.register(position, layer)
            load(layer.weight, torch.zeros(WIDTH, WIDTH))
        assert loaded == [transport.rank]
        series.post_process()
        parameter = layers[1].weight
        assert before is parameter.weight_loader

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


def test_the_loader_can_trigger_post_processing() -> None:
    """With ``auto_post_process`` the series is ready when the model's loader has asked for its last layer."""
    weights = true_weights(LAYERS)

    def program(transport: IdealTransport) -> bool:
        series = Series("a", transport.group, 0, LAYERS, transport=transport, auto_post_process=True)
        layers = [QuantisedLinear(QuantMethod()) for _ in range(LAYERS)]
        for position, layer in enumerate(layers):
            series.register(position, layer)
            load(layer.weight, weights[position])
        for layer in layers:
            assert not series.post_processed
            layer.quant_method.process_weights_after_loading(layer)
        return series.post_processed

    assert all(IdealChannel(2).run(program))
