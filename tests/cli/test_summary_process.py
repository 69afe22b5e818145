"""The reader process of a run: its last summary covers every record, even if it is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from swtrace.cli.summary import Summary
from swtrace.cli.summary_process import Reader, Report
from tests.support.patience import eventually
from tests.support.recorded_run import RecordedRun


def test_a_report_survives_its_line(summary: Summary) -> None:
    """The command has every figure that the reader summarised."""
    report = Report(summary, final=True)
    assert Report.parse(report.line()) == report


@pytest.mark.parametrize("killed", [False, True])
def test_the_last_summary_has_every_record(rings: Path, *, killed: bool) -> None:
    """Records written since the last look are read at the end, by another reader if the first was killed."""
    run = RecordedRun(rings)
    run.write(5)
    with Reader(rings, "run-1") as reader:
        eventually(lambda: reader.poll() and reader.summary and reader.summary.series, "the first summary")
        if killed:
            os.kill(reader.child.pid, signal.SIGKILL)
        run.write(5)
        run.close()
        summary = reader.finish()
    assert [rank.steps for rank in summary.series[0].ranks] == [10, 10]
    assert all(ring.written == ring.delivered == run.written for ring in summary.rings)
