"""Weights and views that a program holds beyond the layer's turn: they stay true, and cost their memory while held.

Two real ranks run all cases, with static and rolling windows.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.ranks import run_ranks
from tests.support.shared_blocks import LAYERS, RIGHT, Block, Case, With, with_both_windows

Forward = Callable[[Any, Callable[[int], object], Tensor], Tensor]
"""Of blocks, with what to call on arrival at a layer."""


def _collected(blocks: Any, reach: Callable[[int], object], x: Tensor) -> Tensor:
    """Use the weights when all layers have run."""
    weights = []
    for layer_idx, block in enumerate(blocks):
        reach(layer_idx)
        x = block(x)
        weights.append(block.linear.weight)
    return torch.stack([weight.norm() for weight in weights])


def _collected_by_hooks(blocks: Any, reach: Callable[[int], object], x: Tensor) -> Tensor:
    views: list[Tensor] = []
    handles = [block.linear.register_forward_hook(lambda m, _args, _out: views.append(m.bias[:4])) for block in blocks]
    for layer_idx, block in enumerate(blocks):
        reach(layer_idx)
        x = block(x)
    for handle in handles:
        handle.remove()
    return torch.cat(views)


def _compared(blocks: Any, reach: Callable[[int], object], x: Tensor) -> Tensor:
    """Compare each weight with the one before."""
    differences = []
    last = None
    for layer_idx, block in enumerate(blocks):
        reach(layer_idx)
        x = block(x)
        weight = block.linear.weight
        if last is not None:
            differences.append((weight - last).norm())
        last = weight
    return torch.stack(differences)


def _passed_on(blocks: Any, reach: Callable[[int], object], x: Tensor) -> Tensor:
    """Let views of the weights be results, which are used in the end."""
    rows = []
    for layer_idx, block in enumerate(blocks):
        reach(layer_idx)
        x = block(x)
        rows.append(block.linear.bias.expand(2, -1))
    return torch.cat(rows) + x.sum()


WITHIN_A_STEP: dict[str, Forward] = {
    "collected": _collected,
    "collected by hooks": _collected_by_hooks,
    "compared": _compared,
    "passed on": _passed_on,
}


def _both(case: Case, forward: Forward) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what shared and resident weights give, step by step."""
    while True:
        with torch.no_grad(), case.series.step():
            shared = forward(case.blocks, case.series.reach, case.x)
        with torch.no_grad():
            yield shared, forward(case.resident, lambda _: None, case.x)


def within_a_step(_rank: int) -> dict[str, str]:
    """Hold weights until a step's end."""

    def program(forward: Forward, windows: str) -> str:
        case = Case("s", Block, windows)
        for _, (shared, resident) in zip(range(3), _both(case, forward), strict=False):
            if not torch.equal(shared, resident):
                return "wrong"
        return RIGHT if case.series.statistics().kept_layers else "nothing was kept"

    return with_both_windows(WITHIN_A_STEP, program)


def test_what_a_step_holds_until_its_end_stays_right() -> None:
    """Weights that are collected, compared or returned are those of their layers."""
    for told in run_ranks(2, within_a_step):
        assert told == dict.fromkeys(told, RIGHT)
        assert len(told) == 2 * len(WITHIN_A_STEP)


def _parameter(linear: nn.Linear) -> Tensor:
    return linear.weight


def _view(linear: nn.Linear) -> Tensor:
    return linear.weight.detach()


def _numpy(linear: nn.Linear) -> Tensor:
    return torch.from_numpy(linear.weight.detach().numpy())


def for_ever(_rank: int) -> dict[str, str]:
    """Hold the first step's weights and compute with them from then on; then release them."""

    def program(keep: Callable[[nn.Linear], Tensor], windows: str) -> str:
        kept: dict[nn.Linear, Tensor] = {}

        def compute(linear: nn.Linear, x: Tensor) -> Tensor:
            if linear not in kept:
                kept[linear] = keep(linear)
            return nn.functional.linear(x, kept[linear])

        case = Case("s", lambda: With(compute), windows)
        received = LAYERS - case.series.statistics().owned_layers
        told = case.run(4)
        held = case.series.statistics().kept_layers
        kept.clear()
        case.run(2)
        kept.clear()
        for block in case.blocks:
            block.compute = lambda linear, x: linear(x)
        for block in case.resident:
            block.compute = lambda linear, x: linear(x)
        again = case.run(3)
        left = case.series.statistics().kept_layers
        return told if (held, again, left) == (received, RIGHT, 0) else f"{told}, kept {held}, {again}, left {left}"

    return with_both_windows({keep.__name__: keep for keep in (_parameter, _view, _numpy)}, program)


def test_what_is_held_from_step_to_step_stays_right_and_is_released() -> None:
    """Each received layer has memory of its own while its weight, or a view of it, is held, and no longer."""
    for told in run_ranks(2, for_ever):
        assert told == dict.fromkeys(told, RIGHT)
        assert len(told) == 6


def held_by_a_frame(_rank: int) -> list[int]:
    """Leave the last weight in a local variable, as a loop does; return how many layers are kept after each step."""
    case = Case("s", Block, "static")
    kept = []
    for _ in range(3):
        x = case.x
        with torch.no_grad(), case.series.step():
            for layer_idx, block in enumerate(case.blocks):
                case.series.reach(layer_idx)
                weight = block.linear.weight
                x = torch.tanh(x @ weight.T + block.linear.bias)
        kept.append(case.series.statistics().kept_layers)
    del weight
    case.run(1)
    return [*kept, case.series.statistics().kept_layers]


def test_a_variable_that_a_loop_leaves_costs_one_layer() -> None:
    """No more with every step, and nothing once it is gone."""
    for kept in run_ranks(2, held_by_a_frame):
        assert max(kept) <= 2
        assert kept[-1] <= 1


def _elsewhere(linear: nn.Linear, x: Tensor) -> Tensor:
    """Let autograd save a view of the weight."""
    return x @ linear.weight.T


def _scaled(linear: nn.Linear, x: Tensor) -> Tensor:
    """Let autograd save a Parameter itself."""
    return x * linear.bias


def in_a_backward(_rank: int) -> dict[str, str]:
    """Compute with weights without calling their linears, and request gradients once their windows are reused."""

    def gradient(blocks: Any, x: Tensor, reach: Callable[[int], object]) -> Tensor:
        x = start = x.clone().requires_grad_()
        for layer_idx, block in enumerate(blocks):
            reach(layer_idx)
            x = block(x)
        x.sum().backward()  # type: ignore[no-untyped-call]
        assert start.grad is not None
        return start.grad

    def program(compute: Callable[[nn.Linear, Tensor], Tensor], windows: str) -> str:
        case = Case("s", lambda: With(compute), windows)
        with case.series.step():
            got = gradient(case.blocks, case.x, case.series.reach)
        return RIGHT if torch.equal(got, gradient(case.resident, case.x, lambda _: None)) else "wrong"

    return with_both_windows({compute.__name__: compute for compute in (_elsewhere, _scaled)}, program)


def test_gradients_through_what_was_read_from_a_window_are_right() -> None:
    """An autograd graph holds what it needs. If swtrace cannot see that, as in older torch, torch refuses."""
    for told in run_ranks(2, in_a_backward):
        assert len(told) == 4
        for name, text in told.items():
            assert text == RIGHT or (name.startswith("_scaled") and "modified by an inplace operation" in text), text


def told_once(_rank: int) -> list[str]:
    """Hold all weights for three steps; return what was logged."""
    import logging

    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logging.getLogger("swtrace").addHandler(Listener())
    case = Case("s", Block, "static")
    for _ in zip(range(3), _both(case, _collected), strict=False):
        gc.collect()
    return messages


def test_holding_weights_is_logged_once_with_its_cost() -> None:
    """The log names series, rank and the first layer, and says what helps."""
    for rank, messages in enumerate(run_ranks(2, told_once)):
        (message,) = messages
        assert message.startswith(f"swtrace: series 's', rank {rank}, layer ")
        assert "its memory is kept until that reference is gone" in message
        assert "read the weight from its module in each step" in message
