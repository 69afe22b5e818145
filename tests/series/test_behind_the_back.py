"""Weights that are read, replaced, tied, copied or loaded without the series: right, or refused by name on all ranks.

Two real ranks run many cases each, so that a case costs no process of its own.
"""

from __future__ import annotations

import copy
import functools
import gc
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Self

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, vector_to_parameters

from swtrace.errors import SeriesError, SwtraceError
from swtrace.series import RankGroup, Series

LAYERS = 5
WIDTH = 16
STEPS = 3
RIGHT = "right"


class Block(nn.Module):
    """A linear and something around it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Run the linear."""
        return torch.tanh(self.linear(x))


class Attention(nn.Module):
    """An attention whose ``out_proj`` is read, and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    @property
    def linear(self) -> nn.Module:
        """What is shared."""
        return self.attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """Attend to itself."""
        attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return attended


class Encoder(nn.Module):
    """An encoder layer, which computes in one fused operation in inference."""

    def __init__(self, path: str = "self_attn.out_proj") -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, batch_first=True, dropout=0.0)
        self.path = path

    @property
    def linear(self) -> nn.Module:
        """What is shared."""
        return self.layer.get_submodule(self.path)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        encoded: Tensor = self.layer(x)
        return encoded


class Elsewhere(Block):
    """Computes with the linear's tensors, and never calls it."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.tanh(x @ self.linear.weight.T + self.linear.bias)


class Changed(Block):
    """A linear that something was done to before it is shared."""

    def __init__(self, change: Callable[[nn.Linear], object]) -> None:
        super().__init__()
        change(self.linear)


class BuffersOnly(nn.Module):
    """A quantised linear as AutoGPTQ makes it: there is no Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(-127, 127, (WIDTH, WIDTH), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return nn.functional.linear(x, self.codes.float() * self.scales[:, None] / 127)  # type: ignore[index, operator]


class Buffers(nn.Module):
    """A block around it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = BuffersOnly()

    def forward(self, x: Tensor) -> Tensor:
        """See the linear."""
        return torch.tanh(self.linear(x))


class Recurrent(nn.Module):
    """A recurrent layer, whose tensors torch keeps in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        out: Tensor = self.linear(x)[0]
        return out


def _stack(make: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(7)
    return nn.ModuleList(make() for _ in range(LAYERS)).eval()


class Case:
    """Blocks of one kind on this rank, and the same resident."""

    def __init__(self, name: str, make: Callable[[], nn.Module], windows: str, *, start: bool = True) -> None:
        with torch.no_grad():
            self.blocks, self.resident = _stack(make), _stack(make)
        self.x = torch.randn(2, 3, WIDTH)
        self.series = Series(name, RankGroup.world(), 0, LAYERS, windows=windows)
        for layer_idx, block in enumerate(self.blocks):
            self.series.register(layer_idx, block.linear)
        if start:
            self.series.post_process()

    def forward(self) -> Tensor:
        """Run the shared blocks."""
        x = self.x
        with torch.no_grad(), self.series.step():
            for layer_idx, block in enumerate(self.blocks):
                self.series.reach(layer_idx)
                x = block(x)
        return x

    def run(self, steps: int = STEPS) -> str:
        """Return whether so many steps give what resident weights give."""
        for _ in range(steps):
            got, x = self.forward(), self.x
            with torch.no_grad():
                for block in self.resident:
                    x = block(x)
            if not torch.equal(got, x):
                return "wrong"
        return RIGHT


def outcome(program: Callable[[], str | None]) -> str:
    """Return what a program returned, or the error of swtrace that it ended with."""
    try:
        return program() or RIGHT
    except SeriesError as error:
        return f"{type(error).__name__}: {error}"
    except RuntimeError as error:
        return f"bare RuntimeError: {error}"


def _prune(linear: nn.Module) -> None:
    prune.l1_unstructured(linear, "weight", amount=0.5)  # type: ignore[no-untyped-call]


def _prune_rows(linear: nn.Module) -> None:
    prune.ln_structured(linear, "weight", amount=0.5, n=2, dim=0)  # type: ignore[no-untyped-call]


MADE: dict[str, Callable[[], nn.Module]] = {
    "block": Block,
    "prune": lambda: Changed(_prune),
    "structured prune": lambda: Changed(_prune_rows),
    "weight norm": lambda: Changed(nn.utils.weight_norm),
    "spectral norm": lambda: Changed(nn.utils.spectral_norm),
    "parametrized weight norm": lambda: Changed(parametrizations.weight_norm),
    "parametrized spectral norm": lambda: Changed(parametrizations.spectral_norm),
    "orthogonal": lambda: Changed(parametrizations.orthogonal),
    "attention": Attention,
    "encoder layer": Encoder,
    "second linear of an encoder layer": lambda: Encoder("linear2"),
    "read elsewhere": Elsewhere,
    "buffers only": Buffers,
    "recurrent": Recurrent,
}


def read(_rank: int) -> dict[str, str]:
    """Share layers that are read in many ways."""
    return {
        f"{name}, {windows}": outcome(lambda make=make, windows=windows: Case("s", make, windows).run())  # type: ignore[misc]
        for name, make in MADE.items()
        for windows in ("static", "rolling")
    }


def test_a_weight_may_be_read_before_or_without_its_forward() -> None:
    """Pre-hooks that make it, parents that read it and fused paths get the bytes of resident weights."""
    for told in run_ranks(2, read):
        assert told == dict.fromkeys(told, RIGHT)
        assert len(told) == 2 * len(MADE)


def _move(case: Case, change: Callable[[Any], object]) -> str:
    change(case.blocks)
    return case.run(2)


def _low_rank(blocks: Any) -> None:
    with torch.no_grad():
        for block in blocks:
            block.linear.weight.add_(1)


def _low_rank_data(blocks: Any) -> None:
    for block in blocks:
        block.linear.weight.data.add_(1)


def _replace(blocks: Any) -> None:
    for block in blocks:
        block.linear.weight = nn.Parameter(torch.ones(WIDTH, WIDTH))


def _replace_data(blocks: Any) -> None:
    for block in blocks:
        block.linear.weight.data = torch.ones(WIDTH, WIDTH)


def _functional(case: Case) -> str:
    case.forward()
    tensors = {f"linear.{name}": torch.ones_like(value) for name, value in (("weight", torch.ones(WIDTH, WIDTH)),)}
    with torch.no_grad(), case.series.step():
        case.series.reach(0)
        torch.func.functional_call(case.blocks[0], tensors, (case.x,))
    return "not refused"


def _backward(case: Case) -> str:
    x = case.x.clone().requires_grad_()
    with case.series.step():
        for layer_idx, block in enumerate(case.blocks):
            case.series.reach(layer_idx)
            x = block(x)
    x.sum().backward()  # type: ignore[no-untyped-call]
    return "not refused"


def _trained(case: Case) -> str:
    for parameter in case.blocks.parameters():
        parameter.grad = torch.ones(parameter.shape)
    torch.optim.SGD(case.blocks.parameters(), lr=1.0).step()
    return case.run(2)


def _after_close(case: Case) -> str:
    case.forward()
    case.series.close()
    with torch.no_grad():
        case.blocks[0](case.x)
    return "not refused"


def _read_after_close(case: Case) -> str:
    case.forward()
    case.series.close()
    for block in case.blocks:
        nn.functional.linear(case.x, block.linear.weight)
    return "not refused"


def _read_outside(case: Case) -> str:
    case.forward()
    for block in case.blocks:
        nn.functional.linear(case.x, block.linear.weight)
    return "not refused"


def _traced(case: Case) -> str:
    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = case.blocks

        def forward(self, x: Tensor) -> Tensor:
            for layer_idx, block in enumerate(self.blocks):
                case.series.reach(layer_idx)
                x = block(x)
            return x

    with torch.no_grad():
        torch.jit.trace(Forward(), (case.x,))  # type: ignore[no-untyped-call]
    return "not refused"


REFUSED: dict[str, Callable[[Case], str | None]] = {
    "double": lambda case: _move(case, lambda blocks: blocks.double()),
    "half": lambda case: _move(case, lambda blocks: blocks.half()),
    "to meta": lambda case: _move(case, lambda blocks: blocks.to("meta")),
    "share memory": lambda case: _move(case, lambda blocks: blocks.share_memory()),
    "low rank update": lambda case: _move(case, _low_rank),
    "low rank update of data": lambda case: _move(case, _low_rank_data),
    "replaced": lambda case: _move(case, _replace),
    "data replaced": lambda case: _move(case, _replace_data),
    "vector to parameters": lambda case: _move(
        case, lambda blocks: vector_to_parameters(torch.ones(LAYERS * (WIDTH * WIDTH + WIDTH)), blocks.parameters())
    ),
    "pruned": lambda case: _move(case, lambda blocks: _prune(blocks[0].linear)),
    "load_state_dict": lambda case: _move(case, lambda blocks: blocks.load_state_dict(case.resident.state_dict())),
    "load_state_dict by assignment": lambda case: _move(
        case, lambda blocks: blocks.load_state_dict(case.resident.state_dict(), assign=True)
    ),
    "state_dict": lambda case: str(case.blocks.state_dict()),
    "deep copy": lambda case: str(copy.deepcopy(case.blocks)),
    "pickle": lambda case: str(pickle.dumps(case.blocks)),
    "functional call": _functional,
    "backward": _backward,
    "optimizer": _trained,
    "used after close": _after_close,
    "read after close": _read_after_close,
    "read outside of a step": _read_outside,
    "traced": _traced,
}


def refuse(_rank: int) -> dict[str, str]:
    """Do to running series what they cannot bear."""
    told = {}
    for windows in ("static", "rolling"):
        for name, program in REFUSED.items():
            told[f"{name}, {windows}"] = outcome(lambda program=program: program(Case(name, Block, windows)))  # type: ignore[misc]  # noqa: B023
    return told


def test_what_a_running_series_cannot_bear_is_refused_by_name() -> None:
    """Conversions, writes, copies, training and use after close: an error that names series, rank and layer."""
    for rank, told in enumerate(run_ranks(2, refuse)):
        assert len(told) == 2 * len(REFUSED)
        for case, text in told.items():
            name = case.rpartition(", ")[0]
            assert f"Error: series {name!r}, rank {rank}, layer " in text, f"{case}: {text}"
            assert not text.startswith("bare"), f"{case}: {text}"


def harmless(_rank: int) -> dict[str, str]:
    """Do to running series what changes nothing."""

    def looked_at(case: Case) -> str:
        assert sum(p.numel() for p in case.blocks.parameters()) == LAYERS * (WIDTH * WIDTH + WIDTH)
        assert {p.dtype for p in case.blocks.parameters()} == {torch.float32}
        assert {str(block.linear.weight.device) for block in case.blocks} == {"cpu"}
        assert all(isinstance(p, nn.Parameter) for p in case.blocks.parameters())
        case.blocks.to("cpu").float().train().eval().requires_grad_(requires_grad=False)
        repr(case.blocks)
        return case.run()

    def wrapped(case: Case) -> str:
        calls = []

        def counting(forward: Callable[..., Any], *args: Any) -> Any:
            calls.append(1)
            return forward(*args)

        for block in case.blocks:
            block.linear.forward = functools.partial(counting, block.linear.forward)
        told = case.run()
        case.series.close()
        kept = all(isinstance(block.linear.forward, functools.partial) for block in case.blocks)
        return told if kept and len(calls) == STEPS * LAYERS else "the wrapper is gone"

    programs = {"looked at": looked_at, "wrapped": wrapped}
    return {name: outcome(lambda p=program: p(Case("s", Block, "static"))) for name, program in programs.items()}  # type: ignore[misc]


def test_what_changes_nothing_is_let_through() -> None:
    """Shapes, dtypes and conversions to what is there already; a later wrapper of forward outlives the series."""
    assert run_ranks(2, harmless) == [{"looked at": RIGHT, "wrapped": RIGHT}] * 2


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

    return {
        f"{name}, {windows}": outcome(lambda load=load, windows=windows: program(load, windows))  # type: ignore[misc]
        for name, load in LOADED.items()
        for windows in ("static", "rolling")
    }


def test_weights_load_as_usual_before_post_processing() -> None:
    """load_state_dict, also strict or by assignment, copies into parameters and conversions all work."""
    for told in run_ranks(2, load_in_many_ways):
        assert told == dict.fromkeys(told, RIGHT)
        assert len(told) == 2 * len(LOADED)


class Wrapped(Tensor):
    """A tensor without memory of its own."""

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
        """Compute with what is inside."""
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


ODD: dict[str, Callable[[], Tensor]] = {
    "wrapper": lambda: Wrapped(torch.randn(4, 4)),
    "distributed": distributed_tensor,
    "sparse": lambda: torch.eye(4).to_sparse(),
    "compressed": lambda: torch.eye(4).to_sparse_csr(),
    "conjugate": lambda: torch.randn(4, 4, dtype=torch.complex64).conj(),
    "negative": lambda: torch.randn(4, 4, dtype=torch.complex64).conj().imag,
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8),
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
    "unequal": _unequal,
    "meta": _meta,
}


def refuse_tensors(rank: int) -> dict[str, str]:
    """Register tensors that are no plain memory; spoil layers, on both ranks or one, before post-processing."""

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
    """Makes blocks that have one weight in common."""

    def __init__(self) -> None:
        self._weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def __call__(self) -> Block:
        """Return a block."""
        block = Block()
        block.linear.weight = self._weight
        return block


def test_tensors_that_are_not_the_layers_own_plain_memory_are_refused_on_all_ranks() -> None:
    """Subclasses, sparse and lazily changed tensors; ties; layers that loading made unequal, if only on one rank."""
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
    """Weights that are views of one buffer have what was loaded into it; a later write to it is refused by name."""
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
    """What forward writes into a layer's buffer would be lost, or sent to the peers meanwhile: refused at once."""
    for rank, told in enumerate(run_ranks(2, buffers_that_forward_writes)):
        assert told.startswith(f"StaleWindowError: series 'counting', rank {rank}, layer 0: scale was written to")


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
    """``SWTRACE_TIMEOUT`` holds before the first broadcast, too, and the error says who is missing."""
    told, _ = run_ranks(2, one_never_comes, dies, environment={"SWTRACE_TIMEOUT": "1"})
    assert told.startswith("PeerLostError: series 'lonely', rank 0: rank 1 did not come to post-processing within 1 s")
    assert told.endswith("soon")
