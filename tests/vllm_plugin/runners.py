"""A model runner that makes no offloader, as vLLM 0.27's second one, which needs a GPU. Runs inside a rank."""

from __future__ import annotations

from pathlib import Path

from swtrace.cli.vllm_ranks import RankResult, Workload, _generate


def generate_unasked(workload: Workload, rendezvous: Path) -> RankResult:
    """Generate with the CPU's runner, made to look for its offloader where the plugin is not."""
    from vllm.model_executor.offloader import base
    from vllm.plugins import load_general_plugins
    from vllm.v1.worker import gpu_model_runner

    load_general_plugins()
    gpu_model_runner.create_offloader = base.create_offloader.__wrapped__
    return _generate(workload, rendezvous)
