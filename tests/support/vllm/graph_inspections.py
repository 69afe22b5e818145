"""vLLM's configuration and forward context for CUDA graphs with a series. Runs inside a rank."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any


def graphs() -> dict[str, Any]:
    """Return the effective configuration of each mode of CUDA graphs, and the graphs that a series is notified of."""
    import torch
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode, VllmConfig
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.offloader.base import BaseOffloader

    from swtrace.vllm import graphs as ours
    from swtrace.vllm.groups import Refused
    from swtrace.vllm.offloader import SeriesOffloader

    def settled(mode: CUDAGraphMode) -> Any:
        compilation = CompilationConfig(mode=CompilationMode.VLLM_COMPILE, cudagraph_mode=mode)
        compilation.set_splitting_ops_for_v1(all2all_backend="naive")
        return SimpleNamespace(compilation_config=compilation)

    def refusal(config: Any) -> str:
        try:
            ours.split_graphs(config)
        except Refused as refused:
            return str(refused)
        return ""

    modes = {}
    for mode in (
        CUDAGraphMode[name] for name in ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
    ):
        config = settled(mode)
        before = list(config.compilation_config.splitting_ops)
        refused = refusal(config) or refusal(config)
        after = config.compilation_config
        modes[mode.name] = {
            "refused": refused,
            "kept": after.splitting_ops[: len(before)] == before and len(before) > 0,
            "added": after.splitting_ops[len(before) :],
            "attention": after.splitting_ops_contain_attention(),
            "mode": after.cudagraph_mode.name,
        }
    unsplit = settled(CUDAGraphMode.PIECEWISE)
    unsplit.compilation_config.splitting_ops = []
    without = refusal(unsplit)
    os.environ["VLLM_USE_BREAKABLE_CUDAGRAPH"] = "1"
    breakable = refusal(settled(CUDAGraphMode.PIECEWISE))

    whole = {}
    for name in ("FULL", "PIECEWISE"):
        with set_forward_context(None, VllmConfig(), cudagraph_runtime_mode=CUDAGraphMode[name]):
            whole[name] = ours.whole_forward()
    whole["newer runner"] = ours.whole_forward()
    return {
        "modes": modes,
        "without": without,
        "breakable": breakable,
        "whole": whole,
        "operators": [
            callable(getattr(getattr(torch.ops, namespace), operator).default)
            for namespace, operator in (name.split("::") for name in ours.SPLITTING_OPS)
        ],
        "called": [
            hasattr(BaseOffloader, name) and name in vars(SeriesOffloader)
            for name in ("sync_prev_onload", "join_after_forward")
        ],
    }
