"""A run that a daemon reads, and a receiver of the spans that it exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.recorded_run import RecordedRun
from tests.support.span_receiver import SpanReceiver


@pytest.fixture
def receiver() -> Iterator[SpanReceiver]:
    """A receiver of OTLP over HTTP."""
    receiver = SpanReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RecordedRun]:
    """A run of two ranks without records yet."""
    run = RecordedRun(tmp_path / "rings")
    yield run
    run.close()
