"""Settings in vLLM's config: they enter its compile cache key, and everything else in the config stays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, Workload, fork_ranks
from swtrace.errors import SettingsError
from swtrace.vllm.configuration import resolve_settings, write_outcome
from tests.support.vllm import inspections


def _config(workload: Workload, folder: Path, given: dict[str, Any], **environment: str) -> tuple[Any, str]:
    ((additional_config, key),) = fork_ranks(
        inspections.engine_config, (workload.model, given), folder, environment=environment
    )
    return additional_config, key


@pytest.mark.vllm
def test_settings_enter_the_compile_cache_key(workload: Workload, folder: Path) -> None:
    """The key differs between off and on and between settings; folder, run id and replica do not change it."""
    _, off = _config(workload, folder, {})
    _, on = _config(workload, folder, {}, SWTRACE="1")
    _, farther = _config(workload, folder, {}, SWTRACE="1", SWTRACE_PREFETCH_STEP="2")
    another = {"SWTRACE_RUN_ID": "x", "SWTRACE_REPLICAS": "2", "SWTRACE_REPLICA": "1"}
    _, elsewhere = _config(workload, folder, {}, SWTRACE="1", SWTRACE_DIR="/tmp/elsewhere", **another)
    assert len({off, on, farther}) == 3
    assert elsewhere == on


@pytest.mark.vllm
def test_other_additional_config_stays(workload: Workload, folder: Path) -> None:
    """Other keys of additional_config stay unchanged, and the user's settings reach the workers."""
    given = {"other": {"a": 1}, "swtrace": {"run_id": "mine"}}
    config, _ = _config(workload, folder, given, SWTRACE="1")
    assert config["other"] == {"a": 1}
    assert config["swtrace"]["run_id"] == "mine"


@pytest.mark.vllm
def test_bad_settings_stop_vllm(workload: Workload, folder: Path) -> None:
    """An invalid setting is an error that names it, before any model is loaded."""
    with pytest.raises(RankFailedError, match=r"SettingsError: SWTRACE_GROUP='pp': must be one of: auto, tp"):
        _config(workload, folder, {}, SWTRACE="1", SWTRACE_GROUP="pp")


@pytest.mark.vllm
def test_replicas_that_cannot_find_each_other_stop_vllm(workload: Workload, folder: Path) -> None:
    """Before any model is loaded."""
    with pytest.raises(RankFailedError, match=r"SettingsError: SWTRACE_REPLICAS is 2: number them"):
        _config(workload, folder, {}, SWTRACE="1", SWTRACE_REPLICAS="2")


def test_a_config_that_is_not_a_dict_is_refused() -> None:
    """Settings have no place in another object, and the error names its type."""
    with pytest.raises(SettingsError, match=r"additional_config is a str, .* pass a dict, or unset SWTRACE"):
        resolve_settings(SimpleNamespace(additional_config="{}"))


def test_the_outcome_stands_beside_the_settings() -> None:
    """What a worker shares is written under a key of its own, and the config that others hold does not change."""
    before = {"swtrace": {"series": ["a"]}, "other": 1}
    config = SimpleNamespace(additional_config=before)
    write_outcome(config, {"a": "tp"})
    assert config.additional_config == {**before, "swtrace_outcome": {"a": "tp"}}
    assert "swtrace_outcome" not in before
