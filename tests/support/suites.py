"""A suite of a user of the pytest plugin, whose tests can write rings."""

from __future__ import annotations

from pathlib import Path

import opentelemetry.sdk.trace.export.in_memory_span_exporter
import pytest

import swtrace.daemon.collector
import swtrace.testing.limits
from tests.support import recorded_run

LOADED_ONCE = (recorded_run, opentelemetry, swtrace)
"""pytester forgets what an inner run imports, and numpy cannot be loaded twice: so it is loaded out here."""


PRELUDE = """
import os, pytest
from tests.support.recorded_run import RecordedRun

def run(swtrace, steps=10, run_id="run", planned=None):
    made = RecordedRun(swtrace.directory, run_id=run_id, planned=planned)
    made.write(steps)
    made.close()
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Return a suite whose tests can write rings: 0.3 ms of stall in a step of 6 ms, at position 2."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("SWTRACE", raising=False)
    return pytester


def outcomes(suite: pytest.Pytester, code: str, *arguments: str) -> pytest.RunResult:
    """Run a suite of one file in this process."""
    suite.makepyfile(PRELUDE + code)
    return suite.runpytest_inprocess("-p", "no:randomly", *arguments)
