"""Ranks of a run that died are named."""

from __future__ import annotations

from pathlib import Path

from swtrace.trace.liveness import dead_ranks
from swtrace.trace.recorder import Recorder
from tests.support.writer_process import Order, Writers, identity


def test_the_dead_ranks_of_a_run_are_named(tmp_path: Path) -> None:
    """A rank is dead if it lost its lock without closing its ring, and was not restarted."""
    with Writers() as writers:
        pids = {}
        for rank in (1, 2, 4):
            pids[rank], _ = writers.start(Order(str(tmp_path), rank=rank, count=1))
        orderly = Recorder.create(tmp_path, identity(3), records=64)
        orderly.close()
        assert dead_ranks(tmp_path, "run") == ()
        for pid in pids.values():
            writers.kill(pid)
        again = Recorder.create(tmp_path, identity(4), records=64)
        assert [dead.rank for dead in dead_ranks(tmp_path, "run")] == [1, 2]
        assert dead_ranks(tmp_path, "other") == ()
        assert dead_ranks(tmp_path / "nowhere", "run") == ()
        again.close()
