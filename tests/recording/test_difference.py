"""What `swtrace diff` calls better, worse, or no difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from swtrace.recording import Recording
from swtrace.recording.blocks import BlockMeans
from swtrace.recording.difference import Change, Difference, RecordingDifference, _judged, difference
from swtrace.recording.significance import compare, holm
from tests.support.simulated_recordings import record, schedule


def compared(tmp_path: Path, a: dict[str, int], b: dict[str, int]) -> RecordingDifference:
    """Record two schedules and compare them."""
    for name, options in (("a", a), ("b", b)):
        record(tmp_path / f"{name}.swrec", schedule(**{"ranks": 2, "steps": 200, **options}))
    with Recording.open(tmp_path / "a.swrec") as first, Recording.open(tmp_path / "b.swrec") as second:
        return difference(first, second)


def test_runs_that_differ_only_by_chance_show_no_difference(tmp_path: Path) -> None:
    """Two runs of one distribution differ in every number, but no difference is called a change."""
    (series,) = compared(tmp_path, {"seed": 1}, {"seed": 2}).series
    assert series.change is Change.SAME
    assert {one.change for one in (*series.ranks, *series.layers)} == {Change.SAME}
    assert any(one.shift_ns != 0 for one in series.layers)


def test_a_slower_channel_is_worse_and_a_faster_one_better(tmp_path: Path) -> None:
    """With 30 % longer transfers, the stall of every rank and of some layers is worse; vice versa, it is better."""
    found = compared(tmp_path, {"seed": 1}, {"seed": 2, "occupancy": 130_000})
    (series,) = found.series
    assert series.change is Change.WORSE
    stall = [one for one in series.ranks if one.quantity == "stall"]
    assert [one.change for one in stall] == [Change.WORSE, Change.WORSE]
    assert any(one.change is Change.WORSE for one in series.layers)
    transfer = next(one for one in series.ranks if one.quantity == "transfer")
    assert transfer.share == pytest.approx(0.3, rel=0.1)
    with Recording.open(tmp_path / "b.swrec") as first, Recording.open(tmp_path / "a.swrec") as second:
        assert difference(first, second).series[0].change is Change.BETTER


def test_too_few_steps_say_so(tmp_path: Path) -> None:
    """Five steps are too few for any conclusion, however different they look."""
    (series,) = compared(tmp_path, {"steps": 8}, {"steps": 8, "occupancy": 500_000}).series
    assert series.change is Change.UNKNOWN


def test_series_without_a_counterpart_are_named(tmp_path: Path) -> None:
    """A series on another number of ranks is not compared, and is reported."""
    found = compared(tmp_path, {"ranks": 2}, {"ranks": 3})
    assert found.series == ()
    assert [name.ranks for name in (*found.only_in_a, *found.only_in_b)] == [2, 3]


def test_steps_that_resemble_their_neighbours_raise_no_false_alarm() -> None:
    """On strongly autocorrelated steps, blocks keep false alarms rare where single steps would raise many."""
    chance = np.random.default_rng(11)

    def run(steps: int = 4000) -> tuple[np.ndarray, np.ndarray]:
        noise = chance.normal(size=steps)
        for i in range(1, steps):
            noise[i] += 0.9 * noise[i - 1]
        blocks = BlockMeans(())
        for value in noise:
            blocks.add(np.asarray(value))
        return noise, blocks.means()

    false_single = false_blocks = 0
    for _ in range(40):
        (single_a, blocks_a), (single_b, blocks_b) = run(), run()
        false_single += compare(single_a[:1000], single_b[:1000]).p < 0.01
        false_blocks += compare(blocks_a, blocks_b).p < 0.01
    assert false_blocks <= 3 < false_single


def test_holm_keeps_order_and_bounds() -> None:
    """Corrected p-values are never smaller than the raw ones, never above 1, and keep their order."""
    p = np.array([0.5, 0.001, 0.04, 0.0002])
    np.testing.assert_allclose(holm(p), [0.5, 0.003, 0.08, 0.0008])


def test_stall_that_comes_in_bursts_is_not_called_the_same() -> None:
    """If medians are equal and one run stalls in a fifth of its steps, the means decide and are named as such."""
    bursts = Difference("stall", 0, None, 0.0, 0.0, (0.0, 0.0), 4.05e6, 3.4e4, 0.3, 0.0, Change.UNKNOWN)
    assert _judged(bursts, 1e-5, enough=True).change is Change.BETTER
    assert _judged(bursts, 0.5, enough=True).change is Change.SAME
