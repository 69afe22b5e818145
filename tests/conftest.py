"""The time limit of tests that run vLLM, and the recording that exports and reports are made of."""

from __future__ import annotations

import pytest

from tests.support.exported_run import recording, session

__all__ = ["recording", "session"]

BACKSTOP_S = 7200
"""Ends a test with the marker ``vllm`` that hangs. What such a test waits for has limits of its own, which depend on
what the processes do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test that runs vLLM its time limit."""
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.timeout(BACKSTOP_S))
