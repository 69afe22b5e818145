"""Only lines that changed are drawn and sent to the terminal."""

from __future__ import annotations

import asyncio

from swtrace_tui.views.heat_map import HeatMap
from textual.geometry import Region

from tests.support.scenes import Still, app_over, observation_of, settled, until
from tests.support.simulated_rings import scenario


def test_nothing_is_sent_to_the_terminal_for_lines_that_stay() -> None:
    """Showing the same picture again refreshes no line; another metric refreshes only the map."""
    asyncio.run(_still())


async def _still() -> None:
    app = app_over(Still(observation_of(scenario("stalled"))), view="heatmap")
    async with app.run_test(size=(100, 40)) as pilot:
        await until(pilot, lambda: app.picture and app._diagnosis)
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
