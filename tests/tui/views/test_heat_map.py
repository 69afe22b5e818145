"""The heat map: its cells and means are the ledger's numbers, and the caches between frames change nothing."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.segment import Segment
from swtrace_tui.app import TopApp
from swtrace_tui.palette import (
    DARK,
    LEVELS,
    LIGHT,
    MONO,
    Palette,
    palette_of,
)
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views import heat_map
from swtrace_tui.views.heat_map import METRICS, HeatMap, StepSums, explanation, folded, level, map_line, nice, values
from swtrace_tui.views.timeline import Timeline
from swtrace_tui.views.view import Scene
from textual.geometry import Region
from textual.widget import Widget

from swtrace import units
from swtrace.ledger.facts import CAUSES, Cause
from swtrace.observing import Observation
from tests.support.host_clocks import HostClock, Hosts
from tests.support.scenes import (
    Still,
    app_over,
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


def test_a_cell_is_explained_with_its_own_numbers() -> None:
    """The description under the heat map names rank, layer, source, and the stall of the last step."""
    series = pictured("stalled").series[0]
    step = series.steps[-1]

    title, *sentences = explanation(series, 1, 6)

    assert title == "Rank 1, layer 6, from rank 2"
    assert units.duration(int(step.stall_ns[1, 6])) in sentences[-1]
    assert f"Step {step.step}" in sentences[-1]
    assert explanation(series, 2, 6)[1].startswith("Its own layer")


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


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


@pytest.mark.parametrize("layers", [20, 61, 150])
def test_the_mean_beside_a_rank_of_the_heat_map_is_over_its_waits(layers: int) -> None:
    """Layers that a rank keeps itself do not count as waits of 0, and folded columns do not count as their worst."""
    whole = observation_of(scenario("stalled", layers=layers, steps=6))
    seen = picture(whole, Filter())
    (series,) = seen.series
    lines = [strip.text for strip in HeatMap().draw(Scene(seen, MONO), 130, 60)]
    assert any(line.split()[-2:] == ["row", "mean"] for line in lines)
    shown_values, waited = values(series, METRICS[0], "mean")
    assert not waited.all()
    for row in series.rows:
        mean = shown_values[row.group_rank][waited[row.group_rank]].mean()
        line = next(line for line in lines if line.startswith(f"  rank {row.rank} "))
        assert f" {units.duration(float(mean))} " in line


def test_levels_are_logarithmic_and_on_time_is_the_lowest() -> None:
    """On-time values have level 0, the top of the scale has the highest level, and the scale is logarithmic."""
    shown = np.array([0.0, 19_999.0, 20_000.0, 200_000.0, 2_000_000.0, 9e9])

    levels = level(shown, 2_000_000.0).tolist()

    assert levels[:2] == [0, 0]
    assert levels[4] == levels[5] == LEVELS - 1
    assert levels[3] - levels[2] == pytest.approx(levels[4] - levels[3], abs=1)


def test_folded_columns_show_the_worst_and_own_only_if_all_are() -> None:
    """With more layers than columns, a column shows its hottest layer."""
    cells = np.array([[1, 5, 16, 2, 16, 16, 3]])

    assert folded(cells, 2, own=16).tolist() == [[5, 2, 16, 3]]


def test_few_ranks_fill_a_tall_screen() -> None:
    """On a tall screen the rows of a few ranks grow, so that map, profile and description use nearly all lines."""
    assert len(HeatMap().draw(Scene(pictured("stalled"), MONO), 200, 57)) > 50


def test_a_narrow_description_is_not_cut_where_there_is_room() -> None:
    """On 50 columns and 24 lines, the chart gives way to the facts of the selected cell."""
    text = "\n".join(strip.text for strip in HeatMap().draw(Scene(pictured("straggler"), MONO), 50, 24))
    assert "…" not in text
    assert "Step 23: issued" in text


@given(st.floats(1, 1e12))
def test_scales_end_on_round_numbers(value: float) -> None:
    """The top of a scale is 1, 2 or 5 times a power of ten, not below the value and not far above it."""
    top = nice(value)

    assert value <= top * (1 + 1e-9)
    assert top <= 2.5 * value * (1 + 1e-9)


_KEYS = ("m", "w", "up", "down", "left", "right", "home", "end", "g", "1", "2", "2", "2")


def thirteen_ranks(hosts: int) -> Observation:
    """Return ranks that no number of hosts divides."""
    made = scenario("stalled", ranks=13, layers=40, steps=12)
    if hosts == 1:
        return observation_of(made)
    return observation_across(Hosts(made, [rank % hosts for rank in range(13)], [HostClock()] * hosts))


@pytest.mark.parametrize("hosts", [1, 3])
def test_a_heat_map_drawn_again_and_again_is_what_a_new_one_draws(hosts: int) -> None:
    """After random updates, sizes, themes, keys and scrolling, each line is that of a widget that never drew before."""
    seed = random.randrange(1 << 32)  # noqa: S311 - which updates, not a secret
    print(f"seed {seed}")  # noqa: T201 - shown where it fails
    asyncio.run(_redraw(random.Random(seed), hosts))  # noqa: S311 - which updates, not a secret


async def _redraw(chance: random.Random, hosts: int) -> None:
    moments = _sliding(thirteen_ranks(hosts), chance)
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
            Segment("·".center(wide), palette.style(palette.dim, on=palette.background)),
        ]
        cells = _cells(list(map_line(look, levels.tobytes(), "7", cursor, None))[1:])
        for column, shade in enumerate(levels.tolist()):
            got = cells[column * wide : (column + 1) * wide]
            if cursor is None or cursor[0] != column:
                assert got == _cells([single[shade]])
            else:
                assert {style.bgcolor for _, style in got} == {single[shade].style.bgcolor}  # type: ignore[attr-defined]


def test_ranks_of_different_hosts_are_separated() -> None:
    """A heading with the host's clock is above its ranks, whose rows keep their names and means."""
    seen = picture(observation_across(on_two_hosts(scenario("stalled"), (0, 1, 0, 1))), Filter())
    lines = [strip.text for strip in HeatMap().draw(Scene(seen, MONO), 130, 40)]
    named = [line for line in lines if line.lstrip().startswith(("rank ", "host-"))]
    assert [line.split()[:2] for line in named] == [
        ["host-0", "2"],
        ["rank", "0"],
        ["rank", "2"],
        ["host-1", "2"],
        ["rank", "1"],
        ["rank", "3"],
    ]
    assert [host.clock in line for host, line in zip(seen.hosts, (named[0], named[3]), strict=True)] == [True, True]


@pytest.mark.parametrize("size", [(100, 40), (100, 25)])
def test_a_click_below_headings_selects_the_cell_that_is_there(size: tuple[int, int]) -> None:
    """The cursor is drawn where the click was, and the description names that rank, with one or two ranks per line."""

    async def test() -> None:
        app = app_over(Still(thirteen_ranks(3)), view="heatmap")
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.picture)
            await settled(pilot)
            heat = app.screen.query_one(HeatMap)
            lines = [strip.text for strip in heat.render_lines(Region(0, 0, *heat.size))]
            ranks = [y for y, line in enumerate(lines) if line.lstrip().startswith("rank ")]
            assert len(ranks) > 1
            for y in (ranks[-1], ranks[0]):
                name = lines[y].split()[1]
                await pilot.click(HeatMap, offset=(heat._origin[0] + 3 * heat._wide, y))
                await settled(pilot)
                assert f" Rank {name} (host-" in shown(app)
                lines = [strip.text for strip in heat.render_lines(Region(0, 0, *heat.size))]
            heading = next((y for y, line in enumerate(lines) if line.startswith(" host-")), None)
            if heading is not None:
                before = heat._cursor
                await pilot.click(HeatMap, offset=(heat._origin[0] + 3, heading))
                await settled(pilot)
                assert heat._cursor == before

    run(test())


def test_a_line_of_two_ranks_never_mixes_hosts() -> None:
    """The last rank of a host with an odd number of ranks has a line of its own, whose lower half is empty."""
    view, scene = HeatMap(), Scene(picture(thirteen_ranks(3), Filter()), DARK)
    lines = view.draw(scene, 100, 20)
    assert view._paired
    (alone,) = (line for line in lines if line.text.startswith(" rank 12 "))
    empty = {upper[LEVELS].style for upper in DARK.heat_pairs("stall", view._wide)}
    cells = [segment.style for segment in list(alone)[1:] if segment.text.strip()]
    assert cells
    assert set(cells) <= empty
