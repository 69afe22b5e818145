"""What records a forward to run it again elsewhere: compiled graphs, and traces that would leave the waits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch._C._dynamo import eval_frame

if TYPE_CHECKING:
    from collections.abc import Callable

TRACED = "traced by torch.jit or make_fx, which records no waits; use torch.compile"
_is_tracing = torch._C._is_tracing  # noqa: SLF001 (torch.jit.is_tracing costs twice as much)
_mode = torch._C._get_dispatch_mode  # noqa: SLF001 (there is no public way)
_MAKE_FX = torch._C._TorchDispatchModeKey.PROXY  # noqa: SLF001


def records_operations() -> bool:
    """Return whether operations are being recorded one by one, and what waits between them is not."""
    return _is_tracing() or _mode(_MAKE_FX) is not None


def run_outside(function: Callable[..., Any], reason: str) -> None:
    """Let a function run eagerly, also where compiled code calls it: there a graph ends, or an error gives ``reason``.

    ``torch.compiler.disable`` does this, too, and imports the compiler.
    """
    skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)  # noqa: SLF001
    eval_frame.set_code_exec_strategy(function.__code__, skip)
    vars(function).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)
