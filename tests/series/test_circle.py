"""A forward that fails, or never waits, does not break the next one, and the ranks stay in step."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from swtrace.series import Series
from swtrace.series.ideal import IdealChannel, IdealTransport
from tests.support.stacks import ForwardDiedError, Stack, true_weights

LAYERS = 6
POLICIES = ["static", "rolling"]


def make(transport: IdealTransport, prefetch_step: int, windows: str, num_layers: int = LAYERS) -> Stack:
    series = Series(
        "s", transport.group, 1, 1 + num_layers, prefetch_step=prefetch_step, windows=windows, transport=transport
    )
    stack = Stack(series, 1, true_weights(num_layers))
    series.post_process()
    return stack


@pytest.mark.parametrize("windows", POLICIES)
@pytest.mark.parametrize("prefetch_step", [0, 1, 2, 4])
@pytest.mark.parametrize("who", [[0], [1], [0, 1]])
def test_the_step_after_an_aborted_one_is_right(who: list[int], prefetch_step: int, windows: str) -> None:
    """Wherever a forward fails, on one rank or on all, marked or not, every later step is right."""

    def program(transport: IdealTransport) -> list[bool]:
        stack = make(transport, prefetch_step, windows)
        equal = []
        for stop_at in range(1, LAYERS):
            if transport.rank in who:
                with suppress(ForwardDiedError):
                    stack.forward(1, stop_at=(stop_at + transport.rank) % (LAYERS - 1) + 1)
            else:
                equal.append(stack.forward(1))
            equal += [stack.forward(step) for step in (2, 3)]
        for stop_at in range(LAYERS):
            with suppress(ForwardDiedError), stack.series.step():
                stack.forward(1, stop_at=stop_at if transport.rank in who else None)
            equal.append(stack.forward(2))
        return equal

    for equal in IdealChannel(2).run(program):
        assert all(equal)


def test_a_step_issues_every_layer_once_whatever_the_forward_did() -> None:
    """Aborted at once, aborted midway, reached without waits or complete: L operations each, in circle order."""
    channel = IdealChannel(2, occupancy_ns=5)

    def program(transport: IdealTransport) -> tuple[int, int, int]:
        stack = make(transport, 2, "static")
        series = stack.series
        with suppress(ForwardDiedError), series.step():
            raise ForwardDiedError
        with suppress(ForwardDiedError):
            stack.forward(0, stop_at=3 + transport.rank)
        for layer_idx in range(1, 1 + LAYERS):
            series.reach(layer_idx)
        stack.forward(0)
        series.end_step()
        with series.step():
            pass
        statistics = series.statistics()
        return statistics.steps, statistics.aborted_steps, statistics.operations

    assert channel.run(program) == [(4, 2, 4 * LAYERS)] * 2
    sources = [operation.source for operation in channel.schedule()]
    circle = [(1 + (position + 2) % LAYERS) % 2 for position in range(LAYERS)]
    assert sources == circle * 4


@pytest.mark.parametrize("windows", POLICIES)
@pytest.mark.parametrize("prefetch_step", [0, 1, 3])
def test_a_profile_run_that_never_waits_is_harmless(prefetch_step: int, windows: str) -> None:
    """Forwards that reach every layer and wait for none leave the next one right."""

    def program(transport: IdealTransport) -> bool:
        stack = make(transport, prefetch_step, windows)
        for _ in range(3):
            for layer_idx in range(1, 1 + LAYERS):
                stack.series.reach(layer_idx)
        return stack.forward(1) and stack.forward(2)

    assert all(IdealChannel(2).run(program))


@pytest.mark.parametrize("windows", POLICIES)
def test_every_prefetch_step_up_to_the_last_works(windows: str) -> None:
    """For L up to 7 and each k from 0 to L - 2, on 2, 3 and 4 ranks, all steps equal resident weights."""

    def program(transport: IdealTransport, num_layers: int, prefetch_step: int) -> bool:
        stack = make(transport, prefetch_step, windows, num_layers)
        return all(stack.forward(step, before=lambda: transport.compute(100)) for step in range(4))

    for world_size in (2, 3, 4):
        for num_layers in range(2, 8):
            for prefetch_step in range(num_layers - 1):
                channel = IdealChannel(world_size, latency_ns=7, occupancy_ns=130)
                assert all(channel.run(lambda t, n=num_layers, k=prefetch_step: program(t, n, k)))  # type: ignore[misc]


def test_an_interrupted_wait_can_be_repeated() -> None:
    """A wait that an exception interrupts has not happened: the next one of the step waits again."""

    def program(transport: IdealTransport) -> None:
        stack = make(transport, 0, "static")
        series = stack.series
        series.reach(1)
        series.reach(2)
        layer: Any = series._circle._layers[2]  # type: ignore[union-attr]
        if layer.owned:
            return
        operation = layer.operation
        layer.operation = SimpleNamespace(wait=interrupt)
        with pytest.raises(KeyboardInterrupt):
            series.wait(2)
        layer.operation = operation
        series.wait(2)
        assert layer.operation is None
        assert torch.equal(layer.module.weight, stack.weights[1])

    def interrupt() -> None:
        raise KeyboardInterrupt

    IdealChannel(2).run(program)
