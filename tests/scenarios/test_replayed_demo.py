"""A demo is recorded while it runs, and its replay gives the facts seen live."""

from __future__ import annotations

import operator
import os
import subprocess
import time
from pathlib import Path

from swtrace.observing import watch_rings
from tests.support.commands import SWTRACE
from tests.support.patience import patience
from tests.support.simulated_recordings import replayed


def test_a_demo_replays_to_the_facts_seen_live(tmp_path: Path) -> None:
    """A recording of a demo on real ranks replays to exactly what a live watch of the demo saw."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    rings.mkdir()
    recorder = subprocess.Popen([*SWTRACE, "record", "--dir", str(rings), "-o", str(path), "--until-end"])
    demo = subprocess.Popen(
        [*SWTRACE, "demo", "--scenario", "stalled", "--steps", "20", "--layers", "12", "--no-daemon"],
        env={**os.environ, "SWTRACE_DIR": str(rings)},
        stdout=subprocess.DEVNULL,
    )
    try:
        with watch_rings(rings) as watch:
            while demo.poll() is None:
                watch.poll()
                time.sleep(0.02)
            assert demo.returncode == 0
            assert recorder.wait(patience()) == 0
            watch.drain()
            watch.ledger.flush()
            live = watch.ledger.facts()
    finally:
        for process in (demo, recorder):
            process.kill()
            process.wait()
    assert sum(rank.totals.steps for rank in live.series[0].ranks) == 40
    again = replayed(path).facts
    assert again.series == live.series
    by_rank = operator.attrgetter("identity.rank")
    assert sorted(again.ranks, key=by_rank) == sorted(live.ranks, key=by_rank)
