"""The ranks of a run that ended are known, by their rings or by their processes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from swtrace.trace.liveness import ended_ranks, open_process, own_process, process_ended
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


def test_the_end_of_a_process_is_seen_by_its_name() -> None:
    """Before its parent has noticed, and afterwards."""
    say = "from swtrace.trace.liveness import own_process; print(own_process(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", say], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert not process_ended(name)
        descriptor = open_process(name)
        assert descriptor is not None
        other.kill()
        select.select([descriptor], [], [])
        os.close(descriptor)
        assert process_ended(name)
    assert process_ended(name)
    assert open_process(name) is None


def test_a_process_is_not_taken_for_another_one() -> None:
    """A later process with the number of a former one is not it. One that is out of sight has not ended."""
    mine = own_process()
    assert not process_ended(mine)
    kernel, pid, began = mine.rsplit(" ", 2)
    assert process_ended(f"{kernel} {pid} {int(began) - 1}")
    assert not process_ended(f"another {kernel} {pid} {int(began) - 1}")
    assert open_process(f"another {kernel} {pid} {began}") is None
