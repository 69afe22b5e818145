"""reach and wait as opaque custom operators, which ``torch.compile`` neither inspects nor moves.

Each claims to mutate a tensor, so code that produces the tensor stays before it, and code that reads the tensor after.
If the caller has the activation (vLLM's decoder layers), that order is all a forward needs, because a linear reads its
window only together with its activation.

:meth:`Series.reach` has no activation. It uses the series' *order token* instead: a tensor of one number that is never
read. ``follow`` ties it to the activation before a linear's wait and to the result afterwards. So the next reach,
which may give the window away, stays behind the matmul that reads the window.

The operators carry two plain numbers: the series' number in this process, and the layer. A compiled model can hold
these, even one from a cache of an earlier run.

This module also detects recording for use elsewhere (torch.jit, make_fx), which would leave out the waits.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch._C._dynamo import eval_frame

from swtrace.errors import OrderError
from swtrace.series.watched import forget_watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from swtrace.series.series import Series

TRACED = "traced by torch.jit or make_fx, which do not record waits; use torch.compile"
_is_tracing = torch._C._is_tracing  # noqa: SLF001 (torch.jit.is_tracing costs twice as much)
_mode = torch._C._get_dispatch_mode  # noqa: SLF001 (there is no public way)
_MAKE_FX = torch._C._TorchDispatchModeKey.PROXY  # noqa: SLF001
_numbered: list[weakref.ref[Series]] = []
"""The series of this process, by number."""
_arrived: list[int] = []
"""By number, the layer that a forward last reached through the operator."""


def number(series: Series) -> int:
    """Return the number by which the operators identify a new series: 0, 1, ... in the order of construction."""
    _numbered.append(weakref.ref(series))
    _arrived.append(-1)
    return len(_numbered) - 1


def numbered() -> tuple[Series, ...]:
    """Return the series of this process that exist and are not closed."""
    return tuple(series for known in _numbered if (series := known()) is not None and not series.closed)


def arrived(number: int) -> int:
    """Return the layer that the forward last reached in a series; -1 before the first step."""
    return _arrived[number] if number < len(_arrived) else -1


def forget() -> None:
    """Close every series and restart the numbers, because this process is about to build another model."""
    with ExitStack() as stack:
        stack.callback(forget_watched)
        for series in reversed(numbered()):  # each is closed, even if others raise
            stack.callback(series.close)
        _numbered.clear()
        _arrived.clear()


def _series(number: int) -> Series:
    series = _numbered[number]() if number < len(_numbered) else None
    if series is None:
        raise OrderError(f"series number {number}: used by compiled code after the series was closed or deleted")
    return series


def _reach(order: torch.Tensor, series: int, layer: int) -> None:  # noqa: ARG001 (its use is the order)
    _arrived[series] = layer
    _series(series).reach_from_graph(layer)


def _wait(order: torch.Tensor, series: int, layer: int) -> None:  # noqa: ARG001 (its use is the order)
    _series(series).wait(layer)


def _follow(order: torch.Tensor, other: torch.Tensor) -> None:
    """Do nothing. Later uses of either tensor stay behind earlier uses of both."""


def _trace(order: torch.Tensor, series: int, layer: int) -> None:  # noqa: ARG001 (no shape depends on it)
    """Replace the operator while a model is traced.

    Raises:
        OrderError: the compiler would copy weights into the compiled code.
    """
    import torch._inductor.config as inductor

    if inductor.freezing and not _series(series).observes:
        raise OrderError(
            f"{_series(series).where}, layer {layer}: torch._inductor.config.freezing copies weights into the "
            f"compiled code, which then does not read the windows; set it to False"
        )


_library: Any = torch.library.Library("swtrace", "FRAGMENT")  # type: ignore[no-untyped-call]
_NUMBERS = "int series, int layer"
for _name, _arguments, _implementation, _fake in (
    ("reach", _NUMBERS, _reach, _trace),
    ("wait", _NUMBERS, _wait, _trace),
    ("follow", "Tensor(b!) other", _follow, _follow),
):
    _library.define(f"{_name}(Tensor(a!) order, {_arguments}) -> ()")
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"swtrace::{_name}", _fake, lib=_library)

reach = torch.ops.swtrace.reach.default
"""``reach(order, series number, layer)``: start the broadcast that belongs to the arrival at ``layer``."""
wait = torch.ops.swtrace.wait.default
"""``wait(order, series number, layer)``: block until the window holds the weight of ``layer``."""
follow = torch.ops.swtrace.follow.default
"""``follow(order, other)``: order later uses of either tensor behind earlier uses of both."""


def records_operations() -> bool:
    """Return whether operations are being recorded one by one, without the waits between them."""
    return _is_tracing() or _mode(_MAKE_FX) is not None


def run_outside(function: Callable[..., Any], reason: str) -> None:
    """Make a function run eagerly even in compiled code, where it breaks the graph or raises an error with ``reason``.

    ``torch.compiler.disable`` does the same, but imports the compiler.
    """
    skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)  # noqa: SLF001
    eval_frame.set_code_exec_strategy(function.__code__, skip)
    vars(function).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)
