"""A layer is one run of bytes, whatever tensors it consists of."""

from __future__ import annotations

import torch

from swtrace.series import Series
from swtrace.series.ideal import IdealChannel, IdealTransport
from swtrace.series.payload import ALIGNMENT, PayloadLayout, packed
from tests.support.quant_methods import QuantisedLinear, QuantMethod
from tests.support.stacks import WIDTH, load

LAYERS = 5


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


def test_a_tensor_that_fills_its_payload_is_sent_from_where_it_lies() -> None:
    """A weight alone costs no copy; several tensors, or a view of larger memory, are moved together."""
    alone = {"weight": torch.randn(4, 4).t()}
    pointer = alone["weight"].data_ptr()
    assert packed(PayloadLayout.of(alone), alone).data_ptr() == pointer == alone["weight"].data_ptr()
    for tensors in ({"weight": torch.randn(8, 4)[2:6]}, {"weight": torch.randn(4, 4), "bias": torch.randn(4)}):
        layout = PayloadLayout.of(tensors)
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        buffer = packed(layout, tensors)
        assert buffer.numel() == layout.nbytes
        for place, (name, tensor) in zip(layout.places, tensors.items(), strict=True):
            assert tensor.data_ptr() == buffer.data_ptr() + place.offset
            assert torch.equal(tensor, before[name])


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
