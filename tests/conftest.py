"""The time limit of tests that run vLLM, what coverage is measured of, and the recording behind exports and reports."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest
from hypothesis import settings

from tests.support.exported_run import recording, session

__all__ = ["recording", "session"]

SCENARIOS = Path(__file__).parent / "scenarios"
COLLECTED_BY_NAME = ("prometheus", "vllm")
"""Markers of tests that the Makefile looks for with grep, because pytest takes ten seconds to look into every file."""
BACKSTOP_S = 7200
"""Ends a test with the marker ``vllm`` that hangs. What such a test waits for has limits of its own, which depend on
what the processes do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test that runs vLLM its time limit. Refuse tests that their target would not find."""
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.timeout(BACKSTOP_S))
        for name in COLLECTED_BY_NAME:
            if item.get_closest_marker(name) and f"mark.{name}" not in item.path.read_text(encoding="utf-8"):
                raise pytest.UsageError(f"{item.nodeid}: make test-{name} reads only files that say `mark.{name}`")


def pytest_configure() -> None:
    """Give Hypothesis no time limit. Measure coverage in the workers, but not in the processes that tests start."""
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure no coverage in scenarios: they time real processes."""
    measured = coverage.Coverage.current() if SCENARIOS in item.path.parents else None
    if measured:
        measured.stop()
    handled = yield
    if measured:
        measured.start()
    return handled
