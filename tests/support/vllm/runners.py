"""Ranks that do not share although others would. Runs inside a rank."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from swtrace.cli.vllm_ranks import RankResult, Workload, _generate


def generate_unasked(workload: Workload, rendezvous: Path) -> RankResult:
    """Generate with a runner that creates no offloader, like the second one of vLLM 0.27, which needs a GPU.

    It is the CPU runner, with vLLM's original ``create_offloader``.
    """
    from vllm.model_executor.offloader import base
    from vllm.plugins import load_general_plugins
    from vllm.v1.worker import gpu_model_runner

    load_general_plugins()
    gpu_model_runner.create_offloader = base.create_offloader.__wrapped__
    return _generate(workload, rendezvous)


def generate_alone(workload: Workload, rendezvous: Path, second: dict[str, str], config: dict[str, Any]) -> RankResult:
    """Generate with sharing on the first rank; the second has another environment and another ``additional_config``."""
    if os.environ["RANK"] == "1":
        del os.environ["SWTRACE"]
        os.environ.update(second)
        workload = replace(workload, additional_config=config)
    return _generate(workload, rendezvous)
