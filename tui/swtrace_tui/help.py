"""The help screen, made from the registry of actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from swtrace_tui.actions import ACTIONS, TITLES, VIEWS, Action

_NAMES = {
    "question_mark": "?",
    "greater_than_sign": ">",
    "less_than_sign": "<",
    "full_stop": ".",
    "comma": ",",
    "plus": "+",
    "equals_sign": "=",
    "minus": "-",
    "underscore": "_",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
}


class Help(ModalScreen[None]):
    """Every key, by view."""

    DEFAULT_CSS = """
    Help { align: center middle; background: $background 60%; }
    Help VerticalScroll { width: 78; max-width: 96%; height: auto; max-height: 92%; background: $panel; padding: 1 2; }
    Help Static { width: 1fr; height: auto; background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,f1", "dismiss", "Close")]

    def __init__(
        self, keymap: dict[str, str], own: tuple[tuple[str, str], ...] = (), own_help: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._table = help_text(keymap, own, own_help or {})

    def compose(self) -> ComposeResult:
        """Show the table."""
        with VerticalScroll():
            yield Static(self._table)


def help_text(keymap: dict[str, str], own: tuple[tuple[str, str], ...], own_help: Mapping[str, str]) -> Table:
    """Return every action with its keys, as they are mapped now.

    Args:
        keymap: Keys by action, where they are not the registry's.
        own: Keys that this program adds, with their help; they stand first.
        own_help: What an action of the registry does in this program, by its id.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column()
    if own:
        table.add_row("", Text("The recording", style="bold underline"))
        for key, text in own:
            table.add_row("+".join(_NAMES.get(part, part) for part in key.split("+")), text)
        table.add_row("", "")
    for view in (None, *VIEWS):
        of_view = [action for action in ACTIONS if action.view == view]
        if not of_view:
            continue
        table.add_row("", Text(TITLES[view] if view else "Everywhere", style="bold underline"))
        for action in of_view:
            table.add_row(keys(action, keymap), own_help.get(action.id, action.help))
        table.add_row("", "")
    table.add_row("^p", "Command palette: all of this by name, and Textual's own themes.")
    table.add_row("mouse", "Click a view, a column, a rank, a cell; twice to open it; the wheel zooms the timeline.")
    return table


def keys(action: Action, keymap: dict[str, str]) -> str:
    """Return an action's keys as people read them."""
    mapped = keymap.get(action.id, action.keys)
    return " ".join(_NAMES.get(key.strip(), key.strip()) for key in mapped.split(","))
