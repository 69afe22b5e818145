"""Ranks of a run that died are named."""

from __future__ import annotations

from pathlib import Path

from swtrace.trace.liveness import ended_ranks
from swtrace.trace.recorder import Recorder
from tests.support.writer_process import Order, Writers, identity


def test_the_ranks_of_a_run_that_ended_are_named(tmp_path: Path) -> None:
    """A rank has ended if it lost its lock and was not restarted. It died unless it closed its ring."""
    with Writers() as writers:
        pids = {}
        for rank in (1, 2, 4):
            pids[rank], _ = writers.start(Order(str(tmp_path), rank=rank, count=1))
        orderly = Recorder.create(tmp_path, identity(3), records=64)
        orderly.close()
        assert ended_ranks(tmp_path, "run") == {3: True}
        for pid in pids.values():
            writers.kill(pid)
        again = Recorder.create(tmp_path, identity(4), records=64)
        assert ended_ranks(tmp_path, "run") == {1: False, 2: False, 3: True}
        assert ended_ranks(tmp_path, "other") == {}
        assert ended_ranks(tmp_path / "nowhere", "run") == {}
        again.close()
