"""Settings in vLLM's config: they enter its compile cache key, and everything else in the config stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swtrace.cli.vllm_ranks import RankFailedError, Workload, fork_ranks
from tests.support.vllm import inspections

pytestmark = pytest.mark.vllm


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
