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
from tests.support.suites import outcomes

pytest_plugins = ["pytester"]

pytest_plugins = ["pytester"]

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


def test_a_failed_assertion_shows_what_was_recorded(suite: pytest.Pytester) -> None:
    """Beside a value of the fixture stand the series, its steps and its stall ratio instead of an address."""
    result = outcomes(suite, "\ndef test_it(swtrace):\n    run(swtrace)\n    assert swtrace.stall_ratio() < 0.01\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*where * = <swtrace fixture; self_attn.o_proj: 10 steps, stall ratio 5.0 %>.stall_ratio"]
    )


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("seris='mlp'", "SettingsError: no selection by 'seris': did you mean series?"),
        ("warmup=-1", "SettingsError: warmup=-1: must be a number of steps from 0"),
        ("layer=99", "EmptySelectionError: no finished step matches layer=99; recorded: self_attn.o_proj *"),
    ],
)
def test_an_error_of_the_fixture_points_at_the_line_of_the_test(
    suite: pytest.Pytester, selection: str, message: str
) -> None:
    """The traceback of a wrong selection ends in the test, not within swtrace."""
    result = outcomes(suite, f"\ndef test_it(swtrace):\n    run(swtrace)\n    swtrace.stall_ratio({selection})\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"E * swtrace.errors.{message}", "test_*.py:*: *Error"])
    assert "session.py" not in result.stdout.str()


def test_the_fixture_answers_questions(suite: pytest.Pytester) -> None:
    """Facts by series, rank, layer, phase and step are what the run's schedule says."""
    result = outcomes(
        suite,
        """
from tests.support.recorded_run import LAYER_NS, STALL_NS, TRANSFER_NS
from swtrace.errors import EmptySelectionError

def test_nothing_at_all(swtrace):
    with pytest.raises(EmptySelectionError, match="no finished step matches layer=7; recorded: nothing"):
        assert swtrace.stall_seconds(layer=7) < 0.001

def test_it(swtrace):
    run(swtrace)
    stall = 10 * STALL_NS * 1e-9
    assert swtrace.stall_seconds() == pytest.approx(stall)  # position 2 belongs to rank 0: rank 1 waits
    assert swtrace.stall_seconds(rank=0) == 0
    assert swtrace.stall_seconds(rank=1, layer=2) == pytest.approx(stall)
    assert swtrace.stall_seconds(layer=3) == 0
    assert swtrace.stall_seconds(steps=range(4, 8)) == pytest.approx(stall * 0.4)
    assert swtrace.stall_seconds(warmup=9) == pytest.approx(stall * 0.1)
    for nothing in ({"phase": "prefill"}, {"layer": 99}, {"rank": 7}, {"series": "nope"}, {"warmup": 10}):
        for question in ("stall_seconds", "stall_ratio", "efficiency", "on_time_rate", "occupancy", "sums"):
            with pytest.raises(EmptySelectionError, match="no finished step matches .*; recorded: self_attn.o_proj"):
                getattr(swtrace, question)(**nothing)
    assert swtrace.stall_seconds(phase="decode") == pytest.approx(stall)
    assert swtrace.stall_ratio(rank=1) == pytest.approx(STALL_NS / (6 * LAYER_NS))
    assert 0 < swtrace.efficiency() < 1
    assert swtrace.on_time_rate(layer=2) == 0.0
    assert swtrace.on_time_rate(layer=1) == 1.0
    assert swtrace.lost == 0
    states = swtrace.occupancy(rank=1)
    assert sum(states.values()) == pytest.approx(2)
    assert all(mean >= 0 for mean in states.values())
    waits = swtrace.waits(rank=1, layer=2)
    assert waits.rows == 10 and set(waits["outcome"]) == {"stalled"} and set(waits["stall_ns"]) == {STALL_NS}
    assert swtrace.step_table().rows == 20
    exported = swtrace.span_exporter(steps=range(1, 3)).get_finished_spans()
    assert len([span for span in exported if span.name == "swtrace.step"]) == 4
    registry = swtrace.registry()
    name, labels = "swtrace_steps_total", {"rank": "1", "series": "self_attn.o_proj"}
    found = [s for family in registry.collect() for s in family.samples if s.name == name]
    assert [s.value for s in found] == [10, 10]
""",
    )
    result.assert_outcomes(passed=2)


def test_each_test_sees_its_own_runs_and_leaves_nothing_behind(suite: pytest.Pytester) -> None:
    """Rings and environment belong to one test; afterwards both are as they were before."""
    result = outcomes(
        suite,
        """
seen = []

@pytest.mark.parametrize("steps", [3, 5])
def test_it(swtrace, steps):
    assert os.environ["SWTRACE"] == "1" and os.environ["SWTRACE_DIR"] == str(swtrace.directory)
    assert "SWTRACE_RUN_ID" not in os.environ
    run(swtrace, steps)
    assert swtrace.step_table(rank=0).rows == steps
    seen.append(swtrace.directory)

def test_after():
    assert "SWTRACE" not in os.environ and "SWTRACE_DIR" not in os.environ
    assert len(set(seen)) == 2 and not any(folder.exists() for folder in seen)
""",
    )
    result.assert_outcomes(passed=3)


def test_two_runs_in_one_test_both_count(suite: pytest.Pytester) -> None:
    """A test may run its model twice: each run warms up for itself, and both are summed up."""
    result = outcomes(
        suite,
        """
def test_it(swtrace):
    run(swtrace, 6, "first")
    run(swtrace, 6, "second")
    assert swtrace.step_table(rank=0, warmup=2).rows == 8
""",
    )
    result.assert_outcomes(passed=1)
