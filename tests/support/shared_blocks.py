"""Blocks around a linear: shared as a series on a real rank, and the same blocks with resident weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from swtrace.errors import SeriesError
from swtrace.series import RankGroup, Series

LAYERS = 5
WIDTH = 16
STEPS = 3
RIGHT = "right"
T = TypeVar("T")


class Block(nn.Module):
    """A linear and something around it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Run the linear."""
        return torch.tanh(self.linear(x))


def stack_of(make: Callable[[], nn.Module]) -> Any:
    """Return blocks with the same weights on every call."""
    torch.manual_seed(7)
    return nn.ModuleList(make() for _ in range(LAYERS)).eval()


class Case:
    """Blocks of one kind on this rank, shared and resident."""

    def __init__(self, name: str, make: Callable[[], nn.Module], windows: str, *, start: bool = True) -> None:
        with torch.no_grad():
            self.blocks, self.resident = stack_of(make), stack_of(make)
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
        """Return whether so many steps give the results of resident weights."""
        for _ in range(steps):
            got, x = self.forward(), self.x
            with torch.no_grad():
                for block in self.resident:
                    x = block(x)
            if not torch.equal(got, x):
                return "wrong"
        return RIGHT


def outcome(program: Callable[[], str | None]) -> str:
    """Return the program's result, or the swtrace error that ended it."""
    try:
        return program() or RIGHT
    except SeriesError as error:
        return f"{type(error).__name__}: {error}"
    except RuntimeError as error:
        return f"bare RuntimeError: {error}"


def with_both_windows(cases: Mapping[str, T], program: Callable[[T, str], str | None]) -> dict[str, str]:
    """Return the outcomes of ``program(case, windows)``, by name and windows."""
    return {
        f"{name}, {windows}": outcome(functools.partial(program, case, windows))
        for name, case in cases.items()
        for windows in ("static", "rolling")
    }


class With(Block):
    """A block whose forward is given."""

    def __init__(self, forward: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = forward

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return torch.tanh(self.compute(self.linear, x))
