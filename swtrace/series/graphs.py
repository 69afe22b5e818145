"""Functions that ``torch.compile`` leaves out of its graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch._C._dynamo import eval_frame

if TYPE_CHECKING:
    from collections.abc import Callable


def run_outside(function: Callable[..., Any], reason: str) -> None:
    """Let a function run eagerly, also where compiled code calls it: there a graph ends, or an error gives ``reason``.

    ``torch.compiler.disable`` does this, too, and imports the compiler.
    """
    skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)  # noqa: SLF001
    eval_frame.set_code_exec_strategy(function.__code__, skip)
    vars(function).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)
