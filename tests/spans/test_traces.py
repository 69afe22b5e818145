"""Ids of traces and spans, and which steps are exported: the same on every host."""

from __future__ import annotations

from pathlib import Path

from swtrace.spans.step_spans import STEP, WAIT
from swtrace.spans.traces import Sampling, position, span_ids, trace_id
from tests.support.finished_steps import finished_steps
from tests.support.recorded_run import RecordedRun


def test_ids_are_what_the_documentation_says() -> None:
    """Trace and span ids are fixed hashes, so that a daemon of another version computes the same."""
    assert f"{trace_id('run-1', 7):032x}" == "dfca50b40f0d63848f69fcde5c990bf7"
    assert span_ids("run-1", 7, 3, WAIT, series="o_proj", layers=(b"12",)).hex() == "b6fa554b899d22fa"
    assert span_ids("run-1", 7, 3, STEP, series="o_proj", layers=(b"",)).hex() == "f19ec99678a0b9d5"


def test_sample_is_a_share_of_steps_and_the_same_everywhere() -> None:
    """About the requested share of steps is kept, depending only on (run id, step)."""
    places = [position("run-1", step) for step in range(4000)]
    assert all(0 <= place < 1 for place in places)
    kept = sum(place < 0.1 for place in places)
    assert 300 < kept < 500
    assert places == [position("run-1", step) for step in range(4000)]
    assert places != [position("run-2", step) for step in range(4000)]


def test_sampling_keeps_slow_steps(tmp_path: Path) -> None:
    """A slow step is kept at any share; share 1 keeps all steps, share 0 none."""
    run = RecordedRun(tmp_path)
    run.write(1)
    run.close()
    (step,) = finished_steps(tmp_path)
    longest = int(step.duration_ns.max())
    assert Sampling(share=1.0).keeps(step)
    assert not Sampling(share=0.0).keeps(step)
    assert Sampling(share=0.0, slow_step_ns=longest).keeps(step)
    assert not Sampling(share=0.0, slow_step_ns=longest + 1).keeps(step)
