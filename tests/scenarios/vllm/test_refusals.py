"""If nothing can be shared, SWTRACE=1 never fails silently: the reason is a warning and a metric, or a strict error."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, RankResult, Workload, fork_ranks, run_ranks
from tests.support.vllm import inspections
from tests.support.vllm.runners import generate_alone, generate_unasked
from tests.support.vllm.shared_runs import SERIES, refusals, warnings

pytestmark = pytest.mark.vllm

REASON = "vLLM's model runner vllm.v1.worker.cpu_model_runner.CPUModelRunner creates no offloader"


def test_a_runner_that_never_asks_is_a_refusal(
    workload: Workload, control: tuple[RankResult, ...], folder: Path
) -> None:
    """VLLM runs as without swtrace. Each rank warns once, and a metric gives the reason."""
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
        (said,) = warnings((here / f"rank-{rank.rank}.log").read_text())
        assert REASON in said
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


@pytest.mark.parametrize(
    ("second", "config", "said"),
    [
        ({}, {}, "swtrace shares nothing: swtrace is off on rank 1; set SWTRACE=1 on all ranks"),
        (
            {"SWTRACE": "1"},
            {"swtrace": {"enabled": False}},
            f"swtrace does not share {SERIES}: rank 1 shares nothing: its additional_config disables swtrace",
        ),
        (
            {"SWTRACE": "1"},
            {"swtrace": {"windows": "rolling", "series": ["mlp.down_proj"]}},
            f"swtrace does not share {SERIES}: rank 1 was not asked to share it",
        ),
    ],
)
def test_a_rank_that_takes_no_part_is_noticed_at_once(
    workload: Workload,
    control: tuple[RankResult, ...],
    folder: Path,
    second: dict[str, str],
    config: dict[str, Any],
    said: str,
) -> None:
    """The first rank does not wait for it, warns with its number and the reason, and runs as without swtrace."""
    here = folder / f"alone-{secrets.token_hex(4)}"
    here.mkdir()
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(here / "rings"), "SWTRACE_TIMEOUT": "86400"}
    ranks = fork_ranks(
        generate_alone, (workload, here / "meet", second, config), here, ranks=2, environment=environment
    )
    assert [rank.tokens for rank in ranks] == [rank.tokens for rank in control]
    (warned,) = warnings((here / "rank-0.log").read_text())
    assert warned.startswith(said)


def test_one_rank_is_left_alone(workload: Workload, control: tuple[RankResult, ...], folder: Path) -> None:
    """If nothing can be shared, vLLM runs unchanged after one warning, and a metric gives the reason."""
    log = folder / "alone"
    log.mkdir()
    alone = replace(workload, plain_linears=(), inspect=inspections.outcome)
    environment = {"SWTRACE": "1", "SWTRACE_DIR": str(log / "rings")}
    (rank,) = run_ranks(alone, log, ranks=1, environment=environment)
    config, offloader = rank.inspected
    assert config["swtrace_outcome"] == {}
    assert rank.tokens == control[0].tokens
    assert offloader == "SeriesOffloader"
    reason = "the tp group has one rank; the dp group has one rank; the world has one rank"
    (said,) = warnings((log / "rank-0.log").read_text())
    assert reason in said
    assert said.endswith("; SWTRACE_SHARE=none still shows compute per layer")
    ((refused_rank, why),) = refusals(log / "rings", ranks=1).items()
    assert refused_rank == 0
    assert why.keys() == {SERIES}
    assert why[SERIES].startswith(reason)


@pytest.mark.parametrize(
    ("environment", "additional_config", "said"),
    [
        ({}, {}, "the world has one rank"),
        (
            {"SWTRACE_SERIES": "self_attn.z_proj"},
            {},
            "LlamaDecoderLayer\\) has no linear self_attn.z_proj; .* it has: self_attn.qkv_proj, self_attn.o_proj, mlp",
        ),
        ({"SWTRACE_PREFETCH_STEP": "6"}, {}, "prefetch step 6 needs at least 8 layers, but this rank has 7"),
        ({"SWTRACE_GROUP": "dp"}, {}, "the dp group has one rank"),
    ],
)
def test_strict_turns_refusals_into_errors(
    workload: Workload, folder: Path, environment: dict[str, str], additional_config: dict[str, Any], said: str
) -> None:
    """With SWTRACE_STRICT=1 the reason is an error that ends vLLM."""
    alone = replace(workload, plain_linears=(), additional_config=additional_config)
    with pytest.raises(RankFailedError, match=rf"RefusedError: .*{said}"):
        run_ranks(alone, folder, ranks=1, environment={"SWTRACE": "1", "SWTRACE_STRICT": "1", **environment})
