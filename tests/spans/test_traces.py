"""Ids of traces and spans, and which steps are exported: the same on every host."""

from __future__ import annotations

from pathlib import Path

from swtrace.ledger.facts import SeriesKey
from swtrace.spans.step_spans import STEP, WAIT
from swtrace.spans.traces import Sampling, position, span_ids, trace_id
from tests.support.finished_steps import finished_steps
from tests.support.recorded_run import RecordedRun


def test_ids_are_what_the_documentation_says() -> None:
    """Trace and span ids are fixed hashes, so that a daemon of another version computes the same."""
    assert f"{trace_id('run-1', 7):032x}" == "dfca50b40f0d63848f69fcde5c990bf7"
    series = SeriesKey("run-1", "o_proj", 0, (0, 3))
    assert span_ids(series, 7, 3, WAIT, (b"12",)).hex() == "f5f3943d90a5e10f"
    assert span_ids(series, 7, 3, STEP, (b"",)).hex() == "bcea4aa7adc7bd75"


def test_series_that_share_a_name_have_different_ids() -> None:
    """Series of one name in two groups of a rank, or over two ranges of layers, have different spans."""
    keys = [SeriesKey("run-1", "o_proj", *rest) for rest in ((0, (0, 1)), (0, (0, 2)), (30, (0, 1)))]
    for kind, layer in ((STEP, b""), (WAIT, b"31")):
        assert len({span_ids(key, 7, 0, kind, (layer,)) for key in keys}) == 3


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
