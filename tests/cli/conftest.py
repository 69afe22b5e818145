"""Fixtures of every test that runs ``swtrace`` as a user does."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.cli.summary import Summary, summarise
from swtrace.observing import watch_rings
from tests.support import fake_rank
from tests.support.commands import environment, interruptible, rings, start_swtrace, swtrace
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings

__all__ = ["environment", "interruptible", "rings", "start_swtrace", "swtrace"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording; the rings it was made of lie beside it."""
    folder = tmp_path_factory.mktemp("recording")
    run = RecordedRun(folder / "rings")
    run.write(5)
    run.close()
    record_rings(folder / "rings", folder / "run.swrec")
    return folder / "run.swrec"


@pytest.fixture
def summary(rings: Path, monkeypatch: pytest.MonkeyPatch) -> Summary:
    """Return the summary of ten steps of a rank whose even layers are each held up for a tenth of the step."""
    monkeypatch.setenv("SWTRACE_DIR", str(rings))
    monkeypatch.setenv("SWTRACE_RUN_ID", "a run")
    fake_rank.write(10)
    with watch_rings(rings) as watch:
        watch.drain()
        watch.ledger.flush()
        return summarise(watch.observe())
