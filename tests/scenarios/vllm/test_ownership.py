"""The ownership check in real vLLM: it is silent if nothing is wrong, else the forward ends with an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import RankResult, Workload, run_ranks
from tests.support.vllm import inspections
from tests.support.vllm.shared_runs import SERIES

pytestmark = pytest.mark.vllm


def test_the_check_in_vllm(workload: Workload, control: tuple[RankResult, ...], folder: Path) -> None:
    """``additional_config`` turns it on. Tokens stay the same, and an overwritten window is an error that names it."""
    log = folder / "ownership"
    log.mkdir()
    config = {"swtrace": {"prefetch_step": 2, "check": True}}
    checked = replace(
        workload, plain_linears=(), additional_config=config, inspect=inspections.overwritten, tokens=workload.tokens
    )
    ranks = run_ranks(checked, log, environment={"SWTRACE": "1", "SWTRACE_DIR": str(log / "rings")})
    for rank in ranks:
        assert rank.tokens == control[rank.rank].tokens
        tag_bytes, layer, holds, said = rank.inspected
        assert tag_bytes == 64
        assert said.count("the ownership check found") == 1
        assert f"series '{SERIES}', rank {rank.rank}: " in said
        assert f": layer {layer}: its window held layer {holds} before it was freed, 1 time so far" in said
