"""Every action, once: keys, footer, command palette and help are all made from this table.

An action's ``id`` is also the name under which a key is remapped in the configuration file.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType

OVERVIEW, HEAT_MAP, TIMELINE, WINDOWS, VERDICT = VIEWS = ("overview", "heatmap", "timeline", "windows", "verdict")
TITLES = dict(zip(VIEWS, ("Overview", "Heat map", "Timeline", "Windows", "Verdict"), strict=True))


@dataclass(frozen=True, slots=True)
class Action:
    """Something a person can do."""

    id: str
    keys: str
    """Comma-separated, as Textual names them."""
    call: str
    """Textual action; those of a view are methods of its widget."""
    title: str
    help: str
    view: str | None = None
    """The view it belongs to; None: everywhere."""
    footer: bool = False
    label: str = ""
    """Shorter title, for the footer."""


ACTIONS: tuple[Action, ...] = (
    *(
        Action(f"view-{view}", str(number), f"app.show('{view}')", TITLES[view], f"Show: {TITLES[view].lower()}.")
        for number, view in enumerate(VIEWS, 1)
    ),
    Action("next-view", "tab", "app.next_view(1)", "Next view", "Show the next view."),
    Action("previous-view", "shift+tab", "app.next_view(-1)", "Previous view", "Show the previous view."),
    Action("pause", "space", "app.pause", "Pause", "Freeze the screen; reading continues.", footer=True),
    Action("series", "s", "app.cycle_series", "Series", "Narrow to one series, then the next, then all.", footer=True),
    Action("rank", "r", "app.cycle_rank", "Rank", "Narrow to one rank, then the next, then all.", footer=True),
    Action("phase", "p", "app.cycle_phase", "Phase", "Narrow to prefill, decode, ... then all phases.", footer=True),
    Action("run", "R", "app.cycle_run", "Run", "Show another run of the same source."),
    Action("clear", "escape", "app.clear", "Clear filters", "Show every series, rank and phase; go on if paused."),
    Action("copy", "y", "app.copy_view", "Copy", "Copy what is shown, as text (by the terminal, OSC 52).", footer=True),
    Action("screenshot", "x", "app.save_svg", "Screenshot", "Save what is shown as SVG in this folder."),
    Action("detach", "d", "app.detach", "Detach", "Let go of the source and keep what is shown; again: reattach."),
    Action("theme", "t", "app.next_theme", "Theme", "Dark, light, colour-blind safe, without colour."),
    Action("help", "question_mark,f1", "app.help", "Help", "Show every key.", footer=True),
    Action("quit", "q,ctrl+q", "app.quit", "Quit", "Leave. The ranks do not notice.", footer=True),
    # -- overview
    Action("down", "down,j", "move(1)", "Next rank", "Move down.", OVERVIEW),
    Action("up", "up,k", "move(-1)", "Previous rank", "Move up.", OVERVIEW),
    Action("page-down", "pagedown", "move(10)", "Page down", "Move down ten rows.", OVERVIEW),
    Action("page-up", "pageup", "move(-10)", "Page up", "Move up ten rows.", OVERVIEW),
    Action("sort", "greater_than_sign,full_stop", "sort(1)", "Sort", "Sort by the next column.", OVERVIEW, footer=True),
    Action("sort-back", "less_than_sign,comma", "sort(-1)", "Sort back", "Sort by the previous column.", OVERVIEW),
    Action("reverse", "i", "reverse", "Reverse", "Reverse the order.", OVERVIEW),
    Action("open-rank", "enter", "open", "Timeline", "Show the rank's timeline.", OVERVIEW),
    # -- heat map
    Action("metric", "m", "metric(1)", "Metric", "Colour by stall, slack, transfer or skew.", HEAT_MAP, footer=True),
    Action(
        "span", "w", "span(1)", "Over", "Mean of the last steps, their worst, or the last one.", HEAT_MAP, footer=True
    ),
    Action("cell-left", "left,h", "move(0, -1)", "Left", "Move to the layer before.", HEAT_MAP),
    Action("cell-right", "right,l", "move(0, 1)", "Right", "Move to the next layer.", HEAT_MAP),
    Action("cell-up", "up,k", "move(-1, 0)", "Up", "Move to the rank above.", HEAT_MAP),
    Action("cell-down", "down,j", "move(1, 0)", "Down", "Move to the rank below.", HEAT_MAP),
    Action("cell-first", "home", "move(0, -4096)", "First layer", "Move to the first layer.", HEAT_MAP),
    Action("cell-last", "end", "move(0, 4096)", "Last layer", "Move to the last layer.", HEAT_MAP),
    Action(
        "cell-worst", "g", "worst", "Go to worst", "Stay on the cell with the highest value.", HEAT_MAP, footer=True
    ),
    Action("open-cell", "enter", "open", "Timeline", "Show the cell in the timeline.", HEAT_MAP, footer=True),
    # -- timeline
    Action(
        "zoom-in",
        "plus,equals_sign",
        "zoom(0.5)",
        "Zoom in",
        "Show half of the time.",
        TIMELINE,
        footer=True,
        label="In",
    ),
    Action(
        "zoom-out",
        "minus,underscore",
        "zoom(2)",
        "Zoom out",
        "Show twice the time.",
        TIMELINE,
        footer=True,
        label="Out",
    ),
    Action("pan-left", "left,h", "pan(-0.25)", "Earlier", "Move to earlier.", TIMELINE),
    Action("pan-right", "right,l", "pan(0.25)", "Later", "Move to later.", TIMELINE),
    Action(
        "step-before", "left_square_bracket", "step(-1)", "Step before", "Show the step before, and stay.", TIMELINE
    ),
    Action("step-after", "right_square_bracket", "step(1)", "Step after", "Show the next step.", TIMELINE),
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
    Action("lanes-down", "down,j", "scroll(1)", "Lanes down", "Scroll the lanes.", TIMELINE),
    Action("lanes-up", "up,k", "scroll(-1)", "Lanes up", "Scroll the lanes.", TIMELINE),
    # -- windows
    Action("windows-down", "down,j", "scroll(1)", "Down", "Scroll down.", WINDOWS),
    Action("windows-up", "up,k", "scroll(-1)", "Up", "Scroll up.", WINDOWS),
    # -- verdict
    Action("verdict-down", "down,j", "scroll(1)", "Down", "Scroll down.", VERDICT),
    Action("verdict-up", "up,k", "scroll(-1)", "Up", "Scroll up.", VERDICT),
)


def bindings(view: str | None) -> list[BindingType]:
    """Return the key bindings of a view, or those that hold everywhere."""
    return [
        Binding(
            action.keys,
            action.call,
            action.label or action.title,
            show=action.footer,
            tooltip=action.help,
            id=action.id,
        )
        for action in ACTIONS
        if action.view == view
    ]
