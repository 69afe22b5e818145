"""The overview: one row per rank, sorted as asked, below the headline."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views.overview import COLUMNS, Overview, fitting, headline
from swtrace_tui.views.view import Scene
from textual import events

from swtrace import units
from swtrace.diagnosis.finding import Finding, Level
from tests.support.scenes import (
    Still,
    app_over,
    drawn,
    observation_across,
    observation_of,
    on_two_hosts,
    pictured,
    press,
    run,
    settled,
    shown,
    until,
)
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
    """A headline about a dead rank has its own badge, not one about hiding."""
    died = Finding("died", Level.BAD, "Rank 1 died. All figures are from the steps before.", ranks=(1,))
    seen = pictured("hidden")
    (series,) = seen.series
    vars(series)["headline"] = died
    text = "\n".join(strip.text for strip in headline(Scene(seen, MONO), 100, 3))
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


def two_hosts() -> Still:
    return Still(observation_across(on_two_hosts(scenario("straggler"))))


def table(text: str) -> list[str]:
    """Return the lines of the table, without its header."""
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(" rank"))
    end = next(i for i, line in enumerate(lines) if " steps " in line and i > begin)
    return lines[begin + 1 : end]


def test_ranks_follow_the_heading_of_their_host() -> None:
    """Headings name each host and its clock; ranks follow in the chosen order, the host of the first one first."""

    async def test() -> None:
        app = app_over(two_hosts())
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await settled(pilot)
            lines = table(shown(app))
            marks = [line.split()[:2] for line in lines]
            assert marks[:3] == [["▾", "host-0"], ["0", "1"], ["1", "1"]]
            assert marks[3:] == [["▾", "host-1"], ["2", "1"], ["3", "1"]]
            assert app.picture is not None
            for line, host in zip((lines[0], lines[3]), app.picture.hosts, strict=True):
                assert f"  2 ranks  {host.clock} ──" in line
            await press(pilot, "i")  # the highest rank first
            assert [line.split()[1 if "host" in line else 0] for line in table(shown(app))] == [
                "host-1",
                "3",
                "2",
                "host-0",
                "1",
                "0",
            ]

    run(test())


def test_a_collapsed_host_names_its_most_stalled_rank() -> None:
    """``c`` shows the selected rank's host in one line, with the ledger's highest stall ratio; ``C`` all of them."""

    async def test() -> None:
        app = app_over(two_hosts())
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: "is the straggler" in shown(app))
            await press(pilot, "down", "down", "down", "down")
            overview = app.screen.query_one(Overview)
            assert app.picture is not None
            here, there = app.picture.hosts
            worst = max(there.rows, key=lambda row: row.recent.stall_ratio or 0)
            before = shown(app)
            await press(pilot, "c")
            lines = table(shown(app))
            assert len(lines) == 4
            assert f"rank {worst.rank} stalls most: {units.ratio(worst.recent.stall_ratio)}" in lines[-1]
            assert [line for line in before.splitlines() if " moved " in line] == [
                line for line in shown(app).splitlines() if " moved " in line
            ]
            await press(pilot, "up", "up", "down")
            assert overview._chosen is not None
            assert [row.rank for row in overview._chosen.rows] == [here.rows[1].rank]
            await press(pilot, "C")
            assert [line.split()[:2] for line in table(shown(app))] == [["▸", "host-0"], ["▸", "host-1"]]
            await press(pilot, "down", "enter")
            assert f"rank {worst.rank} " in shown(app)
            assert app.view == "timeline"
            assert app.screen.query_one("#timeline")._mark == (worst.rank, None)  # type: ignore[attr-defined]
            await press(pilot, "1", "C")
            assert len(table(shown(app))) == 6

    run(test())


def test_a_key_that_follows_the_one_of_a_view_at_once_is_of_that_view() -> None:
    """``1`` and ``c`` that arrive together, as from a paste or a slow link, collapse a host of the overview."""

    async def test() -> None:
        app = app_over(two_hosts())
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: "is the straggler" in shown(app))
            await press(pilot, "2")
            for key in ("1", "c"):
                app.post_message(events.Key(key, key))
            await settled(pilot)
            assert table(shown(app))[0].startswith(" ▸ host-0")

    run(test())


def test_a_click_on_a_heading_collapses_its_host() -> None:
    """A click collapses the host, another one expands it, and a click below selects the rank that is there."""

    async def test() -> None:
        app = app_over(two_hosts())
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: "is the straggler" in shown(app))
            await settled(pilot)
            overview = app.screen.query_one(Overview)
            await pilot.click(Overview, offset=(5, overview._first_row))
            await settled(pilot)
            assert table(shown(app))[0].startswith(" ▸ host-0")
            await pilot.click(Overview, offset=(5, overview._first_row + 3))
            await settled(pilot)
            assert overview._chosen is not None
            assert overview._chosen.rows[0].rank == 3
            await pilot.click(Overview, offset=(5, overview._first_row))
            await settled(pilot)
            assert len(table(shown(app))) == 6

    run(test())


@pytest.mark.parametrize("width", [40, 140])
def test_a_collapsed_host_does_not_hide_a_dead_rank(width: int) -> None:
    """The line of a collapsed host counts the ranks that do not run."""
    seen = observation_across(on_two_hosts(scenario("straggler")))
    dead = replace(seen.ranks[2], died=True, ring=replace(seen.ranks[2].ring, alive=False))
    seen = replace(seen, ranks=(*seen.ranks[:2], dead, seen.ranks[3]))
    view, shown_ranks = Overview(), picture(seen, Filter())
    view._collapsed = {host.place for host in shown_ranks.hosts}
    lines = [strip.text for strip in view.draw(Scene(shown_ranks, MONO), width, 20)]
    (line,) = (line for line in lines if "▸ host-1" in line)
    stalled = units.ratio(max(row.recent.stall_ratio or 0 for row in shown_ranks.hosts[1].rows))
    assert "2 ranks  1 died  " in line
    assert stalled in line


def test_a_host_is_collapsed_only_where_there_are_several() -> None:
    """On one host there is no heading, the key is not offered, and pressing it changes nothing."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("straggler"))))
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: app.picture and app._diagnosis)
            await settled(pilot)
            before = shown(app)
            await press(pilot, "c", "C")
            assert shown(app) == before
            assert "Collapse" not in before
        app = app_over(two_hosts())
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: "c Collapse" in shown(app))

    run(test())
