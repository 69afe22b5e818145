"""Reach, wait and steps in order: misuse is refused by name, and a failed forward leaves the next one right."""

from __future__ import annotations

import logging
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from swtrace.errors import OrderError, PeerLostError, StaleWindowError
from swtrace.series import Series
from swtrace.series.ideal import IdealChannel, IdealTransport
from tests.support.stacks import ForwardDiedError, Stack, true_weights, with_series

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


def test_reaching_out_of_order_is_refused() -> None:
    """A layer reached twice, skipped, or not of the series is named, and the step can go on."""

    def program(series: Series) -> None:
        with pytest.raises(OrderError, match=r"layer 4: reached out of order; layer 3 comes next"):
            series.reach(4)
        series.reach(3)
        series.reach(4)
        with pytest.raises(OrderError, match=r"series 's', rank \d, layer 4: reached twice in step 0; layer 5 comes"):
            series.reach(4)
        with pytest.raises(OrderError, match=r"layer 7: reached out of order; layer 5 comes next"):
            series.reach(7)
        with pytest.raises(OrderError, match=r"layer 8: not a layer of the series"):
            series.reach(8)
        for layer_idx in (5, 6, 7):
            series.reach(layer_idx)
            series.wait(layer_idx)

    with_series(program)


def test_the_first_layer_reached_twice_in_a_marked_step_is_refused() -> None:
    """Between begin_step and end_step a second reach of the first layer is a mistake, not a new step."""

    def program(series: Series) -> None:
        series.begin_step()
        series.reach(3)
        with pytest.raises(OrderError, match=r"layer 3: reached twice"):
            series.reach(3)
        series.end_step(aborted=True)

    with_series(program)


def test_waiting_without_reaching_is_refused() -> None:
    """A wait for a layer that the forward has not reached in this step would read arbitrary bytes."""

    def program(series: Series) -> None:
        with pytest.raises(OrderError, match=r"layer 3: waited for outside a step"):
            series.wait(3)
        series.reach(3)
        with pytest.raises(OrderError, match=r"series 's', rank \d, layer 4: waited for, but not reached"):
            series.wait(4)
        with pytest.raises(OrderError, match=r"layer 2: not a layer of the series"):
            series.wait(2)
        for layer_idx in range(4, 8):
            series.reach(layer_idx)

    with_series(program)


@pytest.mark.parametrize("windows", ["static", "rolling"])
def test_a_linear_that_runs_too_late_does_not_read_another_layer(windows: str) -> None:
    """If a layer's window was given to a later layer, its wait is refused instead of returning wrong bytes."""

    def program(series: Series) -> None:
        rank = series.info.rank_in_group
        mine = 3 if rank == 0 else 4
        for layer_idx in range(3, 8):
            series.reach(layer_idx)
        with pytest.raises(StaleWindowError, match=rf"layer {mine}: .* window \d (holds|is being filled)"):
            series.wait(mine)

    with_series(program, windows=windows)


def test_a_second_wait_in_a_step_is_free_until_the_window_is_gone() -> None:
    """Waiting again for a layer is a no-op, and refused once its window holds another layer."""

    def program(series: Series) -> None:
        mine = 3 if series.info.rank_in_group == 0 else 4
        for layer_idx in range(3, mine + 1):
            series.reach(layer_idx)
        series.wait(mine)
        series.wait(mine)
        for layer_idx in range(mine + 1, 8):
            series.reach(layer_idx)
        with pytest.raises(StaleWindowError):
            series.wait(mine)

    with_series(program)


def test_a_rank_that_runs_fewer_steps_is_named() -> None:
    """If a rank runs fewer steps, the ranks that go on get an error, and the same error again on the next call."""

    def program(transport: IdealTransport) -> None:
        series = Series("s", transport.group, 0, 4, transport=transport)
        Stack(series, 0, true_weights(4))
        series.post_process()
        for step in range(3):
            if transport.rank == 1 and step == 2:
                return
            for layer_idx in range(4):
                if step == 2 and layer_idx == 1:
                    message = r"series 's', rank 0, layer 1: did not arrive from rank 1, its source.*rank 1 left"
                    series.reach(1)
                    for _ in range(2):
                        with pytest.raises(PeerLostError, match=message):
                            series.wait(1)
                    with pytest.raises(PeerLostError, match=message):
                        series.reach(2)
                    return
                series.reach(layer_idx)
                series.wait(layer_idx)

    IdealChannel(2).run(program)


def test_a_layer_that_the_model_skips_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A step may skip a linear that it has reached; a warning says so, in case it was a mistake."""

    def program(transport: IdealTransport) -> int:
        series = Series("s", transport.group, 0, LAYERS, transport=transport)
        stack = Stack(series, 0, true_weights(LAYERS))
        series.post_process()
        stack.layers[3].forward = lambda x: x
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
