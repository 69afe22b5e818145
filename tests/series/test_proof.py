"""The proof that a matmul reads its window: what it accepts, what it rejects, and what remains afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swtrace.errors import OrderError, RegistrationError
from swtrace.series import Series
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
from tests.support.stacks import WIDTH, load, true_weights

LAYERS = 5
X = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


class PrivateCopy(QuantMethod):
    """Multiplies with a copy of the weight, and leaves the weight where it was."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        layer.copy = [layer.weight.data.clone()]

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.linear(x, layer.copy[0])


class PrivateScale(QuantMethod):
    """Reads its weight in place, but keeps a small private copy: its scale."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        layer.scale = float(layer.weight.data.abs().amax())
        layer.weight.data /= layer.scale

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.linear(x, layer.weight * layer.scale)


class Packing(QuantMethod):
    """Moves the weight into a kernel's keeping; only a scale stays, which it reads. As oneDNN's int8 does."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        layer.packed = [layer.weight.data.clone()]
        layer.scale = nn.Parameter(layer.weight.data.abs().amax(dim=1), requires_grad=False)
        layer.weight = None

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        result: Tensor = nn.functional.linear(x, layer.packed[0]) * layer.scale
        return result


class Swallowing(Packing):
    """Leaves no tensor on the layer."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        layer.packed = [layer.weight.data.clone()]
        layer.weight = None

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.linear(x, layer.packed[0])


class Breaking(QuantMethod):
    """Cannot be called before the model serves."""

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        raise NotImplementedError("not now")


class Aliasing(Packing):
    """Moves nothing, but always reads the weight's first address, which works only for memory of its own."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        scale = layer.weight.data.abs().amax(dim=1)
        layer.packed = [layer.weight.data]
        layer.scale = nn.Parameter(scale, requires_grad=False)
        layer.weight = None


class Remembering(QuantMethod):
    """Reads its weight through a view of its own, so it does not see where the weight is moved."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """See the class."""
        layer.packed = [layer.weight.data]

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.linear(x, layer.packed[0])


def _try_out(layer: Any) -> Tensor:
    result: Tensor = layer.quant_method.apply(layer, X)
    return result


def _shared(
    make: Callable[[], QuantMethod],
    weights: list[Tensor],
    *,
    windows: str = "static",
    ranks: int = 2,
    look: Callable[[Series, list[QuantisedLinear]], Any] = lambda _series, _layers: None,
) -> list[tuple[list[str], Any]]:
    """Share ``weights`` and return, by rank, why the series was withdrawn, and what ``look`` saw then."""

    def program(transport: IdealTransport) -> tuple[list[str], Any]:
        reasons: list[str] = []
        series = Series(
            "q",
            transport.group,
            0,
            len(weights),
            windows=windows,
            transport=transport,
            hook_forward=False,
            try_out=_try_out,
            withdrawn=reasons.append,
        )
        layers = [QuantisedLinear(make()) for _ in weights]
        for position, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
            series.register(position, layer)
            load(layer.weight, weight)
        series.post_process()
        return reasons, look(series, layers)

    return list(IdealChannel(ranks).run(program))


@pytest.mark.parametrize("windows", ["static", "rolling"])
@pytest.mark.parametrize("make", [QuantMethod, Replacing, Transposing, Quantising, Float8])
def test_methods_that_read_the_window_are_accepted(make: Callable[[], QuantMethod], windows: str) -> None:
    """Methods that multiply with the window's bytes are shared, and every weight is unchanged."""
    weights = true_weights(LAYERS)
    expected = [resident(make, weight)(X) for weight in weights]

    def look(series: Series, layers: list[QuantisedLinear]) -> bool:
        equal = True
        for _ in range(3):
            for position, layer in enumerate(layers):
                series.reach(position)
                series.wait(position)
                equal &= torch.equal(layer(X), expected[position])
        return equal

    assert _shared(make, weights, windows=windows, look=look) == [([], True)] * 2


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("windows", ["static", "rolling"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (PrivateCopy, "PrivateCopy does not give layer . the result of layer .* a private copy"),
        (PrivateScale, "PrivateScale does not give layer . the result of layer .* a private copy"),
        (Packing, "Packing does not give layer . the result of layer .* a private copy"),
        (Aliasing, "Aliasing does not give layer . the result of layer .* a private copy"),
        (Swallowing, "Swallowing left layer . without a tensor to share"),
    ],
)
def test_private_copies_are_found_and_nothing_is_lost(
    make: Callable[[], QuantMethod], said: str, windows: str, ranks: int
) -> None:
    """A method with a private copy is named in the reason, on all ranks, and every rank has every layer whole."""
    weights = true_weights(LAYERS)
    expected = [resident(make, weight)(X) for weight in weights]

    def look(series: Series, layers: list[QuantisedLinear]) -> tuple[bool, bool]:
        equal = all(torch.equal(layer(X), result) for layer, result in zip(layers, expected, strict=True))
        return series.withdrawn, equal

    first, *others = _shared(make, weights, windows=windows, ranks=ranks, look=look)
    assert [first] * (ranks - 1) == others
    (reasons, seen) = first
    assert seen == (True, True)
    (reason,) = reasons
    assert pytest.raises(RegistrationError, match=said).matches(RegistrationError(reason))


def test_equal_layers_hide_nothing() -> None:
    """If all layers have equal weights, as dummy weights do, a private copy is found because the window is unread."""
    weights = true_weights(1) * LAYERS
    for reasons, _ in _shared(PrivateCopy, weights):
        assert reasons == ["PrivateCopy does not read weight: the weight may be elsewhere"]


def test_a_weight_of_zeros_proves_nothing() -> None:
    """If no disturbance can show, the series is refused."""
    for reasons, _ in _shared(QuantMethod, [torch.zeros(WIDTH, WIDTH)] * LAYERS):
        assert reasons == ["QuantMethod has only zeros to multiply with: the weight may be elsewhere"]


def test_two_layers_on_two_ranks_are_enough() -> None:
    """A rank that receives only one layer finds a private copy through the layer that it owns."""
    assert all("a private copy" in reasons[0] for reasons, _ in _shared(PrivateScale, true_weights(3)))


def test_a_method_that_cannot_be_tried_stops_start_up() -> None:
    """If it cannot be proved that the weights are whole, every rank gets an error."""
    with pytest.raises(RegistrationError, match=r"Breaking could not be tried out on layer 1: NotImplementedError"):
        _shared(Breaking, true_weights(LAYERS))


def test_weights_that_cannot_be_restored_stop_start_up() -> None:
    """A method that reads where its weight lay before it was moved is found: an error, not a wrong result."""
    said = r"Remembering reads memory that layer \d no longer uses; and layer \d gives a different result"
    with pytest.raises(RegistrationError, match=said):
        _shared(Remembering, true_weights(LAYERS + 2), windows="rolling")


def test_a_withdrawn_series_has_ended() -> None:
    """Its reach says why nothing is shared."""

    def look(series: Series, _layers: list[QuantisedLinear]) -> None:
        with pytest.raises(OrderError, match=r"rank .: PrivateCopy does not give"):
            series.reach(0)

    _shared(PrivateCopy, true_weights(LAYERS), look=look)
