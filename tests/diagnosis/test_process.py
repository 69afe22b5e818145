"""A rank's process is found by the ring file that it holds open."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.diagnosis.process import ProcessUnseenError, stopped, writer_pid
from swtrace.observing import watch_rings
from swtrace.trace.clocks import boot_id
from tests.support.patience import eventually
from tests.support.writer_process import Order, Writers


def test_a_stopped_process_is_recognised(tmp_path: Path) -> None:
    """A rank that SIGSTOP stopped is stopped until it is continued; a recorded one never is."""
    with Writers() as writers, watch_rings(tmp_path) as roster:
        pid, _ = writers.start(Order(str(tmp_path), count=3))
        roster.drain()
        (seen,) = roster.observe().ranks
        rank = replace(seen, identity=replace(seen.identity, boot_id=boot_id(), pid=pid))
        assert writer_pid(rank) == pid
        assert not stopped(rank)
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: stopped(rank), "the writer to be stopped")
        recorded = replace(rank, ring=replace(rank.ring, path=""))
        assert not stopped(recorded)
        with pytest.raises(ProcessUnseenError):
            writer_pid(recorded)
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: not stopped(rank), "the writer to go on")
