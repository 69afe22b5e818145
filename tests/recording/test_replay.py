"""A replayed recording gives the facts and steps that were seen live."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from swtrace.observing import Roster, watch_rings
from swtrace.recording import Recording
from swtrace.recording.replay import Replay
from swtrace.trace.schema import Clock, Untimed
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import Told, events_of, record, record_rings, replayed, schedule


@pytest.mark.parametrize("largest", [1, 7, 5000])
def test_replayed_facts_equal_those_seen_live(tmp_path: Path, largest: int) -> None:
    """A ledger that reads a recording computes exactly the facts of the ledger that ran beside the recorder."""
    path = tmp_path / "run.swrec"
    live = record(path, schedule(), largest=largest)
    again = replayed(path)
    assert again.facts == live.facts()
    assert again.facts.series[0].ranks[0].recent.stall_ns > 0


def test_a_device_s_run_is_recorded_with_its_untimed_steps(tmp_path: Path) -> None:
    """Steps without instants are read back with the same counts, reasons and facts as in the rings."""
    run = RecordedRun(tmp_path / "rings", clock=Clock.DEVICE)
    run.write_every(4, 14)
    run.write_untimed(Untimed.UNFINISHED)
    run.close()
    path = tmp_path / "run.swrec"
    with watch_rings(tmp_path / "rings") as watch:
        watch.drain()
        record_rings(tmp_path / "rings", path)
        live = watch.ledger.facts()
    again = replayed(path).facts
    assert again == live
    totals = again.series[0].ranks[0].totals
    assert {reason: steps for reason, steps in totals.untimed_steps.items() if steps} == {
        "sampled": 10,
        "unfinished": 1,
    }
    with Recording.open(path) as recording:
        assert [step.step for step in Roster(Replay(recording), keep_steps=True).steps()] == [0, 4, 8, 12]


def test_replayed_steps_equal_those_seen_live(tmp_path: Path) -> None:
    """Every column of every finished step is the same."""
    path, made = tmp_path / "run.swrec", schedule(steps=30)
    live = Roster(Told(events_of(made, random.Random(2), 50)), keep_steps=True)  # noqa: S311 - as recorded
    live.drain()
    live.ledger.flush()
    record(path, made)
    with Recording.open(path) as recording:
        again = list(Roster(Replay(recording), keep_steps=True).steps())
    taken = live.take_steps()
    assert [step.step for step in again] == [step.step for step in taken]
    for mine, theirs in zip(again, taken, strict=True):
        np.testing.assert_equal(asdict(mine), asdict(theirs))
