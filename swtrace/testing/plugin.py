"""The pytest plugin's door: every pytest run of an environment that has swtrace imports it.

It imports nothing but pytest. With a pytest that is too old it does nothing, and says so in one line: nobody's tests
may fail because swtrace is installed beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

OLDEST = 7
"""The first major version that has stashes."""

if TYPE_CHECKING or int(pytest.__version__.partition(".")[0]) >= OLDEST:
    from swtrace.testing.pytest_hooks import (
        pytest_addoption,
        pytest_collection_modifyitems,
        pytest_configure,
        pytest_runtest_call,
        pytest_runtest_setup,
        pytest_sessionfinish,
        pytest_terminal_summary,
        pytest_testnodedown,
        swtrace,
    )

    __all__ = [
        "pytest_addoption",
        "pytest_collection_modifyitems",
        "pytest_configure",
        "pytest_runtest_call",
        "pytest_runtest_setup",
        "pytest_sessionfinish",
        "pytest_terminal_summary",
        "pytest_testnodedown",
        "swtrace",
    ]
else:

    def pytest_terminal_summary(terminalreporter: Any) -> None:
        """Say why the fixture and the marker are not there."""
        terminalreporter.write_line(
            f"swtrace: the plugin is off, because it needs pytest {OLDEST}.0 or newer, and this is {pytest.__version__}"
        )
