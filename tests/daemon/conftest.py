"""A run, a daemon that serves it, and a receiver of the spans that it exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.daemon_threads import serving
from tests.support.recorded_run import RecordedRun
from tests.support.spanned_run import receiver

__all__ = ["client", "receiver", "run"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RecordedRun]:
    """Two ranks that ran ten steps."""
    run = RecordedRun(tmp_path)
    run.write(10)
    yield run
    run.close()


@pytest.fixture
def client(run: RecordedRun) -> Iterator[httpx.Client]:
    """A client of a daemon that serves the run."""
    with serving(run.directory) as client:
        yield client
