"""What happens to weights before their series runs: loaded as usual; ties and odd tensors are refused on all ranks.

Two real ranks run many cases each, so that a case costs no process of its own.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from swtrace.errors import SwtraceError
from swtrace.series import RankGroup, Series
from tests.support.ranks import run_ranks
from tests.support.shared_blocks import LAYERS, RIGHT, WIDTH, Block, Case, With, outcome, with_both_windows


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


class Wrapped(Tensor):
    """A tensor that wraps another and has no memory of its own."""

    @staticmethod
    def __new__(cls: type[Self], kept: Tensor) -> Self:
        """Wrap a tensor."""
        wrapped: Self = Tensor._make_wrapper_subclass(cls, kept.shape, dtype=kept.dtype, device=kept.device)
        wrapped.kept = kept
        return wrapped

    kept: Tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute with the wrapped tensor."""
        arguments = [one.kept if isinstance(one, cls) else one for one in args]
        return operation(*arguments, **(kwargs or {}))


class Holding(nn.Module):
    """A module with one tensor, of any kind."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", tensor)


class Odd(nn.Module):
    """A block around it."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.linear = Holding(make())


def distributed_tensor() -> Tensor:
    """Return a tensor that is spread over both ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(torch.randn(WIDTH, WIDTH), init_device_mesh("cpu", (2,)), [Shard(0)])


def _of_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.randn(4, 4)


ODD: dict[str, Callable[[], Tensor]] = {
    "wrapper": lambda: Wrapped(torch.randn(4, 4)),
    "distributed": distributed_tensor,
    "sparse": lambda: torch.eye(4).to_sparse(),
    "compressed": lambda: torch.eye(4).to_sparse_csr(),
    "conjugate": lambda: torch.randn(4, 4, dtype=torch.complex64).conj(),
    "negative": lambda: torch.randn(4, 4, dtype=torch.complex64).conj().imag,
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8),
    "of inference mode": _of_inference_mode,
    "nested": lambda: torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged),
}


def _outside_tie(case: Case) -> None:
    case.blocks.head = nn.Linear(WIDTH, WIDTH)
    case.blocks.head.weight = case.blocks[2].linear.weight


def _frozen_tie(case: Case) -> None:
    _outside_tie(case)
    gc.freeze()


def _attribute(case: Case) -> None:
    case.blocks[0].cached = case.blocks[1].linear.weight.detach()


def _listed(case: Case) -> None:
    case.blocks[0].cached = ["of another block", case.blocks[1].linear.weight]


def _mapped(case: Case) -> None:
    case.blocks[0].cached = {"weight": case.blocks[1].linear.weight}


def _nested(case: Case) -> None:
    case.blocks[0].cached = {"weights": [(case.blocks[1].linear.weight,)]}


class Holder:
    """An object that is no module."""

    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


def _object(case: Case) -> None:
    case.blocks[0].helper = Holder(case.blocks[1].linear.weight)


def _partial(case: Case) -> None:
    case.blocks[0].head = functools.partial(nn.functional.linear, weight=case.blocks[1].linear.weight)


def _closure(case: Case) -> None:
    view = case.blocks[1].linear.weight.T
    case.blocks[0].head = lambda x: x @ view


def _default(case: Case) -> None:
    def head(x: Tensor, weight: Tensor = case.blocks[1].linear.weight) -> Tensor:
        return x @ weight

    case.blocks[0].head = head


def _hook(case: Case) -> None:
    weight = case.blocks[1].linear.weight
    case.blocks[0].register_forward_hook(lambda _block, _args, out: out @ weight)


def _unequal(case: Case) -> None:
    case.blocks[3].linear.double()


def _meta(case: Case) -> None:
    case.blocks[3].linear.to("meta")


SPOILT: dict[str, Callable[[Case], None]] = {
    "tied": _outside_tie,
    "tied, then frozen": _frozen_tie,
    "cached": _attribute,
    "in a list": _listed,
    "in a dict": _mapped,
    "in nested containers": _nested,
    "in an object": _object,
    "in a partial call": _partial,
    "in a closure": _closure,
    "in a default": _default,
    "in a hook": _hook,
    "unequal": _unequal,
    "meta": _meta,
}


def refuse_tensors(rank: int) -> dict[str, str]:
    """Register tensors that are not plain memory; spoil layers before post-processing, on both ranks or one."""

    def spoilt(name: str, program: Callable[[Case], None], where: Sequence[int]) -> str:
        case = Case(name, Block, "static", start=False)
        if rank in where:
            program(case)
        case.series.post_process()
        return case.run()

    told = {name: outcome(lambda: Case(name, lambda: Odd(make), "static").run()) for name, make in ODD.items()}  # noqa: B023
    for name, program in SPOILT.items():
        told[name] = outcome(lambda: spoilt(name, program, (0, 1)))  # noqa: B023
        told[f"{name} on one rank"] = outcome(lambda: spoilt(f"{name} on one rank", program, (1,)))  # noqa: B023
    told["tied layers"] = outcome(lambda: Case("tied layers", TiedLayers(), "static").run())
    return told


class TiedLayers:
    """Makes blocks that share one weight."""

    def __init__(self) -> None:
        self._weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def __call__(self) -> Block:
        """Return a block."""
        block = Block()
        block.linear.weight = self._weight
        return block


def test_tensors_that_are_not_the_layers_own_plain_memory_are_refused_on_all_ranks() -> None:
    """Subclasses, sparse and lazily changed tensors, ties, and layers that loading made unequal, even on one rank."""
    for told in run_ranks(2, refuse_tensors):
        assert len(told) == len(ODD) + 2 * len(SPOILT) + 1
        for case, text in told.items():
            assert text.startswith(f"RegistrationError: series {case!r}, rank "), f"{case}: {text}"
            assert ", layer " in text, f"{case}: {text}"


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
    for resident, weight in zip(case.resident, loaded.view(LAYERS, WIDTH, WIDTH), strict=True):
        resident.linear.weight.data.copy_(weight)
    case.series.post_process()
    told = case.run()
    flat.add_(1)
    return f"{told}; {outcome(case.run)}"


def test_a_flat_buffer_may_be_loaded_before_post_processing_and_not_written_after() -> None:
    """Weights that are views of one buffer hold what was loaded into it; a later write is refused by name."""
    for rank, told in enumerate(run_ranks(2, views_of_one_buffer)):
        assert told.startswith(f"right; StaleWindowError: series 'flat', rank {rank}, layer 0: weight was written to")


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


class Caching(nn.Module):
    """A linear that computes with something that its post-processing or first forward made from the weight."""

    def __init__(self, make: Callable[[Any], object], *, late: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.make = make
        self.late = late
        self.multiply: Any = None

    def process_weights_after_loading(self) -> None:
        """Make it."""
        if not self.late:
            self.multiply = self.make(self)

    def forward(self, x: Tensor) -> Tensor:
        """Compute with it."""
        if self.multiply is None:
            self.multiply = self.make(self)
        out: Tensor = self.multiply(x)
        return out


class CachingBlock(nn.Module):
    """A block around it."""

    def __init__(self, make: Callable[[Any], object], *, late: bool) -> None:
        super().__init__()
        self.linear = Caching(make, late=late)

    def forward(self, x: Tensor) -> Tensor:
        """See the linear."""
        return torch.tanh(self.linear(x))


def _by_view(linear: Any) -> object:
    view = linear.weight.detach().T
    return lambda x: x @ view


def _by_copy(linear: Any) -> object:
    copied = linear.weight.detach().T.clone()
    return lambda x: x @ copied


def _by_view_and_buffer(linear: Any) -> object:
    linear.register_buffer("zero", torch.zeros(1))  # other tensors than were registered, so the layer moves
    return _by_view(linear)


CACHED: dict[str, tuple[Callable[[Any], object], str]] = {
    "view, static": (_by_view, RIGHT),
    "view, rolling": (_by_view, "view of the weight"),
    "moved view, static": (_by_view_and_buffer, "view of the weight"),
    "moved view, rolling": (_by_view_and_buffer, "view of the weight"),
    "copy, static": (_by_copy, RIGHT),
    "copy, rolling": (_by_copy, RIGHT),
    "late view, static": (_by_view, RIGHT),
    "late view, rolling": (_by_view, RIGHT),
    "late copy, rolling": (_by_copy, RIGHT),
}


def cache(_rank: int) -> dict[str, str]:
    """Share linears that keep something made from their weight."""

    def program(name: str, make: Callable[[Any], object]) -> str:
        def block() -> CachingBlock:
            return CachingBlock(make, late=name.startswith("late"))

        case = Case("s", block, name.rpartition(", ")[2], start=False)
        for resident in case.resident:
            resident.linear.process_weights_after_loading()
        for shared in case.blocks:
            shared.linear.process_weights_after_loading()  # as a model's loader does
        case.series.post_process()
        return case.run()

    return {name: outcome(lambda name=name, make=make: program(name, make)) for name, (make, _) in CACHED.items()}  # type: ignore[misc]


def test_what_a_linear_keeps_of_its_weight_stays_right_or_is_refused() -> None:
    """An attribute that views memory that the layer leaves is found before it shows other bytes."""
    for rank, told in enumerate(run_ranks(2, cache)):
        assert len(told) == len(CACHED)
        for name, text in told.items():
            _, expected = CACHED[name]
            assert expected in text, f"{name}: {text}"
            assert text == RIGHT or f"Error: series 's', rank {rank}: " in text, f"{name}: {text}"


def views_of_their_own(_rank: int) -> tuple[str, str]:
    """Let linears keep a view of their weight as an attribute; compute with it, or make it again in each forward."""

    def program(*, again: bool) -> str:
        def compute(linear: Any, x: Tensor) -> Tensor:
            if again:
                linear.transposed = linear.weight.detach().T
            out: Tensor = x @ linear.transposed
            return out

        def block() -> With:
            made = With(compute)
            made.linear.transposed = made.linear.weight.detach().T
            return made

        return Case("s", block, "static").run()

    return outcome(lambda: program(again=False)), outcome(lambda: program(again=True))


def test_a_view_that_a_linear_has_of_its_weight_is_made_again_or_refused() -> None:
    """As spectral_norm makes its weight; reading the old view is refused by name."""
    for rank, (kept, again) in enumerate(run_ranks(2, views_of_their_own)):
        assert kept.startswith(f"StaleWindowError: series 's', rank {rank}, layer 0: Linear.transposed was a view of")
        assert again == RIGHT


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


def one_never_comes(rank: int, dies: bool) -> str:  # noqa: FBT001 (passed by position)
    """Let rank 1 register, and end or go on without post-processing."""
    import time

    case = Case("lonely", Block, "static", start=False)
    if rank == 1:
        time.sleep(0 if dies else 4)
        return RIGHT
    begin = time.monotonic()
    try:
        case.series.post_process()
    except SwtraceError as error:
        return f"{type(error).__name__}: {error}; {'soon' if time.monotonic() - begin < 30 else 'late'}"
    return "not refused"


@pytest.mark.parametrize("dies", [False, True])
def test_a_peer_that_never_comes_is_named_within_the_timeout(dies: bool) -> None:  # noqa: FBT001 (pytest's way)
    """``SWTRACE_TIMEOUT`` also applies before the first broadcast, and the error names the missing rank."""
    told, _ = run_ranks(2, one_never_comes, dies, environment={"SWTRACE_TIMEOUT": "1"})
    assert told.startswith("PeerLostError: series 'lonely', rank 0: rank 1 did not start post-processing within 1 s")
    assert told.endswith("soon")
