"""The public interface of a series: what it refuses to register, and when it has ended."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import swtrace.series
from swtrace.errors import OrderError, RegistrationError, SeriesError
from swtrace.series import RankGroup, Series
from tests.support.ranks import run_ranks
from tests.support.shared_blocks import RIGHT, Block, Case, outcome
from tests.support.stacks import plain_linear, with_series

LAYERS = 5
PAIR = RankGroup((4, 6), 1)
WHERE = "series 's', rank 6"


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


def test_a_resident_layer_is_left_alone() -> None:
    """Registering a layer that is not shared changes nothing about it; layers outside the stack are refused."""
    series = Series("s", PAIR, 3, 8, layers=(4, 6, 7))
    resident = plain_linear(0)
    before = dict(vars(resident)), resident.weight, resident.weight.data_ptr()
    series.register(5, resident)
    series.register(5, plain_linear(1))
    assert (dict(vars(resident)), resident.weight, resident.weight.data_ptr()) == before
    assert type(resident).forward is nn.Linear.forward
    assert type(resident) is nn.Linear
    with pytest.raises(RegistrationError, match=rf"{WHERE}, layer 8: not within \[3, 8\)"):
        series.register(8, resident)
    with pytest.raises(OrderError, match=r"layers 4, 6, 7 were never registered"):
        series.reach(4)


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


def test_no_check_vanishes_under_optimisation() -> None:
    """The runtime has no ``assert``: under ``python -O`` it checks as much as without."""
    folder = Path(swtrace.series.__file__).parent
    for path in folder.glob("*.py"):
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)], path


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


def used_again(_rank: int) -> list[str]:
    """Share linears that another series has, or had until it was closed."""

    def another(case: Case, name: str) -> str:
        case.series = Series(name, RankGroup.world(), 0, LAYERS)
        for layer_idx, block in enumerate(case.blocks):
            case.series.register(layer_idx, block.linear)
        case.series.post_process()
        return case.run()

    def program(*, close: bool, load: bool) -> str:
        case = Case("first", Block, "static")
        case.forward()
        if close:
            case.series.close()
        if load:
            values = {name: value.clone() for name, value in case.resident.state_dict().items()}
            case.blocks.load_state_dict(values, assign=True)
        return another(case, "second")

    return [outcome(lambda c=c, load=load: program(close=c, load=load)) for c, load in ((0, 0), (1, 0), (1, 1))]  # type: ignore[misc]


def test_a_linear_of_another_series_is_refused_until_that_is_closed_and_the_weight_is_loaded_again() -> None:
    """Each refusal says why; then the linear may be shared again."""
    for rank, (shared, gone, loaded) in enumerate(run_ranks(2, used_again)):
        where = f"RegistrationError: series 'second', rank {rank}, layer"
        assert shared == f"{where} 0: its module or one of its submodules is registered in another series"
        assert gone.startswith(
            f"{where} {1 - rank}: weight has no values: series 'first', rank {rank}, layer {1 - rank}"
        )
        assert gone.endswith("weight is gone: the series was closed; load it again, by assignment")
        assert loaded == RIGHT


def end_early(_rank: int) -> dict[str, str]:
    """End a series between registration and post-processing."""

    def program(name: str) -> str:
        case = Case(name, Block, "static", start=False)
        if name == "loaded":
            case.blocks.load_state_dict(case.resident.state_dict())
        if name == "closed":
            case.series.close()
        else:
            case.series.withdraw()
        case.series.post_process()
        return "not refused"

    return {name: outcome(lambda name=name: program(name)) for name in ("closed", "withdrawn", "loaded")}  # type: ignore[misc]


def test_a_series_that_has_ended_is_not_post_processed() -> None:
    """A series whose weights were loaded is not withdrawn either, because each rank has discarded most of them."""
    for rank, told in enumerate(run_ranks(2, end_early)):
        assert told == {
            "closed": f"OrderError: series 'closed', rank {rank}: post-processed after it was closed",
            "withdrawn": f"OrderError: series 'withdrawn', rank {rank}: post-processed after it was withdrawn",
            "loaded": f"OrderError: series 'loaded', rank {rank}, layer 0: withdrawn after its weights were loaded",
        }
