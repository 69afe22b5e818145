"""Series under vLLM's CUDA graphs.

A graph replays kernels, but reach and wait are Python. vLLM has two kinds of graphs, which solve this differently:

- a graph of a whole forward (``FULL``) is captured with its broadcasts and waits, and counts as one step;
- piecewise graphs exclude reach and wait, which run between the pieces as *splitting ops*, as in eager mode.

vLLM calls ``sync_prev_onload`` before every capture and replay, also of pieces, and ``join_after_forward``
at the end of every capture.
"""

from __future__ import annotations

from typing import Any

from swtrace.vllm.groups import Unobservable

SPLITTING_OPS = ("swtrace::reach", "swtrace::wait")


def split_graphs(vllm_config: Any) -> None:
    """Let vLLM split its piecewise graphs at reach and wait. Call before the model is compiled.

    Raises:
        Unobservable: vLLM captures pieces that cannot be split there.
    """
    compilation = vllm_config.compilation_config
    mode = compilation.cudagraph_mode
    if mode is None or not mode.has_piecewise_cudagraphs():
        return
    if _breakable():
        raise Unobservable(
            "breakable CUDA graphs capture reach and wait in their pieces; set VLLM_USE_BREAKABLE_CUDAGRAPH=0, or "
            "cudagraph_mode FULL_DECODE_ONLY"
        )
    if not compilation.splitting_ops:
        raise Unobservable(
            f"cudagraph_mode {mode.name} without splitting ops captures reach and wait; set cudagraph_mode "
            "FULL_DECODE_ONLY, or leave splitting_ops alone"
        )
    missing = [op for op in SPLITTING_OPS if op not in compilation.splitting_ops]
    compilation.splitting_ops = [*compilation.splitting_ops, *missing]


def whole_forward() -> bool:
    """Return whether the next graph that vLLM captures or replays is of a whole forward."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context, is_forward_context_available

    # The newer model runner captures and replays whole forwards outside a forward context, and pieces inside one.
    if not is_forward_context_available():
        return True
    return bool(get_forward_context().cudagraph_runtime_mode == CUDAGraphMode.FULL)


def _breakable() -> bool:
    try:
        from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
    except ImportError:  # missing in older versions
        return False
    return bool(is_breakable_cudagraph_enabled())
