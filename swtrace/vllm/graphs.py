"""How a series and vLLM's CUDA graphs get on.

A graph replays kernels, and reach and wait are Python. Two ways lead out, and vLLM uses both:

- a graph of a whole forward (``FULL``) is captured with its broadcasts and waits, and counts as one step;
- piecewise graphs leave reach and wait out: as *splitting ops* they run between the pieces, as in eager mode.

What vLLM calls ``sync_prev_onload`` comes before every capture and replay, of pieces, too; its
``join_after_forward`` ends every capture.
"""

from __future__ import annotations

from typing import Any

from swtrace.vllm.groups import Refused

SPLITTING_OPS = ("swtrace::reach", "swtrace::wait")


def split_graphs(vllm_config: Any) -> None:
    """Let vLLM split its piecewise graphs at reach and wait. Before the model is compiled.

    Raises:
        Refused: vLLM captures pieces that cannot be split there.
    """
    compilation = vllm_config.compilation_config
    mode = compilation.cudagraph_mode
    if mode is None or not mode.has_piecewise_cudagraphs():
        return
    if _breakable():
        raise Refused(
            "breakable CUDA graphs capture reach and wait in pieces; set VLLM_USE_BREAKABLE_CUDAGRAPH=0, or "
            "cudagraph_mode FULL_DECODE_ONLY"
        )
    if not compilation.splitting_ops:
        raise Refused(
            f"cudagraph_mode {mode.name} without splitting ops captures reach and wait; set cudagraph_mode "
            "FULL_DECODE_ONLY, or leave splitting_ops alone"
        )
    missing = [op for op in SPLITTING_OPS if op not in compilation.splitting_ops]
    compilation.splitting_ops = [*compilation.splitting_ops, *missing]


def whole_forward() -> bool:
    """Return whether the graph that vLLM captures or replays next is one of a whole forward."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context, is_forward_context_available

    # The newer model runner captures and replays whole forwards outside of a forward context, pieces inside of one.
    if not is_forward_context_available():
        return True
    return bool(get_forward_context().cudagraph_runtime_mode == CUDAGraphMode.FULL)


def _breakable() -> bool:
    try:
        from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
    except ImportError:  # older versions have none
        return False
    return bool(is_breakable_cudagraph_enabled())
