"""reach and wait as opaque custom operators, which ``torch.compile`` neither looks into nor moves.

Both claim to mutate the activation: what produces it stays before them, what reads it after. That
is the whole order a forward needs, because a linear reads its window only together with its
activation. They carry plain numbers, which a compiled model, possibly one from a cache of an
earlier run, can hold: the series' number in this process, and the layer.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from swtrace.series import Series

_numbered: list[Series] = []
"""The series of the model that this process runs, by number."""
_arrived: list[int] = []
"""By number: the layer that the forward reached last."""


def number(series: Series) -> int:
    """Return the number under which the operators know ``series``: 0, 1, ... in order of registration."""
    _numbered.append(series)
    _arrived.append(-1)
    return len(_numbered) - 1


def numbered() -> tuple[Series, ...]:
    """Return the series of the model that this process runs."""
    return tuple(_numbered)


def arrived(number: int) -> int:
    """Return the layer that the forward reached last in a series; -1 before the first step."""
    return _arrived[number] if number < len(_arrived) else -1


def forget() -> None:
    """Close every series and start counting anew: another model is about to be built in this process."""
    with ExitStack() as stack:
        for series in reversed(_numbered):  # each is closed, whatever the others raise
            stack.callback(series.close)
        _numbered.clear()
        _arrived.clear()


def _reach(activation: torch.Tensor, series: int, layer: int) -> None:  # noqa: ARG001 (its use is the order)
    _arrived[series] = layer
    _numbered[series].reach(layer)


def _wait(activation: torch.Tensor, series: int, layer: int) -> None:  # noqa: ARG001 (its use is the order)
    _numbered[series].wait(layer)


def _nothing(activation: torch.Tensor, series: int, layer: int) -> None:
    """Stand in while a model is traced: no shape depends on a wait."""


_library: Any = torch.library.Library("swtrace", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _implementation in (("reach", _reach), ("wait", _wait)):
    _library.define(f"{_name}(Tensor(a!) activation, int series, int layer) -> ()")
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"swtrace::{_name}", _nothing, lib=_library)

reach = torch.ops.swtrace.reach.default
"""``reach(activation, series number, layer)``: start the broadcasts that belong to the arrival at ``layer``."""
wait = torch.ops.swtrace.wait.default
"""``wait(activation, series number, layer)``: hold the forward until the window holds the weight of ``layer``."""
