"""A recording of a run that every export and report can be checked against."""

from __future__ import annotations

from pathlib import Path

import pytest

import swtrace as public
from swtrace.session import Session
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings

STEPS = 25


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of three ranks with one aborted step."""
    folder = tmp_path_factory.mktemp("export")
    run = RecordedRun(folder / "rings", ranks=3)
    run.write(STEPS - 1)
    run.write(aborted=True)
    run.close()
    record_rings(folder / "rings", folder / "run.swrec")
    return folder / "run.swrec"


@pytest.fixture(scope="module")
def session(recording: Path) -> Session:
    """Return the facts of ``recording``."""
    return public.open(recording)
