"""`/` narrows every view to the ranks that match a text."""

from __future__ import annotations

import pytest
from swtrace_tui.actions import VIEWS
from swtrace_tui.picture import Filter, picture

from tests.support.scenes import Still, app_over, observation_of, press, run, settled, shown, until
from tests.support.simulated_rings import scenario


def ranks_shown(text: str) -> list[int]:
    """Return the ranks that a search finds."""
    return [row.rank for row in picture(observation_of(scenario("stalled")), Filter(text=text)).rows]


def test_a_number_is_a_rank_or_a_pid_and_text_a_part_of_a_name() -> None:
    """Numbers match whole, other words match in part and in any case, and all words must match."""
    whole = observation_of(scenario("stalled"))
    (third,) = (rank.identity for rank in whole.ranks if rank.identity.rank == 2)
    assert ranks_shown("2") == [2]
    assert 2 in ranks_shown(str(third.pid))
    assert ranks_shown("rank 2") == [2]
    assert ranks_shown("O_Pr") == ranks_shown(third.host.upper()) == ranks_shown("live") == [0, 1, 2, 3]
    assert ranks_shown("o_proj 2") == [2]
    assert ranks_shown("died") == ranks_shown("o_proj nowhere") == []


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
