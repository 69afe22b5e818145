"""The fixture records this process and its children, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch import nn

from swtrace.observing import watch_rings
from swtrace.series import recording
from swtrace.series.group import RankGroup
from swtrace.series.recording import process_recorder
from swtrace.series.series import Series
from swtrace.testing.tracing import Tracing
from tests.support.ranks import run_ranks

LAYERS, STEPS = 4, 6


def rank(_number: int) -> None:
    """Run a series as any program does, recorded as the environment says."""
    series = Series("o_proj", RankGroup.world(), 0, LAYERS, recorder=process_recorder)
    for index in range(LAYERS):
        series.register(index, nn.Linear(16, 16, bias=False))
    series.post_process()
    for _ in range(STEPS):
        with series.step():
            for index in range(LAYERS):
                series.reach(index)
                series.wait(index)
    series.close()


def test_real_ranks_in_child_processes_are_recorded() -> None:
    """Two gloo ranks that are given the fixture's environment leave every wait of every step in it."""
    with Tracing() as tracing:
        run_ranks(2, rank, environment=tracing.environment)
        for number in range(2):
            waits = tracing.waits(rank=number)
            assert waits.rows == LAYERS * STEPS
            assert set(waits["outcome"]) <= {"on_time", "own", "prefilled", "stalled"}
            assert (waits["outcome"] == "own").sum() == LAYERS * STEPS // 2 - (number == 0)
        assert tracing.step_table().rows == 2 * STEPS
        assert tracing.lost == 0


def test_a_process_gets_its_own_ring_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring that this process had before the test is put aside unharmed, and is its ring again afterwards."""
    monkeypatch.setenv("SWTRACE_DIR", str(tmp_path))
    before = recording.exchange(None)
    try:
        mine = process_recorder("before", 0)
        with Tracing() as tracing:
            during = process_recorder("during", 0)
            assert during.path.parent == tracing.directory
            assert os.environ["SWTRACE_DIR"] == str(tracing.directory)
        assert process_recorder("after", 0) is mine
        with watch_rings(tmp_path) as watch:
            watch.drain()
            (status,) = watch.observe().ranks
            assert status.ring.alive
            assert not status.ring.closed
        mine.close()
    finally:
        recording.exchange(before)
