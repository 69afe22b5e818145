"""Failures of one rank during post-processing end every rank with an error at once."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from swtrace.errors import DisagreementError, RegistrationError, SeriesError
from swtrace.series import RankGroup, Series
from swtrace.series.ideal import IdealChannel, IdealTransport
from tests.support.ranks import run_ranks
from tests.support.stacks import Stack, true_weights

LAYERS = 5
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


def script(_rank: int) -> str:
    """Register what torch.jit made."""
    scripted = torch.jit.script(nn.Linear(2, 2))
    try:
        Series("s", RankGroup.world(), 0, LAYERS).register(0, scripted)
    except SeriesError as error:
        return str(error)
    return ""


def test_a_torch_jit_module_is_refused() -> None:
    """Its code would record no waits."""
    for told in run_ranks(2, script):
        assert "layer 0: is a torch.jit module" in told


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


def test_a_layer_that_the_model_skips_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A step may skip a linear that it has reached; a warning says so, in case it was a mistake."""

    def program(transport: IdealTransport) -> int:
        series = Series("s", transport.group, 0, LAYERS, transport=transport)
        stack = Stack(series, 0, true_weights(LAYERS))
        series.post_process()
        stack.layers[SPOILT].forward = lambda x: x
        for _ in range(2):
            stack.forward(1)
        return series.most_unwaited

    with caplog.at_level(logging.WARNING, "swtrace"):
        assert IdealChannel(2).run(program) == [1, 1]
    told = sorted(record.getMessage() for record in caplog.records)
    assert [text.partition(":")[2].partition(" layers")[0] for text in told] == [
        f" series 's', rank 0: a step did not wait for 1 of {LAYERS}",
        f" series 's', rank 1: a step did not wait for 1 of {LAYERS}",
    ]
