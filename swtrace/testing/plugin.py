"""Entry point of the pytest plugin: every pytest run in an environment with swtrace installed imports it.

It imports nothing but pytest. With a pytest that is too old it does nothing but print one line, because tests must not
fail just because swtrace is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

OLDEST = 7
"""The first major version with ``pytest.Stash``."""

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
        """Print why the fixture and the marker are missing."""
        terminalreporter.write_line(
            f"swtrace: the plugin is off: it needs pytest {OLDEST}.0 or newer, this is {pytest.__version__}"
        )
