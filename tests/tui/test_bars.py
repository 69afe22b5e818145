"""The two lines at the top name what is watched, the views, and every filter."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from swtrace_tui.actions import TITLES, VIEWS
from swtrace_tui.bars import ViewBar, narrowed, other_runs, worst_link
from swtrace_tui.picture import Filter, picture
from textual.pilot import Pilot

from swtrace.observing import Link, OriginStatus
from swtrace.trace.schema import Phase
from swtrace.version import __version__
from tests.support.scenes import Still, app_over, empty, observation_of, pictured, run, shown, until
from tests.support.simulated_rings import scenario


@pytest.mark.parametrize(
    ("links", "worst"),
    [
        ((Link.LIVE, Link.CONNECTING, Link.LOST), Link.LOST),
        ((Link.LIVE, Link.CONNECTING), Link.CONNECTING),
        ((Link.WAITING, Link.LIVE), Link.LIVE),
        ((Link.RECORDED,), Link.RECORDED),
        ((), Link.WAITING),
    ],
)
def test_the_state_of_several_sources_is_the_worst(links: tuple[Link, ...], worst: Link) -> None:
    """One lost daemon is not hidden by others that answer."""
    seen = picture(empty(*(OriginStatus(f"host-{number}", link) for number, link in enumerate(links))), Filter())
    assert worst_link(seen) is worst


def test_a_filter_is_named_with_everything_that_it_leaves() -> None:
    """Series, rank and phase of the filter stand in the bar, and nothing where there is no filter."""
    assert narrowed(pictured()) == ""
    selection = Filter(series="o_proj", rank=2, phase=Phase.DECODE)
    assert narrowed(pictured(selection=selection)) == "series o_proj, rank 2, decode only"


def test_other_runs_are_named_with_the_key_that_shows_them() -> None:
    """The newest of the other runs is named, and how many more there are."""
    seen = pictured()
    assert seen.run is not None
    assert other_runs(replace(seen, runs=(seen.run,))) == ""
    assert other_runs(replace(seen, runs=("before", seen.run))) == "R: run before"
    assert other_runs(replace(seen, runs=("first", "before", seen.run))) == "R: run before and 1 more"


def test_a_click_on_a_view_opens_it() -> None:
    """Each title in the bar opens its own view."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))

        async def opened(pilot: Pilot[Any], view: str) -> None:
            await until(pilot, lambda: app.view == view)

        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: TITLES[VIEWS[-1]] in shown(app).splitlines()[1])
            for view in reversed(VIEWS):
                column = shown(app).splitlines()[1].index(TITLES[view])
                assert await pilot.click(ViewBar, offset=(column, 0))
                await opened(pilot, view)

    run(test())


@pytest.mark.parametrize("width", [40, 56, 60, 64, 65, 80])
def test_the_names_of_views_are_never_cut(width: int) -> None:
    """Where not all names fit, only that of the open view is shown, beside the numbers of the others."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(width, 24)) as pilot:
            await until(pilot, lambda: TITLES[VIEWS[0]] in shown(app).splitlines()[1])
            line = shown(app).splitlines()[1]
        assert "…" not in line
        assert (TITLES[VIEWS[-1]] in line) == (width >= 65)

    run(test())


def test_a_long_source_gives_way_to_the_series_and_keeps_its_end() -> None:
    """At 80 columns, the title names the series before the source; of a path it shows the end."""
    seen = observation_of(scenario("stalled"))
    path = "/dev/shm/recordings/of/yesterday/run.swrec"

    async def test() -> None:
        app = app_over(Still(replace(seen, origins=(OriginStatus(path, Link.RECORDED),))))
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "recording" in shown(app).splitlines()[0])
            title = shown(app).splitlines()[0]
        assert " o_proj " in title
        assert title.endswith("yesterday/run.swrec ")
        assert path not in title

    run(test())


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (120, ["4 ranks x 24 layers", "prefetch step 1", "1000 B per layer", "ideal", "run", "tiny-llama"]),
        (100, ["4 ranks x 24 layers", "prefetch step 1", "1000 B per layer", "ideal"]),
        (40, []),
    ],
)
def test_a_narrow_title_keeps_its_most_important_parts(width: int, parts: list[str]) -> None:
    """Where the line has no room, whole parts are left out, the least important first."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(width, 40)) as pilot:
            await until(pilot, lambda: "o_proj" in shown(app).splitlines()[0])
            title = shown(app).splitlines()[0]
        names, origin = ([f"swtrace {__version__}", "o_proj"], " live still ")
        if width == 40:
            names, origin = ["swtrace", "o_proj"], " live "
        watched, _, source = title.partition("\N{BLACK CIRCLE}")
        assert [part for part in re.split(r"\s{2,}", watched.strip()) if part] == [*names, *parts]
        assert source == origin

    run(test())
