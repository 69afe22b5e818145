"""Real vLLM without rings, which cannot be made or are switched off: tokens are equal, and the log gives the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, RankResult, Workload, run_ranks
from swtrace.trace.directory import ring_paths

pytestmark = pytest.mark.vllm


def _run(workload: Workload, here: Path, **settings: str) -> tuple[tuple[RankResult, ...], list[str]]:
    """Share in a folder that is not there yet; return the ranks' results and logs."""
    here.mkdir()
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(here / "rings"), **settings}
    shared = replace(workload, plain_linears=())
    results = run_ranks(shared, here, environment=environment)
    return results, [(here / f"rank-{rank}.log").read_text() for rank in range(len(results))]


def _tokens(results: tuple[RankResult, ...]) -> list[tuple[tuple[int, ...], ...]]:
    return [rank.tokens for rank in results]


def test_ranks_that_cannot_make_their_rings_serve(
    workload: Workload, control: tuple[RankResult, ...], folder: Path
) -> None:
    """If a file is in the place of the folder, all ranks run untraced, and each says once why and what to do."""
    (folder / "file").touch()
    results, logs = _run(workload, folder / "no-rings", SWTRACE_DIR=str(folder / "file" / "rings"))
    assert _tokens(results) == _tokens(control)
    for rank, log in enumerate(logs):
        (line,) = [line for line in log.splitlines() if "untraced" in line]
        assert f"swtrace: rank {rank} runs untraced: cannot make a ring of" in line
        for part in (str(folder / "file"), "Not a directory", "SWTRACE_DIR", "SWTRACE_RING_RECORDS"):
            assert part in line
        assert "swtrace shares self_attn.o_proj" in logs[0]


def test_strict_ends_every_rank(workload: Workload, folder: Path) -> None:
    """With SWTRACE_STRICT=1 this is an error on all ranks that names those without a ring."""
    (folder / "strict-file").touch()
    with pytest.raises(RankFailedError) as error:
        _run(workload, folder / "strict", SWTRACE_DIR=str(folder / "strict-file" / "rings"), SWTRACE_STRICT="1")
    for rank in range(2):
        assert f"rank {rank}: SWTRACE_STRICT=1, but not every rank can be traced: rank 0: " in str(error.value)


def test_sharing_without_tracing(workload: Workload, control: tuple[RankResult, ...], folder: Path) -> None:
    """If additional_config turns tracing off, vLLM shares, no rank makes a ring, and nothing is logged as a warning."""
    untraced = replace(workload, additional_config={"swtrace": {"trace": False}})
    results, logs = _run(untraced, folder / "untraced")
    assert _tokens(results) == _tokens(control)
    assert "swtrace shares self_attn.o_proj" in logs[0]
    assert ring_paths(folder / "untraced" / "rings") == ()
    assert not (folder / "untraced" / "rings").exists()
    for log in logs:
        assert "runs untraced" not in log
