"""The one table of actions: keys, footer, command palette and help are all made from it.

The configuration file remaps keys by an action's ``id``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual.binding import Binding, BindingType

OVERVIEW, HEAT_MAP, TIMELINE, WINDOWS, DIAGNOSIS = VIEWS = ("overview", "heatmap", "timeline", "windows", "diagnosis")
TITLES = dict(zip(VIEWS, ("Overview", "Heat map", "Timeline", "Windows", "Diagnosis"), strict=True))


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a user can do."""

    id: str
    keys: str
    """Comma-separated, as Textual names them."""
    call: str
    """The Textual action; for actions of a view, a method of its widget."""
    title: str
    help: str
    view: str | None = None
    """The view it belongs to; None if it works everywhere."""
    footer: bool = False
    label: str = ""
    """A shorter title for the footer."""
    several_hosts: bool = False
    """Whether it is in the footer only while ranks of several hosts are shown."""


PAUSE = Action("pause", "space", "app.pause", "Pause", "Freeze the screen; reading continues.", footer=True)
HELP = Action("help", "question_mark,f1", "app.help", "Help", "Show this help: keys, columns, symbols.", footer=True)
QUIT = Action("quit", "q,ctrl+q", "app.quit", "Quit", "Quit, as does Ctrl-C. The ranks are not affected.", footer=True)
ACTIONS: tuple[Action, ...] = (
    *(
        Action(f"view-{view}", keys, f"app.show('{view}')", TITLES[view], f"Open the view {TITLES[view]}.")
        for view, keys in zip(VIEWS, ("1", "2", "3", "4", "5,d"), strict=True)
    ),
    Action("next-view", "tab", "app.next_view(1)", "Next view", "Open the next view."),
    Action("previous-view", "shift+tab", "app.next_view(-1)", "Previous view", "Open the previous view."),
    PAUSE,
    Action("series", "s", "app.cycle_series", "Series", "Show one series only, then the next, then all.", footer=True),
    Action("rank", "r", "app.cycle_rank", "Rank", "Show one rank only, then the next, then all.", footer=True),
    Action(
        "phase",
        "p",
        "app.cycle_phase",
        "Phase",
        "Show one phase only (prefill, decode, ...), then the next, then all.",
        footer=True,
    ),
    Action("run", "R", "app.cycle_run", "Run", "Show the next run of this source."),
    Action(
        "search",
        "slash",
        "app.search",
        "Search",
        "Show only ranks that match a text: a rank, a pid, or a part of series, host or state.",
        footer=True,
    ),
    Action("clear", "escape", "app.clear", "Clear filters", "Show every series, rank and phase; end a pause."),
    Action("copy", "y", "app.copy_view", "Copy", "Copy the view as text, if the terminal supports OSC 52."),
    Action("screenshot", "x", "app.save_svg", "Screenshot", "Save the screen as SVG in the current folder."),
    Action("detach", "D", "app.detach", "Detach", "Stop reading and keep the screen; press again to reattach."),
    Action("theme", "t", "app.next_theme", "Theme", "Change the theme: dark, light, colour-blind safe, no colour."),
    Action("suspend", "ctrl+z", "app.suspend_process", "Suspend", "Return to the shell; fg continues."),
    HELP,
    QUIT,
    # -- overview
    Action("down", "down,j", "move(1)", "Next rank", "Select the next rank.", OVERVIEW),
    Action("up", "up,k", "move(-1)", "Previous rank", "Select the previous rank.", OVERVIEW),
    Action("page-down", "pagedown", "move(10)", "Page down", "Move down ten rows.", OVERVIEW),
    Action("page-up", "pageup", "move(-10)", "Page up", "Move up ten rows.", OVERVIEW),
    Action("sort", "greater_than_sign,full_stop", "sort(1)", "Sort", "Sort by the next column.", OVERVIEW, footer=True),
    Action("sort-back", "less_than_sign,comma", "sort(-1)", "Sort back", "Sort by the previous column.", OVERVIEW),
    Action("reverse", "i", "reverse", "Reverse", "Reverse the order.", OVERVIEW),
    Action("open-rank", "enter", "open", "Timeline", "Show the rank's timeline.", OVERVIEW),
    Action(
        "collapse",
        "c",
        "collapse",
        "Collapse",
        "With several hosts: show the selected rank's host in one line, or its ranks again.",
        OVERVIEW,
        footer=True,
        several_hosts=True,
    ),
    Action(
        "collapse-all",
        "C",
        "collapse_all",
        "Collapse all",
        "With several hosts: show each host in one line, or all ranks again.",
        OVERVIEW,
    ),
    # -- heat map
    Action(
        "metric",
        "m",
        "metric(1)",
        "Metric",
        "Colour by the next metric: stall, slack, transfer, skew.",
        HEAT_MAP,
        footer=True,
    ),
    Action(
        "span",
        "w",
        "span(1)",
        "Steps",
        "Show the mean of the last steps, the worst of them, or the last step.",
        HEAT_MAP,
        footer=True,
    ),
    Action("cell-left", "left,h", "move(0, -1)", "Left", "Select the previous layer.", HEAT_MAP),
    Action("cell-right", "right,l", "move(0, 1)", "Right", "Select the next layer.", HEAT_MAP),
    Action("cell-up", "up,k", "move(-1, 0)", "Up", "Select the rank above.", HEAT_MAP),
    Action("cell-down", "down,j", "move(1, 0)", "Down", "Select the rank below.", HEAT_MAP),
    Action("cell-first", "home", "move(0, -4096)", "First layer", "Select the first layer.", HEAT_MAP),
    Action("cell-last", "end", "move(0, 4096)", "Last layer", "Select the last layer.", HEAT_MAP),
    Action(
        "cell-worst",
        "g",
        "worst",
        "Go to worst",
        "Select the cell with the highest value, and follow it.",
        HEAT_MAP,
        footer=True,
    ),
    Action("open-cell", "enter", "open", "Timeline", "Show the cell in the timeline.", HEAT_MAP, footer=True),
    # -- timeline
    Action(
        "zoom-in",
        "plus,equals_sign",
        "zoom(0.5)",
        "Zoom in",
        "Show half as much time.",
        TIMELINE,
        footer=True,
        label="In",
    ),
    Action(
        "zoom-out",
        "minus,underscore",
        "zoom(2)",
        "Zoom out",
        "Show twice as much time.",
        TIMELINE,
        footer=True,
        label="Out",
    ),
    Action("pan-left", "left,h", "pan(-0.25)", "Earlier", "Move to an earlier time.", TIMELINE),
    Action("pan-right", "right,l", "pan(0.25)", "Later", "Move to a later time.", TIMELINE),
    Action(
        "step-before",
        "left_square_bracket",
        "step(-1)",
        "Previous step",
        "Show the previous step and hold it.",
        TIMELINE,
    ),
    Action("step-after", "right_square_bracket", "step(1)", "Next step", "Show the next step and hold it.", TIMELINE),
    Action("fit", "0,home", "fit", "Fit", "Show the whole step.", TIMELINE, footer=True),
    Action("newest", "f,end", "newest", "Follow", "Follow the newest step.", TIMELINE, footer=True),
    Action(
        "worst-step",
        "g",
        "worst",
        "Worst step",
        "Show the step that stalled most.",
        TIMELINE,
        footer=True,
        label="Worst",
    ),
    Action("lanes-down", "down,j", "scroll(1)", "Lanes down", "Scroll the lanes down.", TIMELINE),
    Action("lanes-up", "up,k", "scroll(-1)", "Lanes up", "Scroll the lanes up.", TIMELINE),
    # -- windows
    Action("windows-down", "down,j", "scroll(1)", "Down", "Scroll down.", WINDOWS),
    Action("windows-up", "up,k", "scroll(-1)", "Up", "Scroll up.", WINDOWS),
    # -- diagnosis
    Action("diagnosis-down", "down,j", "scroll(1)", "Down", "Scroll down.", DIAGNOSIS),
    Action("diagnosis-up", "up,k", "scroll(-1)", "Up", "Scroll up.", DIAGNOSIS),
)


_KEY_NAMES = {
    "question_mark": "?",
    "slash": "/",
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
    "escape": "esc",
}


def keys(action: Action, keymap: Mapping[str, str]) -> list[str]:
    """Return an action's keys as people read them; ``keymap`` has those that the user changed, by the action's id."""
    return [key_name(key.strip()) for key in keymap.get(action.id, action.keys).split(",")]


def key_name(key: str) -> str:
    """Return a key as people read it: ``ctrl+→`` for ``ctrl+right``."""
    return "+".join(_KEY_NAMES.get(part, part) for part in key.split("+"))


def bindings(view: str | None) -> list[BindingType]:
    """Return the key bindings of a view; for None, those that work everywhere."""
    return [
        Binding(
            action.keys,
            action.call,
            action.title,
            show=False,
            tooltip=action.help,
            id=action.id,
        )
        for action in ACTIONS
        if action.view == view
    ]
