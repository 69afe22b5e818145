"""The timeline zooms, holds a step, and follows the newest one again."""

from __future__ import annotations

import pytest
from swtrace_tui.views.timeline import Timeline

from tests.support.scenes import Still, app_over, observation_of, press, run, shown, until
from tests.support.simulated_rings import scenario


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


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
