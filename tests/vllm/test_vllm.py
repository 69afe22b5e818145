"""The plugin reads its switch as every other setting, and without it leaves vLLM as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.cli.vllm_ranks import Workload, run_ranks
from swtrace.errors import SettingsError
from swtrace.settings import VARIABLES
from swtrace.vllm import register
from tests.support.vllm import inspections


@pytest.mark.vllm
def test_nothing_happens_without_the_switch(workload: Workload, folder: Path) -> None:
    """Without SWTRACE=1 no function of vLLM is replaced, no runtime is imported, and the config does not change."""
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


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that grows each time the plugin is installed in vLLM."""
    calls: list[bool] = []
    monkeypatch.setattr("swtrace.vllm.replacements.install", lambda: calls.append(True))
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    return calls


@pytest.mark.parametrize(
    ("text", "times"), [(None, 0), ("", 0), ("0", 0), ("off", 0), ("1", 1), ("true", 1), (" 1", 1), ("1\r", 1)]
)
def test_the_plugin_reads_the_switch_as_all_others(
    monkeypatch: pytest.MonkeyPatch, installed: list[bool], text: str | None, times: int
) -> None:
    """The plugin is installed in vLLM if ``SWTRACE`` has a value that means on, and not otherwise."""
    if text is not None:
        monkeypatch.setenv("SWTRACE", text)
    register()
    assert len(installed) == times


def test_the_plugin_warns_of_a_switch_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch, installed: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """It is unknown whether sharing was requested, so vLLM runs without it and the log says so."""
    monkeypatch.setenv("SWTRACE", "2")
    register()
    assert not installed
    assert "swtrace is off: SWTRACE='2': must be on (1, true, yes) or off (0, false, no)" in caplog.text


@pytest.mark.parametrize("strict", ["1", "true", " yes"])
def test_a_strict_plugin_raises_on_a_switch_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch, installed: list[bool], strict: str
) -> None:
    """With SWTRACE_STRICT on, in any spelling, vLLM does not start untraced by mistake."""
    monkeypatch.setenv("SWTRACE", "enable")
    monkeypatch.setenv("SWTRACE_STRICT", strict)
    with pytest.raises(SettingsError, match="SWTRACE='enable'"):
        register()
    assert not installed


def test_the_plugin_warns_of_misspelt_variables(
    monkeypatch: pytest.MonkeyPatch, installed: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt setting is reported in vLLM's log, whether or not swtrace is on."""
    monkeypatch.setenv("SWTRACE_PREFETCH", "2")
    register()
    assert not installed
    assert "did you mean SWTRACE_PREFETCH_STEP?" in caplog.text
