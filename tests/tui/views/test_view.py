"""The caches between frames change nothing on the screen."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import numpy as np
import pytest
from rich.segment import Segment
from swtrace_tui.app import TopApp
from swtrace_tui.palette import DARK, LIGHT, MONO, Palette, palette_of
from swtrace_tui.views import heat_map
from swtrace_tui.views.heat_map import METRICS, HeatMap, StepSums, map_line
from textual.geometry import Region
from textual.widget import Widget

from swtrace.observing import Observation
from tests.support.scenes import Still, app_over, observation_of, settled, until
from tests.support.simulated_rings import scenario

_KEYS = ("m", "w", "up", "down", "left", "right", "home", "end", "g", "1", "2", "2", "2")


def test_a_heat_map_drawn_again_and_again_is_what_a_new_one_draws() -> None:
    """After random updates, sizes, themes, keys and scrolling, each line is that of a widget that never drew before."""
    seed = random.randrange(1 << 32)  # noqa: S311 - which updates, not a secret
    print(f"seed {seed}")  # noqa: T201 - shown where it fails
    asyncio.run(_redraw(random.Random(seed)))  # noqa: S311 - which updates, not a secret


async def _redraw(chance: random.Random) -> None:
    moments = _sliding(observation_of(scenario("stalled", ranks=13, layers=40, steps=12)), chance)
    source = Still(moments[0])
    app = app_over(source, view="heatmap")
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.picture)
        for _ in range(25):
            source.now = chance.choice(moments)
            await pilot.press(*chance.choices(_KEYS, k=chance.randrange(3)))
            if chance.random() < 0.3:
                await pilot.resize_terminal(chance.randrange(30, 170), chance.randrange(12, 90))
            if chance.random() < 0.2:
                app.action_next_theme()
            if chance.random() < 0.2:
                app.action_cycle_rank()
            await settled(pilot)
            await until(pilot, lambda: app._observation is source.now)
            await settled(pilot)
            _assert_drawn_as_new(app)


def _assert_drawn_as_new(app: TopApp) -> None:
    kept = app.screen.query_one(HeatMap)
    if not kept.display or kept.scene is None:
        return
    seen = kept.render_lines(Region(0, 0, *kept.size))
    assert kept.scene.palette is palette_of(app.current_theme)

    class Fresh(HeatMap, view=HeatMap.VIEW):
        size = kept.size

    fresh = Fresh()
    for name in ("_metric", "_span", "_cursor", "_untouched", "_top_row", "_scale"):
        setattr(fresh, name, getattr(kept, name))
    map_line.cache_clear()
    heat_map._runs.cache_clear()
    drawn = fresh.lines(kept.scene)
    assert [strip.text for strip in seen] == [strip.text for strip in drawn]
    for y, (one, other) in enumerate(zip(seen, drawn, strict=True)):
        assert _cells(one) == _cells(other), y
        assert one.cell_length == kept.size.width
    styled = Widget.render_lines(kept, Region(0, 0, *kept.size))
    assert list(map(_cells, seen)) == list(map(_cells, styled)), "Textual's own styling changes nothing"


def _cells(segments: object) -> list[tuple[str, object]]:
    """Return each character and its style, independent of segment boundaries."""
    return [(char, style) for text, style, _ in segments for char in text]  # type: ignore[attr-defined]


def _sliding(last: Observation, chance: random.Random) -> list[Observation]:
    """Return views of a run as steps come and go, with different stalls in each step."""
    ((key, steps),) = last.history.items()
    numbers = np.random.default_rng(chance.randrange(1 << 32))
    jittered = tuple(
        replace(step, stall_ns=(step.stall_ns * numbers.uniform(0, 3, step.stall_ns.shape)).astype(np.int64))
        for step in steps
    )
    return [replace(last, history={key: jittered[begin : begin + 6]}) for begin in range(len(jittered) - 6)]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_sums_kept_between_frames_are_those_of_all_steps(metric: heat_map.CellMetric) -> None:
    """However steps come and go, the sums are those of the current steps."""
    observation = observation_of(scenario("stalled", ranks=3, layers=10, steps=20))
    (steps,) = observation.history.values()
    chance, kept = random.Random(5), StepSums()  # noqa: S311 - which steps, not a secret
    for _ in range(30):
        begin = chance.randrange(len(steps))
        some = steps[begin : begin + chance.randrange(1, 12)]
        total, waits = kept.over(some, metric)
        assert np.array_equal(total, sum(np.where(step.receiver, metric.of(step), 0) for step in some))
        assert np.array_equal(waits, sum(step.receiver.astype(int) for step in some))


@pytest.mark.parametrize("palette", [DARK, LIGHT, MONO], ids=lambda palette: palette.name)
def test_a_map_line_has_the_cell_of_every_column(palette: Palette) -> None:
    """Runs of equal cells end where they differ and around the cursor; each column keeps its colour and glyph."""
    chance = random.Random(palette.name)  # noqa: S311 - which levels, not a secret
    for _ in range(50):
        wide = chance.randrange(1, 5)
        levels = np.array(chance.choices(range(0, 17, chance.randrange(1, 9)), k=chance.randrange(1, 30)), np.uint16)
        cursor = (chance.randrange(len(levels)), True) if chance.random() < 0.5 else None
        look = heat_map.Look(palette, "stall", wide, paired=False, width=6 + wide * len(levels))
        single = [
            *palette.heat_segments("stall", wide),
            Segment("·".center(wide), palette.style(palette.faint, on=palette.background)),
        ]
        cells = _cells(list(map_line(look, levels.tobytes(), "7", cursor, None))[1:])
        for column, level in enumerate(levels.tolist()):
            got = cells[column * wide : (column + 1) * wide]
            if cursor is None or cursor[0] != column:
                assert got == _cells([single[level]])
            else:
                assert {style.bgcolor for _, style in got} == {single[level].style.bgcolor}  # type: ignore[attr-defined]


def test_nothing_is_sent_to_the_terminal_for_lines_that_stay() -> None:
    """Showing the same picture again refreshes no line; another metric refreshes only the map."""
    asyncio.run(_still())


async def _still() -> None:
    app = app_over(Still(observation_of(scenario("stalled"))), view="heatmap")
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.picture and app._verdicts)
        await settled(pilot)
        sent: list[tuple[Region, ...]] = []
        main = app._main
        assert main is not None
        for widget in (main.title_bar, main.view_bar, *main.views):
            widget.refresh = lambda *regions: sent.append(regions)  # type: ignore[assignment, method-assign]
        app._show()
        assert sent == []
        heat = app.screen.query_one(HeatMap)
        heat.action_metric(1)
        assert len(sent) == 1
        assert 0 < len(sent[0]) < heat.size.height


def test_verdicts_are_reached_for_the_views_that_show_them() -> None:
    """The open heat map computes no verdicts; the overview asks for them when it opens."""
    asyncio.run(_judged())


async def _judged() -> None:
    app = app_over(Still(observation_of(scenario("stalled"))), view="heatmap")
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app._verdicts)
        reached: list[object] = []
        app._reach_verdicts = lambda *asked: reached.append(asked)  # type: ignore[method-assign]
        app._judge_at = 0.0
        app._judge()
        assert reached == []
        app.action_show("overview")
        assert len(reached) == 1
