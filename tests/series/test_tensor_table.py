"""Weights of a running series that are read, written, replaced or copied without it: right, or refused by name.

Two real ranks run many cases each, so that a case costs no process of its own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, prune, vector_to_parameters

from swtrace.errors import StaleWindowError
from tests.support.ranks import run_ranks
from tests.support.shared_blocks import LAYERS, RIGHT, STEPS, WIDTH, Block, Case, With, outcome, with_both_windows


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


def _elsewhere(linear: nn.Linear, x: Tensor) -> Tensor:
    """Compute with the linear's tensors, and never call it."""
    return x @ linear.weight.T + linear.bias


def _table(linear: nn.Linear, x: Tensor) -> Tensor:
    """Read the table of parameters, not the attributes."""
    return nn.functional.linear(x, **linear._parameters)  # type: ignore[arg-type]


def _table_copied(linear: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, **linear._parameters.copy())  # type: ignore[arg-type]


def _vmapped(linear: nn.Linear, x: Tensor) -> Tensor:
    mapped: Tensor = torch.func.vmap(linear)(x)
    return mapped


class Changed(Block):
    """A linear that was changed before it is shared."""

    def __init__(self, change: Callable[[nn.Linear], object]) -> None:
        super().__init__()
        change(self.linear)


class BuffersOnly(nn.Module):
    """A quantised linear as AutoGPTQ makes it, without a Parameter."""

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
    "read elsewhere": lambda: With(_elsewhere),
    "table": lambda: With(_table),
    "table copied": lambda: With(_table_copied),
    "vmap": lambda: With(_vmapped),
    "buffers only": Buffers,
    "recurrent": Recurrent,
}


def read(_rank: int) -> dict[str, str]:
    """Share layers whose weights are read in many ways."""
    return with_both_windows(MADE, lambda make, windows: Case("s", make, windows).run())


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


def _merged(write: Callable[[Any], object]) -> Callable[[Case], str]:
    """Let a pre-hook of each linear write to its weight, as adapters are merged."""

    def program(case: Case) -> str:
        for block in case.blocks:
            block.linear.register_forward_pre_hook(lambda linear, _args: write(linear))
        case.forward()
        return "not refused"

    return program


def _in_inference_mode(linear: nn.Linear) -> None:
    with torch.inference_mode():
        linear.weight.mul_(1.5)


def _with_numpy(linear: nn.Linear) -> None:
    linear.weight.detach().numpy()[:] *= 1.5


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


def _recorded(case: Case) -> str:
    with torch.no_grad(), case.series.step():
        x = case.x
        for layer_idx, block in enumerate(case.blocks):
            case.series.reach(layer_idx)
            x = make_fx(block)(x)(x)
    return "not refused"


def _recorded_read(case: Case) -> str:
    with torch.no_grad(), case.series.step():
        for layer_idx, block in enumerate(case.blocks):
            case.series.reach(layer_idx)
            make_fx(functools.partial(_elsewhere, block.linear))(case.x)
    return "not refused"


def _saved(case: Case) -> str:
    torch.save(case.blocks.state_dict(), io.BytesIO())
    return "not refused"


def _copied_elsewhere(case: Case) -> str:
    with torch.no_grad():
        for resident, value in zip(case.resident.parameters(), case.blocks.state_dict().values(), strict=True):
            resident.copy_(value)
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
    "merged in a pre-hook": _merged(lambda linear: linear.weight.data.add_(1)),
    "merged by NumPy": _merged(_with_numpy),
    "merged in inference mode": _merged(_in_inference_mode),
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
    "saved": _saved,
    "copied elsewhere": _copied_elsewhere,
    "copy": lambda case: str(copy.copy(case.blocks[0].linear)),
    "deep copy": lambda case: str(copy.deepcopy(case.blocks)),
    "pickle": lambda case: str(pickle.dumps(case.blocks)),
    "functional call": _functional,
    "backward": _backward,
    "optimizer": _trained,
    "used after close": _after_close,
    "read after close": _read_after_close,
    "read outside of a step": _read_outside,
    "traced": _traced,
    "scripted": lambda case: str(torch.jit.script(case.blocks)),
    "recorded": _recorded,
    "recorded read": _recorded_read,
}


def refuse(_rank: int) -> dict[str, str]:
    """Do to running series what they refuse."""
    told = {}
    for windows in ("static", "rolling"):
        for name, program in REFUSED.items():
            told[f"{name}, {windows}"] = outcome(lambda program=program: program(Case(name, Block, windows)))  # type: ignore[misc]  # noqa: B023
    return told


def test_what_a_running_series_does_not_support_is_refused_by_name() -> None:
    """Conversions, writes, copies, training and use after close raise an error that names series, rank and layer."""
    for rank, told in enumerate(run_ranks(2, refuse)):
        assert len(told) == 2 * len(REFUSED)
        for case, text in told.items():
            name = case.rpartition(", ")[0]
            assert f"Error: series {name!r}, rank {rank}, layer " in text, f"{case}: {text}"
            assert not text.startswith("bare"), f"{case}: {text}"


class Doubling(nn.Linear):
    """A linear whose class another library has replaced."""

    def forward(self, x: Tensor) -> Tensor:
        """Return twice as much."""
        return 2 * super().forward(x)


def _looked_at(case: Case) -> str:
    assert sum(p.numel() for p in case.blocks.parameters()) == LAYERS * (WIDTH * WIDTH + WIDTH)
    assert {p.dtype for p in case.blocks.parameters()} == {torch.float32}
    assert {str(block.linear.weight.device) for block in case.blocks} == {"cpu"}
    assert all(isinstance(p, nn.Parameter) for p in case.blocks.parameters())
    case.blocks.to("cpu").float().train().eval().requires_grad_(requires_grad=False)
    repr(case.blocks)
    return case.run()


def _frozen(case: Case) -> str:
    case.blocks.requires_grad_(requires_grad=False)
    assert not any(p.requires_grad for p in case.blocks.parameters())
    case.blocks.requires_grad_(requires_grad=True)
    assert all(p.requires_grad for p in case.blocks.parameters())
    return case.run()


def _of_another_class(case: Case) -> str:
    for block in (*case.blocks, *case.resident):
        block.linear.__class__ = Doubling
    return case.run()


def _adapted(case: Case) -> str:
    """Save and load tensors that are not shared, such as adapters."""
    case.blocks.adapter = nn.Linear(WIDTH, WIDTH)
    kept = {name: value for name, value in case.blocks.state_dict().items() if "adapter" in name}
    case.blocks.load_state_dict(kept, strict=False)
    del case.blocks.adapter
    return case.run()


def _in_its_turn(case: Case) -> str:
    """Sum all parameters of a block, once it is reached and before it is called."""
    for shared, resident in zip(case.blocks, case.resident, strict=True):
        for block in (shared, resident):
            block.register_forward_pre_hook(lambda one, args: args[0] * sum(p.sum() for p in one.parameters()))
    return case.run()


def _wrapped(case: Case) -> str:
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


HARMLESS: dict[str, Callable[[Case], str]] = {
    "looked at": _looked_at,
    "frozen": _frozen,
    "of another class": _of_another_class,
    "adapted": _adapted,
    "in its turn": _in_its_turn,
    "wrapped": _wrapped,
}


def harmless(_rank: int) -> dict[str, str]:
    """Do to running series what changes no weight."""
    return {name: outcome(lambda p=program: p(Case("s", Block, "static"))) for name, program in HARMLESS.items()}  # type: ignore[misc]


def test_what_changes_no_weight_is_allowed() -> None:
    """Shapes, dtypes and conversions that change nothing; a later wrapper of forward outlives the series."""
    for told in run_ranks(2, harmless):
        assert told == dict.fromkeys(told, RIGHT)
        assert len(told) == len(HARMLESS)


def looked_at_by_a_thread(_rank: int) -> tuple[str, int]:
    """Let another thread read all weights while steps run; return the outcome, and how often it read a weight."""
    case = Case("s", Block, "static")
    done = threading.Event()
    read = 0

    def look() -> None:
        nonlocal read
        while not done.is_set():
            for block in case.blocks:
                with contextlib.suppress(StaleWindowError):
                    block.linear.weight.norm()
                    read += 1

    thread = threading.Thread(target=look)
    thread.start()
    try:
        return outcome(lambda: case.run(30)), read
    finally:
        done.set()
        thread.join()


def test_another_thread_does_not_wait_for_the_forward() -> None:
    """It reads weights that are there, or is refused; steps go on, and the ownership check finds nothing."""
    for told, read in run_ranks(2, looked_at_by_a_thread, environment={"SWTRACE_CHECK": "1"}):
        assert told == RIGHT
        assert read
