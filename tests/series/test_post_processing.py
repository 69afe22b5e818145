"""Tensors that something else holds, or that have no plain memory, are refused on all ranks at post-processing.

Two real ranks run many cases each, so that a case costs no process of its own.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from swtrace.errors import RegistrationError
from swtrace.series import RankGroup, Series, post_processing
from swtrace.settings import Settings
from tests.support.ranks import run_ranks
from tests.support.shared_blocks import RIGHT, WIDTH, Block, Case, With, outcome


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


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("xpu:0", "layers on xpu:0 cannot be pulled; set SWTRACE_TRANSPORT=broadcast"),
        (
            "cuda:0",
            (
                "pull is not yet proven on a GPU (cuda:0); set SWTRACE_EXPERIMENTAL=1 to try it, or "
                "SWTRACE_TRANSPORT=broadcast"
            ),
        ),
    ],
)
def test_pull_on_a_device_is_refused_unless_it_is_known_and_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, reason: str
) -> None:
    """The error says which setting changes that."""
    monkeypatch.setattr(post_processing, "_device", lambda _modules: torch.device(device))
    series = Series("s", RankGroup((0, 1), 0), 0, 2, prefetch_step=0, settings=Settings(directory=tmp_path, run_id="r"))
    for layer_idx in range(2):
        series.register(layer_idx, nn.Linear(4, 4))
    with pytest.raises(RegistrationError) as refusal:
        series.post_process()
    assert str(refusal.value) == f"series 's', rank 0: {reason}"
    assert list(tmp_path.iterdir()) == []
