"""Ranks that died are distinguished from ranks that were stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from swtrace.observing.roster import TOGETHER_NS, watch_rings
from tests.support.writer_process import Order, Writers


@pytest.mark.parametrize(
    ("ends", "died"),
    [
        pytest.param("kill:0 kill:1 kill:2", set(), id="all killed at once: stopped"),
        pytest.param("close:0 close:1 close:2", set(), id="all closed: stopped"),
        pytest.param("close:0 close:1 kill:2", set(), id="the last one had to be killed: stopped"),
        pytest.param("kill:0", {0}, id="one killed, others go on: died"),
        pytest.param("kill:0 close:1 close:2", {0}, id="one killed, others end after it: died"),
        pytest.param("kill:0 later kill:1 kill:2", {0}, id="one killed, others killed later: it died"),
    ],
)
def test_a_death_is_told_from_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, died: set[int]
) -> None:
    """A rank died if it did not close its ring while others of its run went on."""
    now = [1]
    monkeypatch.setattr("swtrace.trace.ring_reader.now_ns", lambda: now[0])
    with Writers() as writers, watch_rings(tmp_path, rescan_s=0.0) as watch:
        pids = [writers.start(Order(str(tmp_path), rank=rank, count=10))[0] for rank in range(3)]
        watch.drain()
        for end in ends.split():
            if end == "later":
                now[0] += 10 * TOGETHER_NS
                continue
            what, _, rank = end.partition(":")
            now[0] += 1
            writers.kill(pids[int(rank)], signal.SIGTERM if what == "close" else signal.SIGKILL)
            watch.drain()
        assert {status.identity.rank for status in watch.observe().ranks if status.died} == died
