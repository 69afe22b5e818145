"""A model runner that never requests an offloader is reported once it has loaded its model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from swtrace.errors import RefusedError
from swtrace.vllm.runner import check_after_loading, note_offloader_request


class Runner:
    """A model runner of a platform plugin."""


@pytest.fixture
def loaded() -> list[str]:
    """Return the models that were loaded."""
    return []


@pytest.fixture
def wrapper(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a worker's wrapper that refuses strictly."""
    monkeypatch.setenv("SWTRACE", "1")
    monkeypatch.setenv("SWTRACE_STRICT", "1")
    return SimpleNamespace(
        vllm_config=SimpleNamespace(additional_config={}),
        worker=SimpleNamespace(model_runner=Runner()),
        loaded=loaded,
    )


@check_after_loading
def load_model(wrapper: Any, name: str) -> str:
    """Load a model."""
    wrapper.loaded.append(name)
    return name


@pytest.fixture(autouse=True)
def _no_earlier_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swtrace.vllm.runner._Process.offloader_requested", False)


def test_a_runner_that_never_asks_is_named(wrapper: SimpleNamespace, loaded: list[str]) -> None:
    """The model is loaded first; the error then names the class of the runner and the variable that selects another."""
    said = rf"{Runner.__module__}\.Runner creates no offloader.*set VLLM_USE_V2_MODEL_RUNNER=0"
    with pytest.raises(RefusedError, match=said):
        load_model(wrapper, "a")
    assert loaded == ["a"]


def test_a_request_is_of_one_model(wrapper: SimpleNamespace) -> None:
    """A runner that asked for its first model, but not for its second, is reported for the second."""
    note_offloader_request()
    assert load_model(wrapper, "a") == "a"
    with pytest.raises(RefusedError):
        load_model(wrapper, "b")


def test_nothing_is_reported_where_swtrace_is_off(wrapper: SimpleNamespace) -> None:
    """If additional_config turns swtrace off, it does not matter whether the runner asked."""
    wrapper.vllm_config.additional_config = {"swtrace": {"enabled": False}}
    assert load_model(wrapper, "a") == "a"
