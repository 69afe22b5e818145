"""The application, driven by keys and mouse."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from swtrace_tui.actions import HEAT_MAP, OVERVIEW, TIMELINE, VIEWS
from swtrace_tui.app import TopApp, screenshot
from swtrace_tui.bars import Search
from swtrace_tui.picture import Filter
from swtrace_tui.preferences import Configuration
from swtrace_tui.views.heat_map import HeatMap
from textual import events

from swtrace.errors import SettingsError
from swtrace.observing import Link, OriginStatus, Roster, watch_rings
from swtrace.trace.schema import Phase
from swtrace.version import __version__
from tests.support.scenes import FRAME_S, Still, app_over, empty, observation_of, press, run, settled, shown, until
from tests.support.simulated_rings import scenario, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from swtrace.observing import Roster


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


def test_nothing_to_watch_says_what_to_do_next_until_a_ring_appears(tmp_path: Path) -> None:
    """The empty screen names commands; once ranks create rings, it shows the table of these ranks."""

    async def test() -> None:
        app = TopApp(lambda: watch_rings(tmp_path / "rings", newest_steps=72), frame_s=FRAME_S)
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: "Nothing to watch yet." in shown(app))
            await until(pilot, lambda: "swtrace demo" in shown(app))
            with write(tmp_path / "rings", "stalled"):
                await until(pilot, lambda: "NOT HIDDEN" in shown(app))
                assert "stall ratio" in shown(app)
            await until(pilot, lambda: "ended" in shown(app))

    run(test())


def test_number_keys_and_tab_open_every_view() -> None:
    """1 to 5 open the views, tab cycles through them."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            for number, view in enumerate(VIEWS, 1):
                await press(pilot, str(number))
                assert app.view == view
                assert app.focused is app.screen.query_one(f"#{view}")
            await press(pilot, "tab")
            assert app.view == VIEWS[0]
            await press(pilot, "shift+tab")
            assert app.view == VIEWS[-1]

    run(test())


@pytest.mark.parametrize("size", [(80, 24), (220, 75), (40, 10)])
def test_every_view_draws_at_every_size_and_after_every_resize(size: tuple[int, int]) -> None:
    """Nothing is drawn beyond the terminal, and nothing raises, however small or large it gets."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: app.picture)
            for view in VIEWS:
                app.action_show(view)
                await pilot.resize_terminal(*size)
                await settled(pilot)
                lines = shown(app).splitlines()
                assert len(lines) == size[1]
                assert {len(line) for line in lines} == {size[0]}
                await pilot.resize_terminal(100, 30)
                await settled(pilot)

    run(test())


def test_pause_freezes_the_screen_and_not_the_source() -> None:
    """While paused, new facts are read but not shown; resuming shows them."""

    async def test() -> None:
        source = stalled()
        app = app_over(source)
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: "NOT HIDDEN" in shown(app))
            await press(pilot, "space")
            source.now = observation_of(scenario("hidden"))
            polls = source.polls
            await until(pilot, lambda: source.polls > polls + 5)
            assert "PAUSED" in shown(app)
            assert "NOT HIDDEN" in shown(app)
            await press(pilot, "space")
            await until(pilot, lambda: "NOT HIDDEN" not in shown(app))

    run(test())


def test_detach_lets_go_of_the_ranks_and_reattach_takes_them_up_again() -> None:
    """``d`` closes the roster and keeps the picture; a second ``d`` makes a new roster."""

    async def test() -> None:
        made: list[Still] = []

        def make() -> Still:
            made.append(stalled())
            return made[-1]

        app = TopApp(cast("Callable[[], Roster]", make), frame_s=FRAME_S)
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "D")
            assert app._feed is None
            await until(pilot, lambda: made[0].closed)
            assert "DETACHED" in shown(app)
            assert "stall ratio" in shown(app)
            await press(pilot, "D")
            await until(pilot, lambda: len(made) == 2 and made[1].polls)
            assert "DETACHED" not in shown(app)

    run(test())


def test_a_lost_origin_is_shown_as_such_over_its_last_facts() -> None:
    """When an origin is lost, the title says why and the table stays."""

    async def test() -> None:
        source = stalled()
        app = app_over(source)
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            source.now = replace(source.now, origins=(OriginStatus("host:9465", Link.LOST, "connection refused"),))
            await until(pilot, lambda: "connection refused" in shown(app))
            assert "✗ lost" in shown(app)
            assert "stall ratio" in shown(app)
            source.now = replace(source.now, origins=(OriginStatus("host:9465", Link.LIVE),))
            await until(pilot, lambda: "● live" in shown(app))

    run(test())


def test_rank_filter_goes_round_and_escape_clears_it() -> None:
    """``r`` narrows to each rank in turn, then to none; Esc clears at once."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            for rank in range(4):
                await press(pilot, "r")
                assert app.picture is not None
                assert [row.rank for row in app.picture.rows] == [rank]
                assert f"rank {rank}" in shown(app).splitlines()[1]
            await press(pilot, "r")
            assert app.picture is not None
            assert len(app.picture.rows) == 4
            await press(pilot, "r", "escape")
            assert app.picture is not None
            assert len(app.picture.rows) == 4

    run(test())


def test_phase_filter_offers_the_phases_that_there_are() -> None:
    """``p`` narrows to the phases of the last steps, and to no others."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "p")
            assert app.picture is not None
            assert app.picture.selection.phase is Phase.DECODE
            await press(pilot, "p")
            assert app.picture is not None
            assert app.picture.selection.phase is None

    run(test())


def test_copy_gives_the_view_as_plain_text() -> None:
    """``y`` copies the view, with glyphs instead of colours."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: "NOT HIDDEN" in shown(app))
            await press(pilot, "y")
            assert "NOT HIDDEN" in app.clipboard
            assert "rank" in app.clipboard
            await press(pilot, "2", "y")
            assert "@" in app.clipboard or "#" in app.clipboard or "█" in app.clipboard

    run(test())


def test_screenshots_are_saved_as_svg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``x`` writes an SVG, and never overwrites an older one."""
    monkeypatch.setenv("SWTRACE_SCREENSHOTS", str(tmp_path))

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "x", "x")

    run(test())
    assert {path.name for path in tmp_path.iterdir()} == {"swtrace-overview-1.svg", "swtrace-overview-2.svg"}


def test_palette_commands_act_on_their_view() -> None:
    """A command of the heat map, run from another view, opens the heat map and acts there."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            command = next(
                command for command in app.get_system_commands(app.screen) if command.title == "heatmap: Metric"
            )
            await command.callback()
            assert app.view == "heatmap"
            assert app.screen.query_one(HeatMap)._metric == 1

    run(test())


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR set, glyphs replace colours."""
    monkeypatch.setenv("NO_COLOR", "1")

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            assert app.theme == "swtrace-mono"
            await press(pilot, "3")
            assert "█" in shown(app)
            assert "▓" in shown(app)

    run(test())


def test_an_unknown_theme_is_an_error_with_those_that_there_are() -> None:
    """A theme that does not exist, from the command line or the file, is not ignored."""
    with pytest.raises(SettingsError, match=r"no theme 'nope'; must be one of: swtrace-dark.*textual-dark"):
        app_over(Still(empty()), configuration=Configuration(theme="nope"))


@pytest.mark.parametrize("before", [[], ["question_mark"]])
def test_ctrl_c_ends_the_terminal_in_every_screen(before: list[str]) -> None:
    """Ctrl-C exits at once, from a view and from the help."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, *before, "ctrl+c")
            await until(pilot, lambda: app._exit)

    run(test())


def test_verdicts_are_reached_for_the_views_that_show_them() -> None:
    """The open heat map computes no verdicts; the overview asks for them when it opens."""
    asyncio.run(_judged())


async def _judged() -> None:
    app = app_over(Still(observation_of(scenario("stalled"))), view="heatmap")
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app._diagnosis)
        reached: list[object] = []
        app._diagnose = lambda *asked: reached.append(asked)  # type: ignore[method-assign]
        app._judge_at = 0.0
        app._judge()
        assert reached == []
        app.action_show("overview")
        assert len(reached) == 1


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
def test_every_view_keeps_help_and_quit_in_its_last_line(size: tuple[int, int]) -> None:
    """Keys that have no room are left out whole, but never the two that lead to all others and out."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.picture)
            for view in VIEWS:
                app.action_show(view)
                await settled(pilot)
                last = shown(app).splitlines()[-1]
                assert "? Help" in last
                assert "q Quit" in last

    run(test())


def test_a_clicked_key_does_what_the_key_does() -> None:
    """The keys in the last line are buttons."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: app.picture)
            at = shown(app).splitlines()[-1].index("Pause")
            await pilot.click("KeyBar", offset=(at, 0))
            await until(pilot, lambda: "PAUSED" in shown(app))

    run(test())


@pytest.mark.parametrize("view", [OVERVIEW, HEAT_MAP, TIMELINE])
def test_a_tiny_screen_shows_every_rank(view: str) -> None:
    """At 40 columns and 12 lines, sentences give way to the four ranks, and the title names the series."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))), view=view)
        async with app.run_test(size=(40, 12)) as pilot:
            await until(pilot, lambda: app.picture)
            await settled(pilot)
            lines = shown(app).splitlines()
            for rank in range(4):
                assert any(re.match(rf" *(rank )?{rank} ", line) for line in lines[2:]), "\n".join(lines)
            assert "o_proj" in lines[0]

    run(test())


def test_the_title_names_the_version() -> None:
    """The first line says which swtrace it is."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: f"swtrace {__version__} " in shown(app).splitlines()[0])

    run(test())


def test_a_screenshot_shows_no_notice_of_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that cover a corner of the screen go before the picture is taken."""
    folder = tmp_path_factory.mktemp("pictures")
    monkeypatch.setenv("SWTRACE_SCREENSHOTS", str(folder))

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(120, 40), notifications=True) as pilot:
            await until(pilot, lambda: app._diagnosis)
            await press(pilot, "x")
            await until(pilot, lambda: "Saved" in shown(app))
            await press(pilot, "x")
            await until(pilot, lambda: len(list(folder.iterdir())) == 2)

    run(test())
    first, second = sorted(path.read_text() for path in folder.iterdir())
    assert "Saved" not in second.replace("&#160;", " ")
    assert first == second


def test_a_screenshot_draws_charts_as_rectangles_that_touch() -> None:
    """No block glyph remains, whose height is the font's; the parts of a lane have the height of a line."""
    svgs = []

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("straggler"))), view="timeline")
        async with app.run_test(size=(100, 40)) as pilot:
            await until(pilot, lambda: "compute" in shown(app))
            assert "▌" in shown(app)
            svgs.append(screenshot(app, "timeline"))

    run(test())
    (svg,) = svgs
    assert not re.search("[▁-█▌▀]", svg)
    lanes = re.findall(r'<rect class="[^"]*" x="[^"]*" y="([^"]*)" width="6.1" height="24.40"', svg)
    assert all(round((float(y) - 1.5) / 24.4, 3).is_integer() for y in lanes)
    assert len(lanes) > 10


def test_a_run_that_ended_says_so_and_how_to_go_on() -> None:
    """Once all ranks have ended, the title says it in the words that the caller chose, and no longer says live."""
    whole = observation_of(scenario("stalled"))
    over = replace(
        whole, ranks=tuple(replace(rank, ring=replace(rank.ring, alive=False, closed=True)) for rank in whole.ranks)
    )

    async def test() -> None:
        source = Still(whole)
        app = app_over(source, ended="RUN ENDED: q shows the summary")
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: app.picture)
            await settled(pilot)
            assert "RUN ENDED" not in shown(app)
            source.now = over
            await until(pilot, lambda: "RUN ENDED: q shows the summary" in shown(app).splitlines()[0])
            assert "live" not in shown(app).splitlines()[0]

    run(test())


def test_what_is_typed_narrows_every_view_at_once_until_escape() -> None:
    """While typing, views follow; enter keeps the search and frees the keys; Esc shows everything again."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "slash", *"rank 2")
            assert app.picture is not None
            assert [row.rank for row in app.picture.rows] == [2]
            assert "esc Show all" in shown(app)
            await press(pilot, "enter")
            assert "matching 'rank 2'" in shown(app).splitlines()[1]
            for number, view in enumerate(VIEWS, 1):
                await press(pilot, str(number))
                assert app.view == view
                assert [row.rank for row in app.picture.rows] == [2]
            await press(pilot, "escape")
            assert app.picture is not None
            assert [row.rank for row in app.picture.rows] == [0, 1, 2, 3]
            assert "matching" not in shown(app)

    run(test())


@pytest.mark.parametrize("key", ["q", "r", "x", "1"])
def test_keys_of_the_views_are_letters_while_searching(key: str) -> None:
    """What is typed into the search does nothing else."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))), view="heatmap")
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "slash", key)
            assert app.view == "heatmap"
            assert app.picture is not None
            assert app.picture.selection == Filter(text=key)
            await press(pilot, "escape", "2")
            assert app.picture.selection == Filter()

    run(test())


def test_a_letter_that_arrives_together_with_the_key_of_the_search_is_no_command() -> None:
    """``/`` and ``3`` at once do not open the timeline."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            for key, character in (("slash", "/"), ("3", "3")):
                app.post_message(events.Key(key, character))
            await until(pilot, lambda: isinstance(app.focused, Search))
            await settled(pilot)
            assert app.view == "overview"

    run(test())


def test_a_search_that_finds_nothing_says_what_it_looked_at() -> None:
    """No view shows another rank's figures, and the message names what a search compares."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "slash", *"nowhere")
            await settled(pilot)
            assert "Nothing matches 'nowhere': no rank or pid" in shown(app)
            assert "Press Esc to clear the filter" in shown(app)

    run(test())
