"""A layer's own calls: what its hooks cannot make wait, or would make wrong, is refused by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swtrace.errors import SeriesError
from swtrace.series import RankGroup, Series
from tests.support.ranks import run_ranks
from tests.support.shared_blocks import WIDTH, Case, outcome

LAYERS = 5


class Several(nn.Linear):
    """A linear that returns its result deep inside other objects."""

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, list[Tensor]]]:  # type: ignore[override]
        """See the class."""
        y = super().forward(x)
        return {"y": (y.detach(), [y])}


def train(_rank: int) -> str:
    """Request the gradient of such a linear's result."""
    series = Series("s", RankGroup.world(), 0, LAYERS)
    layers = [Several(4, 4) for _ in range(LAYERS)]
    for layer_idx, layer in enumerate(layers):
        series.register(layer_idx, layer)
    series.post_process()
    total = torch.zeros(())
    with series.step():
        for layer_idx, layer in enumerate(layers):
            series.reach(layer_idx)
            total = total + layer(torch.ones(4))["y"][1][0].sum()
    try:
        total.backward()  # type: ignore[no-untyped-call]
    except SeriesError as error:
        return str(error)
    return ""


def test_a_gradient_is_refused_however_deep_the_result_lies() -> None:
    """A linear may return its result in tuples and dicts."""
    for rank, told in enumerate(run_ranks(2, train)):
        assert told.startswith(f"series 's', rank {rank}, layer ")
        assert "backward" in told


def buffers_that_forward_writes(_rank: int) -> str:
    """Share layers whose forward keeps a running value in a buffer."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            self.scale.mul_(1.5)  # type: ignore[operator]
            return nn.functional.linear(x, self.weight) * self.scale  # type: ignore[operator]

    class CountingBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = Counting()

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x))

    case = Case("counting", CountingBlock, "static")
    return outcome(case.run)


def test_buffers_that_forward_writes_are_refused_by_name() -> None:
    """A forward's write to a layer's buffer would be lost, or sent to the peers, so it is refused at once."""
    for rank, told in enumerate(run_ranks(2, buffers_that_forward_writes)):
        assert told.startswith(f"StaleWindowError: series 'counting', rank {rank}, layer 0: scale was written to")
