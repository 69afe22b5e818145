"""The plugin's settings inside vLLM, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, RankResult, Workload, fork_ranks, run_ranks
from tests.support.vllm import inspections
from tests.support.vllm.vllm_runs import SERIES, refusals, warnings

if TYPE_CHECKING:
    from tests.support.vllm.vllm_runs import Run


def test_nothing_happens_without_the_switch(workload: Workload, folder: Path) -> None:
    """Without SWTRACE=1 no function of vLLM is replaced, no runtime is imported and the config is as it was."""
    environment = {"SWTRACE": "off", "SWTRACE_SERIES": "nonsense", "SWTRACE_PREFETCH_STEP": "-1"}
    workload = replace(workload, inspect=inspections.untouched, tokens=1)
    (rank,) = run_ranks(workload, folder, ranks=1, environment=environment)
    assert rank.inspected == {
        "modules": [],
        "additional_config": {},
        "offloader": "NoopOffloader",
        "replaced": [],
        "operators": False,
    }


def test_additional_config_wins(eager: Run) -> None:
    """The worker's config states the settings in force, those of additional_config over the environment's."""
    for rank in eager.ranks:
        assert rank.inspected["additional_config"] == {
            "swtrace": {
                "enabled": True,
                "series": ["self_attn.o_proj"],
                "prefetch_step": 2,
                "group": "auto",
                "windows": "auto",
                "check": False,
            },
            "swtrace_outcome": {"self_attn.o_proj": "world"},
        }


def _config(workload: Workload, folder: Path, given: dict[str, Any], **environment: str) -> tuple[Any, str]:
    ((additional_config, key),) = fork_ranks(
        inspections.engine_config, (workload.model, given), folder, environment=environment
    )
    return additional_config, key


def test_settings_enter_the_compile_cache_key(workload: Workload, folder: Path) -> None:
    """The key differs between off and on and between settings; a folder or a run id does not change it."""
    _, off = _config(workload, folder, {})
    _, on = _config(workload, folder, {}, SWTRACE="1")
    _, farther = _config(workload, folder, {}, SWTRACE="1", SWTRACE_PREFETCH_STEP="2")
    _, elsewhere = _config(workload, folder, {}, SWTRACE="1", SWTRACE_DIR="/tmp/elsewhere", SWTRACE_RUN_ID="x")
    assert len({off, on, farther}) == 3
    assert elsewhere == on


def test_other_additional_config_stays(workload: Workload, folder: Path) -> None:
    """Other keys of additional_config stay unchanged, and the user's settings reach the workers."""
    given = {"other": {"a": 1}, "swtrace": {"run_id": "mine"}}
    config, _ = _config(workload, folder, given, SWTRACE="1")
    assert config["other"] == {"a": 1}
    assert config["swtrace"]["run_id"] == "mine"


def test_bad_settings_stop_vllm(workload: Workload, folder: Path) -> None:
    """An invalid setting is an error that names it, before any model is loaded."""
    with pytest.raises(RankFailedError, match=r"SettingsError: SWTRACE_GROUP='pp': must be one of: auto, tp"):
        _config(workload, folder, {}, SWTRACE="1", SWTRACE_GROUP="pp")


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
