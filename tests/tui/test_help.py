"""The help explains every key, column and symbol."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from swtrace_tui.actions import ACTIONS, TITLES
from swtrace_tui.help import Help, help_text
from swtrace_tui.palette import MONO, SPAN_GLYPHS, SPAN_NAMES, WINDOW_NAMES
from swtrace_tui.picture import RankState
from swtrace_tui.views.overview import COLUMNS

from swtrace import glossary, units
from swtrace.ledger.facts import CAUSES
from tests.support.scenes import Still, app_over, observation_of, press, run, shown, until
from tests.support.simulated_rings import scenario


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


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
    for span, name in SPAN_NAMES.items():
        assert f"{name} {2 * SPAN_GLYPHS[span]}" in text
    for word, entry in glossary.entries().items():
        assert f"{word}  {glossary.plain(entry)}"[:150] in text


@pytest.mark.parametrize("size", [(40, 12), (80, 24)])
def test_help_is_wrapped_not_cut(size: tuple[int, int]) -> None:
    """In a small terminal, the sentences of the help continue on the next line, and no border takes their room."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "question_mark")
            text = " ".join(shown(app).split())
            assert "Esc, q or ? closes this help; arrow keys and the wheel scroll it." in text
            assert "Everywhere" in text

    run(test())


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
