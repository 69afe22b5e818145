"""The application, driven by keys and mouse."""

from __future__ import annotations

import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from rich.console import Console
from swtrace_tui.actions import ACTIONS, TITLES, VIEWS
from swtrace_tui.app import TopApp
from swtrace_tui.feed import Feed
from swtrace_tui.help import Help, help_text
from swtrace_tui.palette import MONO, SPAN_NAMES, THEMES, WINDOW_NAMES
from swtrace_tui.picture import Filter, RankState, picture
from swtrace_tui.preferences import Configuration, load
from swtrace_tui.views.heat_map import HeatMap
from swtrace_tui.views.overview import COLUMNS, Overview
from swtrace_tui.views.timeline import Timeline

from swtrace import units
from swtrace.ledger.facts import CAUSES
from swtrace.observing import Link, OriginStatus, watch_rings
from swtrace.trace.schema import Phase
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


@pytest.mark.parametrize("width", [80, 100])
def test_a_long_folder_cuts_no_command_off(width: int) -> None:
    """A command that is wider than the screen continues in the next line, as a shell reads it."""
    folder = "/dev/shm/" + 44 * "x"

    async def test() -> None:
        app = app_over(Still(empty(OriginStatus(folder, Link.WAITING))))
        async with app.run_test(size=(width, 30)) as pilot:
            await until(pilot, lambda: "Nothing to watch yet." in shown(app))
            lines = "\n".join(line.strip() for line in shown(app).splitlines())
            assert f"SWTRACE_DIR={folder} swtrace demo --scenario stalled\n" in lines.replace(" \\\n", " ")

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
            await press(pilot, "d")
            assert app._feed is None
            await until(pilot, lambda: made[0].closed)
            assert "DETACHED" in shown(app)
            assert "stall ratio" in shown(app)
            await press(pilot, "d")
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


def test_heat_map_cursor_begins_at_the_worst_cell_and_enter_opens_it_in_the_timeline() -> None:
    """The cursor follows the highest value until it is moved; Enter zooms the timeline to that wait."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "2")
            heat = app.screen.query_one(HeatMap)
            assert heat._values[heat._cursor] == heat._values.max()
            row, position = heat._cursor
            await press(pilot, "left")
            assert heat._cursor == (row, position - 1)
            await press(pilot, "g", "enter")
            assert app.view == "timeline"
            timeline = app.screen.query_one(Timeline)
            assert timeline._mark == (row, position)
            assert f"▸{position}◂" in shown(app)

    run(test())


def test_heat_map_metric_and_span_go_round() -> None:
    """``m`` and ``w`` change the metric and the steps of the cells, and the legend says so."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "2")
            for name in ("slack", "transfer", "skew", "stall"):
                await press(pilot, "m")
                assert shown(app).splitlines()[2].strip().startswith(name)
            await press(pilot, "w")
            assert "worst of 24 steps" in shown(app)
            await press(pilot, "w")
            assert "step 23" in shown(app)

    run(test())


def test_timeline_zooms_holds_the_step_and_follows_again() -> None:
    """Zooming holds the step that is shown; ``f`` follows the newest one and shows all of it."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "3")
            assert "(following)" in shown(app)
            before = app.screen.query_one(Timeline)._range()
            await press(pilot, "plus")
            begin, end = app.screen.query_one(Timeline)._range()
            assert end - begin == pytest.approx((before[1] - before[0]) / 2)
            assert "held" in shown(app)
            await press(pilot, "left_square_bracket")
            assert "Step 22" in shown(app)
            await press(pilot, "f")
            assert "(following)" in shown(app)
            assert "Step 23" in shown(app)

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


def test_help_explains_every_key_column_and_symbol() -> None:
    """The help says how to close it, and lists each action, column, rank state, cause, stretch and window state."""
    console = Console(width=200, record=True, file=StringIO())
    console.print(help_text({}, (), {}, "swtrace top", MONO))
    text = console.export_text()
    assert "Esc, q or ? closes this help" in text
    words = [action.help for action in ACTIONS] + [units.words(cause) for cause in CAUSES] + [*SPAN_NAMES.values()]
    columns = [part for column in COLUMNS for part in column.title.split(" of ")]
    for word in (*words, *columns, *(str(state) for state in RankState), *WINDOW_NAMES.values()):
        assert word in text


def test_help_and_palette_offer_every_action() -> None:
    """The help screen and the command palette are made from the same registry as the keys."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 60)) as pilot:
            await until(pilot, lambda: app.picture)
            titles = {command.title for command in app.get_system_commands(app.screen)}
            for action in ACTIONS:
                assert (f"{action.view}: {action.title}" if action.view else action.title) in titles
            await press(pilot, "question_mark")
            assert isinstance(app.screen, Help)
            text = shown(app)
            for title in list(TITLES.values())[:2]:
                assert title in text
            await press(pilot, "escape")
            assert not isinstance(app.screen, Help)

    run(test())


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


def test_ids_and_keys_of_actions_are_unambiguous() -> None:
    """No id is used twice, and within a view no key has two actions."""
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)
    everywhere = [key for action in ACTIONS if action.view is None for key in action.keys.split(",")]
    for view in (None, *VIEWS):
        own = [key for action in ACTIONS if action.view == view and view for key in action.keys.split(",")]
        assert len(set(everywhere + own)) == len(everywhere) + len(own), view


def test_keys_are_remapped_by_the_configuration(tmp_path: Path) -> None:
    """A key from the file replaces the built-in one."""
    path = tmp_path / "top.toml"
    path.write_text('theme = "swtrace-light"\n[keys]\npause = "z"\n')

    async def test() -> None:
        app = app_over(stalled(), configuration=load(path))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            assert app.theme == "swtrace-light"
            await press(pilot, "space")
            assert not app._paused
            await press(pilot, "z")
            assert app._paused

    run(test())


@pytest.mark.parametrize("text", ["keys = 1", "[keys]\nfly = 'x'", "colour = 'red'", "theme = 3", "= nonsense"])
def test_a_configuration_that_cannot_be_used_is_a_readable_error(tmp_path: Path, text: str) -> None:
    """An error in the file is reported with the file's name."""
    from swtrace.errors import SettingsError

    path = tmp_path / "top.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"top\.toml"):
        load(path)


def test_no_file_is_the_built_in_configuration(tmp_path: Path) -> None:
    """Without a file, theme and keys are the defaults, even if HOME is not a folder, as for many services."""
    assert load(tmp_path / "top.toml") == Configuration()
    assert load(Path("/dev/null/.config/swtrace/top.toml")) == Configuration()


def test_themes_change_every_colour_and_lose_nothing() -> None:
    """All our themes show the same text, except for the glyphs of the one without colour."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: "k=1 leaves" in shown(app))
            assert app.theme == THEMES[0]
            before = shown(app).splitlines()[2:12]
            for name in (*THEMES[1:], THEMES[0]):
                await press(pilot, "t")
                assert app.theme == name
                assert shown(app).splitlines()[2:6] == before[:4]

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


def test_a_roster_that_raises_ends_the_application_with_that_error() -> None:
    """An error while reading is never swallowed: the screen would freeze and look alive."""

    class Broken(Still):
        def poll(self, limit: int | None = None) -> bool:  # noqa: ARG002 (as the real one)
            raise RuntimeError("a bug")

    async def test() -> None:
        app = app_over(Broken(empty()))
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: app._exception is not None)

    with pytest.raises(RuntimeError, match="a bug"):
        run(test())


def test_observations_describe_themselves_in_a_line() -> None:
    """Frameworks take reprs of their arguments; these must not contain an observation's thousands of numbers."""
    source = stalled()
    assert len(repr(source.now)) < 100
    assert len(repr(picture(source.now, Filter()))) < 200


def test_a_slow_screen_gets_fewer_observations_not_a_queue_of_them() -> None:
    """The feed delivers the next observation only after the last one was drawn."""
    source = Still(empty())
    arrived: list[object] = []
    polled = threading.Event()
    feed = Feed(lambda: cast("Roster", source), arrived.append, arrived.append, frame_s=0.001)
    feed.start()
    while source.polls < 20:
        polled.wait(0.01)
    assert len(arrived) == 1
    feed.taken()
    seen = source.polls
    while source.polls < seen + 20:
        polled.wait(0.01)
    feed.stop(5)
    assert len(arrived) == 2
    assert source.closed
