"""Weights load as usual between registration and post-processing, and ranks keep only their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from swtrace.series import Series
from swtrace.series.ideal import IdealChannel, IdealTransport
from tests.support.quant_methods import QuantisedLinear, Quantising, QuantMethod, resident
from tests.support.ranks import run_ranks
from tests.support.shared_blocks import LAYERS, RIGHT, WIDTH, Block, Case, outcome, with_both_windows
from tests.support.stacks import load, true_weights

X = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


def _copied(case: Case, checkpoint: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in case.blocks.named_parameters():
            parameter.copy_(checkpoint[name])


def _data_copied(case: Case, checkpoint: dict[str, Tensor]) -> None:
    for name, parameter in case.blocks.named_parameters():
        parameter.data.copy_(checkpoint[name])


def _loaded_then_halved(case: Case, checkpoint: dict[str, Tensor]) -> None:
    case.blocks.load_state_dict(checkpoint)
    case.blocks.bfloat16()
    case.resident.bfloat16()
    case.x = case.x.bfloat16()


LOADED: dict[str, Callable[[Case, dict[str, Tensor]], object]] = {
    "strict": lambda case, checkpoint: case.blocks.load_state_dict(checkpoint),
    "not strict": lambda case, checkpoint: case.blocks.load_state_dict(checkpoint, strict=False),
    "assigned": lambda case, checkpoint: case.blocks.load_state_dict(checkpoint, assign=True),
    "copied": _copied,
    "data copied": _data_copied,
    "converted": _loaded_then_halved,
}


def load_in_many_ways(_rank: int) -> dict[str, str]:
    """Load between registration and post-processing."""

    def program(load: Callable[[Case, dict[str, Tensor]], object], windows: str) -> str:
        case = Case("s", Block, windows, start=False)
        torch.manual_seed(11)
        checkpoint = {name: torch.randn(tensor.shape) for name, tensor in case.resident.state_dict().items()}
        case.resident.load_state_dict(checkpoint)
        load(case, checkpoint)
        case.series.post_process()
        return case.run()

    return with_both_windows(LOADED, program)


def test_weights_load_as_usual_before_post_processing() -> None:
    """load_state_dict (also strict or by assignment), copies into parameters and conversions all work."""
    for told in run_ranks(2, load_in_many_ways):
        assert told == dict.fromkeys(told, RIGHT)
        assert len(told) == 2 * len(LOADED)


def views_of_one_buffer(_rank: int) -> str:
    """Make all weights views of one flat buffer, and load that after registration."""
    flat = torch.zeros(LAYERS * WIDTH * WIDTH)
    views = iter(flat.view(LAYERS, WIDTH, WIDTH))

    def block() -> Block:
        made = Block()
        made.linear.weight = nn.Parameter(next(views, torch.zeros(WIDTH, WIDTH)))
        return made

    case = Case("flat", block, "static", start=False)
    loaded = torch.randn(flat.shape, generator=torch.Generator().manual_seed(3))
    flat.copy_(loaded)
    for kept, weight in zip(case.resident, loaded.view(LAYERS, WIDTH, WIDTH), strict=True):
        kept.linear.weight.data.copy_(weight)
    case.series.post_process()
    told = case.run()
    flat.add_(1)
    return f"{told}; {outcome(case.run)}"


def test_a_flat_buffer_may_be_loaded_before_post_processing_and_not_written_after() -> None:
    """Weights that are views of one buffer hold what was loaded into it; a later write is refused by name."""
    for rank, told in enumerate(run_ranks(2, views_of_one_buffer)):
        assert told.startswith(f"right; StaleWindowError: series 'flat', rank {rank}, layer 0: weight was written to")


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


def test_registrations_can_be_undone_before_loading() -> None:
    """After a series is withdrawn while the model is built, every layer can be loaded as if it was never shared."""
    weights = true_weights(LAYERS)

    def program(transport: IdealTransport) -> bool:
        series = Series("u", transport.group, 0, LAYERS, transport=transport)
        layers = [QuantisedLinear(Quantising(), bias=True) for _ in weights]
        loaded: list[int] = []
        for position, layer in enumerate(layers[:-1]):
            parameter: Any = layer.weight

            def loader(tensor: Tensor, value: Tensor, position: int = position) -> None:
                loaded.append(position)
                tensor.data.copy_(value)

            parameter.weight_loader = loader
            series.register(position, layer)
        series.withdraw()
        for layer, weight in zip(layers, weights, strict=True):
            assert layer.weight.shape == (WIDTH, WIDTH)
            assert layer.bias.shape == (WIDTH,)
            load(layer.weight, weight)
            layer.quant_method.process_weights_after_loading(layer)
        assert loaded == list(range(LAYERS - 1))
        return all(
            torch.equal(layer(X), resident(Quantising, weight)(X))
            for layer, weight in zip(layers, weights, strict=True)
        )

    assert all(IdealChannel(2).run(program))
