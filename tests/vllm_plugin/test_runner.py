"""A model runner that asks for no offloader is told about: nobody gets a silent nothing from SWTRACE=1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import inspections
import pytest
from runners import generate_unasked
from vllm_runs import SERIES, refusals

from swtrace.cli.vllm_ranks import RankFailedError, RankResult, Workload, fork_ranks

REASON = "vLLM's model runner vllm.v1.worker.cpu_model_runner.CPUModelRunner asks for no offloader"


def test_a_runner_that_never_asks_is_a_refusal(
    workload: Workload, control: tuple[RankResult, ...], folder: Path
) -> None:
    """VLLM runs as if nobody had asked to share; each rank warns once, and a metric gives the reason."""
    here = folder / "unasked"
    here.mkdir()
    ranks = fork_ranks(
        generate_unasked,
        (replace(workload, inspect=inspections.outcome), here / "meet"),
        here,
        ranks=2,
        environment={"SWTRACE": "1", "SWTRACE_DIR": str(here / "rings")},
    )
    assert [rank.tokens for rank in ranks] == [rank.tokens for rank in control]
    for rank in ranks:
        config, offloader = rank.inspected
        assert (config["swtrace_outcome"], offloader) == ({}, "NoopOffloader")
        said = (here / f"rank-{rank.rank}.log").read_text().splitlines()
        assert [REASON in line for line in said if "WARNING" in line and "swtrace" in line] == [True]
    found = refusals(here / "rings", ranks=2)
    assert found.keys() == {0, 1}
    assert all(why[SERIES].startswith(REASON) for why in found.values())


def test_a_runner_that_never_asks_ends_a_strict_start(workload: Workload, folder: Path) -> None:
    """With SWTRACE_STRICT=1 the reason is an error."""
    with pytest.raises(RankFailedError, match=f"RefusedError: nothing is shared: {REASON}"):
        fork_ranks(
            generate_unasked,
            (workload, folder / "meet-unasked"),
            folder,
            ranks=2,
            environment={"SWTRACE": "1", "SWTRACE_STRICT": "1"},
        )
