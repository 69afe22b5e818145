"""Every size of screen: what is most important is drawn, labelled and not cut off."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from swtrace_tui.actions import HEAT_MAP, OVERVIEW, TIMELINE, VIEWS
from swtrace_tui.canvas import wrap
from swtrace_tui.palette import COLOUR_BLIND, DARK, LIGHT, MONO, SPAN_NAMES, WINDOW_ABOUT, WINDOW_NAMES, Palette, Span
from swtrace_tui.views.overview import COLUMNS, Overview, fitting
from swtrace_tui.views.timeline import Timeline
from swtrace_tui.views.verdict_view import series_lines
from swtrace_tui.views.view import Scene
from swtrace_tui.views.windows import WindowsView

from swtrace.version import __version__
from tests.support.scenes import Still, app_over, observation_of, pictured, press, run, settled, shown, until
from tests.support.simulated_rings import scenario


def drawn(view: Overview | Timeline | WindowsView, width: int, height: int, **shape: int) -> list[str]:
    """Return the lines of a view of a stalled series, as text."""
    return [strip.text for strip in view.draw(Scene(pictured("stalled", None, **shape), MONO), width, height)]


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


def test_badge_and_columns_leave_the_first_column_free() -> None:
    """Nothing in the overview touches the left edge."""
    for line in drawn(Overview(), 100, 40):
        assert line.startswith(" ")


@pytest.mark.parametrize("width", [40, 80, 100, 160, 184, 220])
def test_the_legend_of_windows_is_never_cut(width: int) -> None:
    """At any width the legend names every state in full, and what it means unless that took another line."""
    lines = drawn(WindowsView(), width, 40)
    text = " ".join(" ".join(lines[:4]).split())
    for name in (*WINDOW_NAMES.values(), "own layer"):
        assert name in text
    assert "…" not in text
    assert (WINDOW_ABOUT["in_use"] in text) == (width >= 184)


def test_rows_of_layers_in_the_windows_view_have_an_axis() -> None:
    """Numbers above the rows say which layer is where; rows that continue begin with their first layer's number."""
    lines = drawn(WindowsView(), 100, 40, layers=20)
    axis = next(line for line in lines if line.lstrip().startswith("layer "))
    row = next(line for line in lines if line.lstrip().startswith("layers "))
    (window,) = re.finditer("█+", row)
    assert window.start() == axis.index("0") + 3 * 3  # the window in use holds layer 3; a layer takes 3 columns
    narrow = drawn(WindowsView(), 40, 60, layers=61)
    assert [int(line.split()[1]) for line in narrow if line.lstrip().startswith("layer ")][:3] == [0, 29, 58]


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_legend_of_the_timeline_is_never_cut(width: int) -> None:
    """At any width the legend names every kind of stretch."""
    text = " ".join(" ".join(drawn(Timeline(), width, 40)[:4]).split())
    for name in SPAN_NAMES.values():
        assert name in text


@pytest.mark.parametrize(("layers", "width"), [(20, 120), (61, 120), (61, 220), (128, 160)])
def test_layer_numbers_in_the_timeline_are_regular(layers: int, width: int) -> None:
    """Above each rank's lanes, every n-th layer is numbered, with n the same along the line."""
    lines = [line for line in drawn(Timeline(), width, 60, layers=layers) if line.lstrip().startswith("layer ")]
    assert len(lines) == 4
    for line in lines:
        numbers = [int(number) for number in re.findall(r"╷(\d+)", line)]
        steps = {after - before for before, after in pairwise(numbers)}
        assert len(numbers) >= 4
        assert len(steps) == 1, line
        assert numbers[-1] + steps.pop() >= layers - 1


def test_two_ranks_use_most_of_a_high_screen() -> None:
    """Lanes grow with the room, so that few ranks do not huddle at the top."""
    lines = drawn(Timeline(), 120, 50, ranks=2)
    lanes = [line for line in lines[3:] if re.search("[█░▓─]{2}", line)]
    assert len(lanes) >= 0.7 * 50


@pytest.mark.parametrize("palette", [DARK, LIGHT, COLOUR_BLIND], ids=lambda palette: palette.name)
def test_the_time_after_a_stall_does_not_look_like_a_transfer(palette: Palette) -> None:
    """Wake differs clearly from an exposed transfer and from every other kind of stretch."""

    def rgb(kind: Span) -> tuple[int, ...]:
        return tuple(int(palette.spans[kind][at : at + 2], 16) for at in (1, 3, 5))

    for kind in set(Span) - {Span.WAKE}:
        distance = sum((one - other) ** 2 for one, other in zip(rgb(Span.WAKE), rgb(kind), strict=True)) ** 0.5
        assert distance > 80, kind


def test_a_sentence_that_is_cut_says_so() -> None:
    """The last line that has room ends with an ellipsis, and no line is wider than it may be."""
    rows = wrap("one two three four five six seven eight nine ten", 12, indent=5, most=2)
    assert len(rows) == 2
    assert rows[-1].endswith("…")
    assert len(rows[0]) <= 7
    assert len(rows[1]) <= 12


def test_a_verdict_names_the_page_that_explains_its_words() -> None:
    """The title of the findings and the help name the glossary."""
    seen = pictured("straggler")
    (series,) = seen.series
    lines = series_lines(series, Scene(seen, MONO, {series.key: series.verdict}), 80)
    assert "docs/glossary.md" in " ".join(strip.text for strip in lines[:4])


def test_a_screenshot_shows_no_notice_of_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that cover a corner of the screen go before the picture is taken."""
    folder = tmp_path_factory.mktemp("pictures")
    monkeypatch.setenv("SWTRACE_SCREENSHOTS", str(folder))

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(120, 40), notifications=True) as pilot:
            await until(pilot, lambda: app._verdicts)
            await press(pilot, "x")
            await until(pilot, lambda: "Saved" in shown(app))
            await press(pilot, "x")
            await until(pilot, lambda: len(list(folder.iterdir())) == 2)

    run(test())
    first, second = sorted(path.read_text() for path in folder.iterdir())
    assert "Saved" not in second.replace("&#160;", " ")
    assert first == second


def test_a_run_that_ended_says_so_and_how_to_go_on() -> None:
    """Once all ranks have ended, the title says it, in the words that the caller chose."""
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

    run(test())
