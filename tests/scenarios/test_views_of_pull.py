"""Every view of a pull series keeps its ranks apart: no screen, page or table compares them or joins their steps."""

from __future__ import annotations

import html
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from swtrace_tui.actions import VIEWS
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views.heat_map import METRICS, HeatMap, explanation, last_steps, values
from swtrace_tui.views.overview import Overview
from swtrace_tui.views.timeline import Timeline
from swtrace_tui.views.view import Scene

from swtrace.ledger.readers import readers
from swtrace.observing import HostRings
from swtrace.recording import Recording
from swtrace.recording.difference import Change, difference
from swtrace.recording.playback import Controls, Playback
from swtrace.recording.selected import SelectedSteps
from swtrace.selection import Selection
from swtrace.testing import limits
from swtrace.testing.tracing import Tracing
from swtrace.trace.directory import ring_paths
from swtrace.trace.schema import Phase
from tests.support.commands import checked
from tests.support.feeding import feed, ledger
from tests.support.recorded_run import PullRun, RecordedRun
from tests.support.scenes import Still, app_over, observation_of, press, run, shown, until
from tests.support.simulated_pull import PullSchedule, replicas, simulate_pull
from tests.support.simulated_recordings import record, replayed

COMPARING = ("broadcast", "lockstep", "skew", "straggler", "slowest rank", "late entry", "entered last", "sent")
STEPS = {0: 40, 1: 70, 2: 20, 3: 8}
"""Steps of each of the replicas."""


@pytest.fixture(scope="module")
def still() -> Still:
    """Return the replicas, at their end."""
    return Still(observation_of(replicas()))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of the replicas."""
    path = tmp_path_factory.mktemp("pull") / "run.swrec"
    record(path, replicas())
    return path


def compares(text: str) -> list[str]:
    """Return the words in a text that have no meaning in a pull series."""
    return [word for word in COMPARING if word in text.lower()]


# -- the terminal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(130, 40), (60, 20)])
def test_no_screen_compares_ranks(still: Still, size: tuple[int, int]) -> None:
    """No view says broadcast or skew, or speaks of a slowest rank."""

    async def test() -> None:
        app = app_over(still)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app._diagnosis and len(app._diagnosis.findings) > 2)
            for view in VIEWS:
                app.action_show(view)
                await pilot.pause()
                await press(pilot, "m", "m", "m")
                assert compares(shown(app)) == [], view

    run(test())


def test_the_overview_has_one_row_per_rank_with_its_own_rate(still: Still) -> None:
    """Steps are the sum over the ranks, and each rank's rate is that of its own steps."""
    seen = picture(still.now, Filter())
    lines = [strip.text for strip in Overview().draw(Scene(seen, MONO), 130, 40)]
    assert any(line.startswith(f" steps {sum(STEPS.values())} ") for line in lines)
    for row in seen.rows:
        mine = [step for step in seen.series[0].steps if step.of_rank == row.rank]
        elapsed_s = int(mine[-1].end_ns[row.rank] - mine[0].end_ns[row.rank]) * 1e-9
        assert row.step_rate == pytest.approx((len(mine) - 1) / elapsed_s)
        assert len(row.stall_ratios) == len(mine) == min(64, STEPS[row.rank])


def test_the_rate_within_a_phase_is_the_rank_s_own(still: Still) -> None:
    """With a phase selected, a rank's steps of it count, and not those of the other ranks."""
    all_of_it = picture(still.now, Filter())
    decoding = picture(still.now, Filter(phase=Phase.DECODE))
    assert [row.step_rate for row in decoding.rows] == pytest.approx([row.step_rate for row in all_of_it.rows])
    assert decoding.series[0].facts.steps == 64


def test_the_heat_map_is_over_each_rank_s_own_steps(still: Still) -> None:
    """Means are those of the rank's own waits, "last" has a step of every rank, and there is no skew to show."""
    series = picture(still.now, Filter()).series[0]
    shown_ns, waited = values(series, METRICS[0], "mean")
    for rank in range(4):
        mine = [step for step in series.steps if step.of_rank == rank]
        waits = np.sum([step.receiver[rank] for step in mine], axis=0)
        stall = np.sum([step.stall_ns[rank] for step in mine], axis=0)
        assert (shown_ns[rank] * waits).tolist() == pytest.approx(stall.tolist())
        assert (waited[rank] == (waits > 0)).all()
    assert {step.of_rank: step.step for step in last_steps(series)} == {rank: n - 1 for rank, n in STEPS.items()}
    names = set()
    view = HeatMap()
    for _ in METRICS:
        names.add(view.draw(Scene(picture(still.now, Filter()), MONO), 120, 30)[0].text.split(":")[0].strip())
        view._metric += 1
    assert names == {"stall", "slack", "transfer"}


def test_a_cell_says_how_many_ranks_read_from_the_owner_at_once(still: Still) -> None:
    """The text about a cell splits its mean transfer by the number of readers."""
    series = picture(still.now, Filter()).series[0]
    text = " ".join(explanation(series, 1, 12))
    found = re.search(r"read from rank 0 at once: (\S+) us alone \((\d+) times\), (\S+) us while 2 ranks read", text)
    assert found is not None, text
    known = readers(series.facts, series.steps)
    assert known is not None
    took: dict[int, list[int]] = {}
    for step in series.steps:
        if step.of_rank == 1:
            took.setdefault(int(known.of(step)[12]), []).append(int(step.transfer_ns[1, 12]))
    assert float(found[1]) == pytest.approx(np.mean(took[1]) / 1000, abs=0.5)
    assert int(found[2]) == len(took[1])
    assert float(found[3]) == pytest.approx(np.mean(took[2]) / 1000, abs=0.5)


def test_the_timeline_shows_one_rank_s_step_and_what_the_others_did(still: Still) -> None:
    """It follows the rank that stalls most, or the one that was opened; ``[`` stays with that rank."""

    async def test() -> None:
        app = app_over(still)
        async with app.run_test(size=(130, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "3")
            assert "Step 69 of rank 1:" in shown(app)
            await press(pilot, "left_square_bracket")
            assert "Step 68 of rank 1:" in shown(app)
            app.screen.query_one(Timeline).point_out(2, None)
            await press(pilot, "f")
            assert "Step 19 of rank 2:" in shown(app)
            lines = shown(app).splitlines()
            # Rank 0 ran steps of its own meanwhile, so its lane has layers and compute.
            at = next(i for i, line in enumerate(lines) if line.strip().startswith("rank 0"))
            assert re.search(r"╷\d", lines[at - 1])

    run(test())


# -- recordings, reports, comparisons ------------------------------------------------------------------


def test_a_recording_of_ranks_that_pull_gives_the_facts_of_the_run(recording: Path) -> None:
    """Replayed, each rank has its own steps and stall."""
    made = ledger(replicas())
    feed(made, replicas())
    (live,), (again,) = made.facts().series, replayed(recording).facts.series
    assert {rank.rank.rank: rank.totals.steps for rank in again.ranks} == STEPS
    assert [rank.totals.cause_ns for rank in again.ranks] == [rank.totals.cause_ns for rank in live.ranks]


def test_the_report_is_about_each_rank(recording: Path, tmp_path: Path) -> None:
    """The page names the rank whose steps a chart shows, and compares no ranks outside its glossary."""
    page = tmp_path / "report.html"
    checked("report", recording, "-o", page)
    body = page.read_text(encoding="utf-8").partition("</style>")[2].partition("Words on this page")[0]
    text = html.unescape(re.sub(r"<[^>]+>", "", body))
    assert compares(text) == []
    assert "Step time and stall of rank 1" in text
    assert re.search(r"step \d+ of rank 2: \d+\.\d ms, stall 0", text)
    assert f"Covers {sum(STEPS.values()) - 3 * 4} steps of all ranks" in text


def test_stats_compares_no_ranks(recording: Path) -> None:
    """The summary has each rank's number of steps, and no word that compares ranks."""
    text = checked("stats", recording).stdout
    assert compares(text) == []
    assert [int(found) for found in re.findall(r"^ +\d +(\d+) +\d+\.?\d* ms", text, re.MULTILINE)] == [*STEPS.values()]


def _slower(rank: int) -> PullSchedule:
    """Return two ranks that pull, of which one copies more slowly."""
    chance = random.Random(rank + 5)  # noqa: S311 - reproducible
    return simulate_pull(
        layers=6,
        k=1,
        steps=(150, 220),
        compute=lambda *_: chance.randrange(50_000, 150_000),
        copy=lambda of, _step, _position: 300_000 if of == rank else 120_000,
    )


def test_a_comparison_judges_each_rank_on_its_own(tmp_path: Path) -> None:
    """If only rank 1's copies got slower, rank 1 is worse and rank 0 is not."""
    record(tmp_path / "a.swrec", _slower(-1))
    record(tmp_path / "b.swrec", _slower(1))
    with Recording.open(tmp_path / "a.swrec") as a, Recording.open(tmp_path / "b.swrec") as b:
        found = difference(a, b, warmup=0)
    assert {each.series.of_rank: (each.a_steps, each.change) for each in found.series} == {
        0: (150, Change.SAME),
        1: (220, Change.WORSE),
    }
    assert all(one.rank == each.series.of_rank for each in found.series for one in (*each.ranks, *each.layers))
    assert found.failures == ("series o_proj from layer 0 on 2 ranks, rank 1: step time and stall got worse",)


def test_warm_up_is_left_out_of_each_rank() -> None:
    """The first steps of every rank are left out, however late it starts."""
    made = ledger(replicas())
    feed(made, replicas())
    chosen = SelectedSteps(Selection(warmup=5))
    kept = list(chosen.among(made.take_steps()))
    firsts = {rank: min(step.step for step in kept if step.of_rank == rank) for rank in STEPS}
    assert firsts == dict.fromkeys(STEPS, 5)
    (series,) = chosen.facts(made.facts()).series
    assert [rank.recent.steps for rank in series.ranks] == [count - 5 for count in STEPS.values()]
    assert series.steps == STEPS[1] - 5


def test_a_failing_test_states_means_over_each_rank_s_own_steps() -> None:
    """The table of layers divides a rank's stall by the steps of that rank, not by those of a faster one."""
    schedule = simulate_pull(
        layers=4, k=1, steps=(50, 5), compute=lambda *_: 100_000, copy=lambda rank, *_: 300_000 if rank else 50_000
    )
    made = ledger(schedule)
    feed(made, schedule)
    steps = made.take_steps()
    tracing = cast("Tracing", SimpleNamespace(steps=lambda: steps))
    (key,) = {step.series for step in steps}
    ranks = {rank.rank: rank.recent.steps for rank in made.facts().series[0].ranks}
    lines = limits._layers(tracing, limits.Limits(), key, ranks)
    stall = sum(int(step.stall_ns[1, 2]) for step in steps) / 5 * 1e-6
    assert [line.split()[3] for line in lines if line.split()[:2] == ["1", "2"]] == [f"{stall:.2f}"]


def test_a_step_of_the_playback_is_the_next_step_of_any_rank(recording: Path) -> None:
    """Stepping through a replay stops whenever a rank has ended a step."""
    controls = Controls()
    with Recording.open(recording) as opened:
        playback = Playback(opened, controls, clock=lambda: 0)
        made = ledger(replicas())
        ended = []
        for _ in range(6):
            controls.step()
            for event in playback.poll().events:
                for rank, records in getattr(event, "batches", ()):
                    made.add(rank, records)
            ended.append(sum(rank.totals.steps for rank in made.facts().series[0].ranks))
        assert np.diff(ended).tolist() == [1] * 5


@pytest.mark.parametrize("kind", [RecordedRun, PullRun])
def test_a_reader_awaits_no_other_rank_of_a_pull_series(kind: Callable[[Path], RecordedRun], tmp_path: Path) -> None:
    """While a rank is missing, its peers' steps must wait for it in a broadcast series only."""
    made = kind(tmp_path)
    made.recorders[1].close()
    next(path for path in ring_paths(tmp_path) if "-1-" in path.name).unlink()
    rings = HostRings(tmp_path)
    rings.poll()
    assert rings._awaits_ranks() == (kind is RecordedRun)
    rings.close()
    made.close()
