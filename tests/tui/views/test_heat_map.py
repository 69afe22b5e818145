"""The screen shows the ledger's numbers, on the same records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from swtrace_tui.once import overview, read
from swtrace_tui.palette import Span
from swtrace_tui.picture import Filter, phase_of, picture
from swtrace_tui.views.heat_map import METRICS, explanation, values
from swtrace_tui.views.lanes import channel_lane, compute_lane

from swtrace import units
from swtrace.ledger.facts import CAUSES, Cause
from swtrace.observing import watch_rings
from swtrace.trace.schema import Phase
from tests.support.patience import patience
from tests.support.scenes import pictured
from tests.support.simulated_rings import write


def test_every_row_states_the_ledgers_figures(tmp_path: Path) -> None:
    """Each rank's stall ratio, efficiency, on-time rate and bandwidth are in its line of the text overview."""
    with write(tmp_path, "stalled"), watch_rings(tmp_path) as watch:
        watch.drain()
        with watch_rings(tmp_path) as roster:
            lines = overview(read(roster, Filter(), 5), 120).splitlines()

    for rank in watch.ledger.facts().series[0].ranks:
        line = next(line for line in lines if line.split()[:1] == [str(rank.rank.rank)])
        recent = rank.recent
        for text in (
            units.ratio(recent.stall_ratio),
            units.ratio(recent.efficiency),
            units.ratio(recent.on_time_rate),
            units.bandwidth(recent.bandwidth),
            units.duration(recent.step_ns / recent.steps),
        ):
            assert text in line


def test_json_carries_the_ledgers_numbers_exactly(tmp_path: Path) -> None:
    """``swtrace top --json`` prints the facts of the same rings to the last digit, verdict included."""
    with write(tmp_path, "straggler"), watch_rings(tmp_path) as watch:
        watch.drain()
        done = subprocess.run(
            [sys.executable, "-m", "swtrace", "top", "--dir", str(tmp_path), "--json"],
            capture_output=True,
            text=True,
            timeout=patience(),
            check=True,
        )
    series = json.loads(done.stdout)["summary"]["series"][0]

    facts = watch.ledger.facts().series[0]
    for said, rank in zip(series["ranks"], facts.ranks, strict=True):
        assert said["stall_ratio"] == rank.recent.stall_ratio
        assert said["efficiency"] == rank.recent.efficiency
    assert facts.straggler is not None
    assert series["straggler"]["rank"] == facts.straggler.rank.rank == 3
    advice = {finding["kind"]: finding["advice"] for finding in series["findings"]}
    assert advice["straggler"].startswith("Check that rank's host")


def test_once_without_rings_says_what_to_do_next(tmp_path: Path) -> None:
    """With nothing to watch, ``--once`` prints no table, names the next commands on stderr, and fails."""
    done = subprocess.run(
        [sys.executable, "-m", "swtrace", "top", "--dir", str(tmp_path), "--once", "--wait", "0"],
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert "swtrace demo --scenario stalled" in done.stderr


def test_without_a_terminal_top_says_how_to_go_on(tmp_path: Path) -> None:
    """In a pipe, ``swtrace top`` draws nothing and exits with one line that names ``--once``."""
    done = subprocess.run(
        [sys.executable, "-m", "swtrace", "top", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 1
    assert "--once" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_phases_sums_are_the_ledgers_over_those_steps(tmp_path: Path) -> None:
    """Narrowed to decode, stall and steps are the sums over the decode steps of the history only."""
    phases = (Phase.PREFILL, Phase.DECODE, Phase.DECODE)
    with write(tmp_path, "stalled", phases=phases), watch_rings(tmp_path) as roster:
        read(roster, Filter(), 5)
        seen = roster.observe()
    whole, decode = (picture(seen, Filter(phase=phase)).series[0] for phase in (None, Phase.DECODE))
    steps = [step for step in whole.steps if phase_of(step) is Phase.DECODE]

    assert len(steps) == len(decode.steps) == 2 * len(whole.steps) // 3
    for row in decode.rows:
        assert row.recent.stall_ns == sum(int(step.stall_ns[row.group_rank].sum()) for step in steps)
        assert row.recent.steps == len(steps)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_heat_map_cells_are_means_over_the_waits(metric: object) -> None:
    """A cell of the mean heat map times its waits is the sum of the ledger's values over the steps."""
    series = pictured("stalled").series[0]
    chosen = next(each for each in METRICS if each is metric)

    shown, waited = values(series, chosen, "mean")

    counts = np.sum([step.receiver for step in series.steps], axis=0)
    sums = np.sum([np.where(step.receiver, chosen.of(step), 0) for step in series.steps], axis=0)
    assert np.allclose(shown * np.maximum(1, counts), sums)
    assert (waited == (counts > 0)).all()


def test_skew_cells_are_both_kinds_of_skew() -> None:
    """The heat map's skew is the ledger's skew and entry skew together."""
    step = pictured("straggler").series[0].steps[-1]
    skew = next(metric for metric in METRICS if metric.name == "skew")

    by_cause = step.cause_ns[CAUSES.index(Cause.SKEW)] + step.cause_ns[CAUSES.index(Cause.ENTRY_SKEW)]
    assert (skew.of(step) == by_cause).all()


def test_timeline_stalls_add_up_to_the_ledgers() -> None:
    """The stall stretches of a rank's lane add up to the ledger's stall of that step."""
    for step in pictured("straggler").series[0].steps[1:]:
        for rank in range(len(step.ranks)):
            begins, ends = compute_lane(step, rank)[Span.STALL]
            assert int((ends - begins).sum()) == int(step.stall_ns[rank].sum())


def test_exposed_transfer_is_the_transfer_part_of_the_stall() -> None:
    """The exposed transfer of the channel lane is the stall that the ledger attributes to transfer."""
    for step in pictured("stalled").series[0].steps[1:]:
        for rank in range(len(step.ranks)):
            begins, ends = channel_lane(step, rank)[Span.EXPOSED]
            assert int((ends - begins).sum()) == int(step.cause_ns[CAUSES.index(Cause.TRANSFER), rank].sum())


def test_a_cell_is_explained_with_its_own_numbers() -> None:
    """The description under the heat map names rank, layer, source, and the stall of the last step."""
    series = pictured("stalled").series[0]
    step = series.steps[-1]

    title, *sentences = explanation(series, 1, 6)

    assert title == "Rank 1, layer 6, from rank 2"
    assert units.duration(int(step.stall_ns[1, 6])) in sentences[-1]
    assert f"Step {step.step}" in sentences[-1]
    assert explanation(series, 2, 6)[1].startswith("Its own layer")
