"""What a series refuses, with a named error that says which series, layer and rank."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import swtrace.series
from swtrace.errors import (
    DisagreementError,
    OrderError,
    PeerLostError,
    RegistrationError,
    SettingsError,
    StaleWindowError,
)
from swtrace.series import RankGroup, Series
from swtrace.series.ideal import IdealChannel, IdealTransport
from tests.support.stacks import Stack, plain_linear, true_weights

LAYERS = 5
PAIR = RankGroup((4, 6), 1)
WHERE = "series 's', rank 6"


def with_series(program: Callable[[Series], None], prefetch_step: int = 1, windows: str = "static") -> None:
    """Run ``program`` on two ranks, each with a ready series of layers 3 to 7."""

    def body(transport: IdealTransport) -> None:
        series = Series(
            "s", transport.group, 3, 3 + LAYERS, prefetch_step=prefetch_step, windows=windows, transport=transport
        )
        Stack(series, 3, true_weights(LAYERS))
        series.post_process()
        program(series)

    IdealChannel(2).run(body)


def test_a_group_of_one_rank_has_nothing_to_share() -> None:
    """World size 1 is refused at construction, as are dense replicas, which are groups of one."""
    with pytest.raises(RegistrationError, match=r"series 's', rank 0: a group of 1 rank has nothing to share"):
        Series("s", RankGroup((0,), 0), 0, 4)


@pytest.mark.parametrize("prefetch_step", [-1, 3, 4])
def test_the_prefetch_step_is_bounded(prefetch_step: int) -> None:
    """The prefetch step must be within 0 and L - 2; the message names the setting."""
    with pytest.raises(RegistrationError, match=rf"{WHERE}: prefetch step {prefetch_step}: .* SWTRACE_PREFETCH_STEP"):
        Series("s", PAIR, 0, 4, prefetch_step=prefetch_step)


def test_one_layer_is_no_series() -> None:
    """A series has at least two layers."""
    with pytest.raises(RegistrationError, match=r"layers \[3, 4\) are not a series"):
        Series("s", PAIR, 3, 4, prefetch_step=0)


def test_an_unknown_policy_is_a_wrong_setting() -> None:
    """The error names the unknown window policy, and those that exist."""
    with pytest.raises(SettingsError, match=r"'both': must be one of: auto, rolling, static"):
        Series("s", PAIR, 0, 4, windows="both")


def test_layers_are_registered_once_in_range_and_alike() -> None:
    """Out of range, twice, one module as two layers, or of unequal shape: refused at registration."""
    series = Series("s", PAIR, 3, 6)
    first = plain_linear(0)
    series.register(3, first)
    with pytest.raises(RegistrationError, match=rf"{WHERE}, layer 6: not within \[3, 6\)"):
        series.register(6, plain_linear(0))
    with pytest.raises(RegistrationError, match=rf"{WHERE}, layer 3: registered twice"):
        series.register(3, plain_linear(0))
    with pytest.raises(
        RegistrationError, match=rf"{WHERE}, layer 4: its module is already registered as another layer"
    ):
        series.register(4, first)
    with pytest.raises(
        RegistrationError,
        match=r"layer 4: its tensors differ from those of layer 3: it has weight float32\[3, 2\]; layer 3 has",
    ):
        series.register(4, nn.Linear(2, 3, bias=False))
    with pytest.raises(RegistrationError, match=r"layer 4: its tensors differ from those of layer 3"):
        series.register(4, plain_linear(0).to(torch.float64))


def test_a_refused_layer_is_left_as_it_was() -> None:
    """A layer that does not fit keeps its weight and its forward: the caller may use it unshared."""
    series = Series("s", PAIR, 3, 6)
    series.register(3, plain_linear(0))
    odd = nn.Linear(2, 3, bias=False)
    before = odd.weight.detach().clone()
    with pytest.raises(RegistrationError):
        series.register(4, odd)
    assert torch.equal(odd.weight, before)
    assert "forward" not in vars(odd)


def test_missing_layers_are_named_on_all_ranks() -> None:
    """If a layer was never registered, every rank says so before anything is broadcast."""

    def program(transport: IdealTransport) -> None:
        series = Series("s", transport.group, 0, 4, transport=transport)
        for layer_idx in (0, 2):
            series.register(layer_idx, plain_linear(0))
        with pytest.raises(OrderError, match=r"layers 1, 3 were never registered"):
            series.reach(0)
        with pytest.raises(RegistrationError, match=r"layers 1, 3 were never registered"):
            series.post_process()

    IdealChannel(2).run(program)


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"name": "t"}, r"name: rank 0 has s; rank 1 has t"),
        ({"end_layer": 6}, r"num layers: rank 0 has 5; rank 1 has 6"),
        ({"prefetch_step": 2}, r"prefetch step: rank 0 has 1; rank 1 has 2"),
        ({"windows": "rolling"}, r"window policy: rank 0 has static; rank 1 has rolling"),
        ({"start_layer": 1, "end_layer": 6}, r"start layer: rank 0 has 0; rank 1 has 1"),
        ({"dtype": torch.float64}, r"tensors: rank 0 has weight float32\[16, 16\]; rank 1 has weight float64"),
        ({"time_every": 3}, r"time every: rank 0 has auto; rank 1 has 3"),
        ({"missing": 2}, r"missing layers: rank 0 has \(\); rank 1 has \(2,\)"),
    ],
)
def test_ranks_that_disagree_say_who_differs_in_what(difference: dict[str, object], message: str) -> None:
    """Ranks that describe different series all raise the same error, before a byte is broadcast."""

    def program(transport: IdealTransport) -> None:
        values: dict[str, object] = {"name": "s", "start_layer": 0, "end_layer": 5, "prefetch_step": 1}
        values |= {"windows": "static", "dtype": torch.float32, "missing": None}
        if transport.rank == 1:
            values |= difference
        dtype, missing = values.pop("dtype"), values.pop("missing")
        series = Series(group=transport.group, transport=transport, **values)  # type: ignore[arg-type]
        for layer_idx in range(values["start_layer"], values["end_layer"]):  # type: ignore[call-overload]
            if layer_idx != missing:
                series.register(layer_idx, plain_linear(0).to(dtype))  # type: ignore[call-overload]
        with pytest.raises(DisagreementError, match=message):
            series.post_process()

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
        with pytest.raises(OrderError, match=r"layer 8: not within \[3, 8\)"):
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


def test_post_processing_happens_once() -> None:
    """A second post-processing, or a registration after it, is refused; so is any use after close."""

    def program(series: Series) -> None:
        with pytest.raises(OrderError, match="post-processed twice"):
            series.post_process()
        with pytest.raises(RegistrationError, match="after post-processing"):
            series.register(3, plain_linear(0))
        series.close()
        with pytest.raises(OrderError, match="after close"):
            series.reach(3)

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


def test_no_check_vanishes_under_optimisation() -> None:
    """The runtime has no ``assert``: under ``python -O`` it checks as much as without."""
    folder = Path(swtrace.series.__file__).parent
    for path in folder.glob("*.py"):
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)], path
