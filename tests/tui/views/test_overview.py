"""The overview: one row per rank, sorted as asked, below the headline."""

from __future__ import annotations

import re

import pytest
from swtrace_tui.palette import MONO
from swtrace_tui.views.overview import COLUMNS, Overview, fitting, headline
from swtrace_tui.views.verdict_view import finding_lines
from swtrace_tui.views.view import Scene

from swtrace.ledger.finding import Finding, Level
from tests.support.scenes import Still, app_over, drawn, observation_of, pictured, press, run, settled, shown, until
from tests.support.simulated_rings import scenario


def test_sorting_by_stall_brings_the_worst_rank_to_the_top() -> None:
    """Clicking a column sorts by it, worst first; clicking again reverses."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("straggler"))))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            overview = app.screen.query_one(Overview)
            await until(pilot, lambda: "is the straggler" in shown(app))
            begin = next(begin for begin, _, column in overview._header if column.title == "stall ratio")
            await pilot.click(Overview, offset=(begin + 2, overview._first_row - 1))
            await settled(pilot)
            ratios = [row.recent.stall_ratio or 0.0 for row in overview._rows]
            assert ratios == sorted(ratios, reverse=True)
            assert overview._rows[-1].rank == 3  # the straggler itself waits least
            await press(pilot, "i")
            assert overview._rows[0].rank == 3

    run(test())


def test_a_death_has_a_word_of_its_own_before_the_headline() -> None:
    """A headline about a dead rank has its own badge, not one about hiding, in both views."""
    died = Finding("died", Level.BAD, "Rank 1 died. All figures are from the steps before.", rank=1)
    seen = pictured("hidden")
    (series,) = seen.series
    vars(series)["headline"] = died
    for lines in (headline(Scene(seen, MONO), 100, 3), finding_lines(died, MONO, 100, first=True)):
        text = "\n".join(strip.text for strip in lines)
        assert " RANK DIED " in text
        assert "HIDDEN" not in text
        assert died.sentence in text


def test_pid_and_host_are_shown_where_there_is_room() -> None:
    """A wide overview names each rank's process and host; a narrow one drops these columns first."""
    seen = pictured("stalled")
    titles = {width: [column.title for column, _ in fitting(seen, width)] for width in (80, 120, 160)}
    assert {"pid", "host"} <= set(titles[160])
    assert "pid" in titles[120]
    assert not {"pid", "host"} & set(titles[80])
    assert set(titles[80]) >= {column.title for column in COLUMNS[5:9]}
    (row, *_) = seen.rows
    (line,) = (line for line in drawn(Overview(), 160, 40) if line.startswith(f"     {row.rank} "))
    assert f" {row.host} " in line
    assert f" {row.pid} " in line


@pytest.mark.parametrize("steps", [10, 24])
def test_the_trend_uses_the_width_of_the_screen(steps: int) -> None:
    """With room for several columns per step, the bars of the last steps fill most of the line or are four wide."""
    (line,) = (line for line in drawn(Overview(), 200, 40, steps=steps) if line.startswith("     1 "))
    bars = re.search(r"[▁▂▃▄▅▆▇]+ *$", line)
    assert bars is not None
    assert len(bars[0].strip()) % steps == 0
    assert len(bars[0].strip()) > min(3 * steps, 50)


@pytest.mark.parametrize(("width", "height"), [(60, 13), (60, 14), (80, 12)])
def test_sentences_use_lines_that_are_too_few_for_a_chart(width: int, height: int) -> None:
    """Where no chart fits below the ranks, the headline is not cut."""
    lines = drawn(Overview(), width, height)
    assert len(lines) <= height
    assert not any("…" in line for line in lines)
    assert not any("Stall by layer" in line for line in lines)


def test_badge_and_columns_leave_the_first_column_free() -> None:
    """Nothing in the overview touches the left edge."""
    for line in drawn(Overview(), 100, 40):
        assert line.startswith(" ")
