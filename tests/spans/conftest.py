"""Finished steps for tests of spans."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.ledger.facts import StepFacts
from tests.support.finished_steps import finished_steps
from tests.support.recorded_run import RecordedRun


@pytest.fixture
def steps(tmp_path: Path) -> tuple[StepFacts, ...]:
    """Return twenty finished steps of two ranks."""
    run = RecordedRun(tmp_path)
    run.write(20)
    run.close()
    return finished_steps(tmp_path)
