"""The help screen: every key, from the registry of actions, and every column, glyph and colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from swtrace import units
from swtrace.diagnosis.finding import HIDDEN_BELOW, STALLED_ABOVE, Level
from swtrace.diagnosis.page import MARKS
from swtrace.glossary import entries, plain
from swtrace.ledger.facts import CAUSES
from swtrace.observing import Link
from swtrace.version import __version__
from swtrace_tui.actions import ACTIONS, TITLES, VIEWS, Action, keys
from swtrace_tui.bars import LINK_GLYPHS
from swtrace_tui.palette import (
    RAMP_GLYPHS,
    SPAN_GLYPHS,
    SPAN_NAMES,
    WINDOW_ABOUT,
    WINDOW_GLYPHS,
    WINDOW_NAMES,
    WINDOW_STATES,
    Palette,
    Span,
)
from swtrace_tui.picture import RankState
from swtrace_tui.views.overview import COLUMNS, STATE_GLYPHS
from swtrace_tui.views.overview_charts import CAUSE_GLYPHS

_WIDEST_KEY = 20
"""Columns of keys and symbols; fewer in a narrow terminal."""
_WIDE = 60
"""Columns from which on the help has a border."""
_LINKS = {
    Link.LIVE: "The source delivers live records.",
    Link.RECORDED: "The source is a recording.",
    Link.WAITING: "The source answers; there is nothing to watch yet.",
    Link.CONNECTING: "The source has not answered yet.",
    Link.LOST: "The source no longer answers; the screen shows what it last sent.",
}
_COLUMNS = {
    "series": "Name of the series; shown if there are several.",
    "rank": "Global rank.",
    "host": "Host of the rank. With several hosts, headings name them instead.",
    "pid": "Process id of the rank, in its own pid namespace.",
    "state": "State of the rank (below).",
    "step/s": "Steps per second.",
    "step": "Mean step time.",
    "stall ratio": "Share of step time in which the rank waited for weights.",
    "effic.": "Prefetch efficiency: share of the transfer time that was hidden.",
    "on time": "Share of waits that found their weight ready.",
    "bandwidth": "Bytes per second while transferring.",
    "lost": "Records that this view missed: overwritten, damaged, or skipped to keep up.",
    "windows": "One symbol per window: its state (see Windows).",
    "stall ratio by step": "One bar per step, oldest first.",
}
_STATES = {
    RankState.LIVE: "The rank runs steps.",
    RankState.BEHIND: "Many of its records are still unread.",
    RankState.JOINED: "It has a ring and no finished step yet.",
    RankState.IDLE: "It is alive but has written nothing for the time shown: no requests, or it hangs.",
    RankState.CLOSED: "It is alive, but closed the series, which does not count as held.",
    RankState.ENDED: "It closed its ring and ended.",
    RankState.DIED: "Its process is gone without closing its ring.",
}
_SPANS = {
    Span.COMPUTE: "The rank computes (upper lane).",
    Span.STALL: "The rank waits for a weight (upper lane).",
    Span.WAKE: "What a wait cost after its weight was ready (upper lane).",
    Span.HIDDEN: "A weight arrives while the rank computes (lower lane).",
    Span.EXPOSED: "A weight arrives while the rank waits for it (lower lane).",
    Span.QUEUED: "A weight is issued, but does not move yet (lower lane).",
    Span.SENT: "The rank sends a layer that it stores to the other ranks (lower lane).",
}
_ELSEWHERE: list[tuple[Text | str, str]] = [
    ("ctrl+p", "Command palette: find any of these actions by name, and Textual's own themes."),
    ("mouse", "Click a view to open it, a column to sort by it, a rank or cell to select it (again: to open it)."),
    ("wheel", "Zooms the timeline (ctrl or shift: pans it); moves through ranks or windows in other views."),
]
_LEVELS = {
    Level.GOOD: "Good.",
    Level.NOTE: "Worth knowing.",
    Level.WARNING: "A problem.",
    Level.BAD: "A serious problem.",
}


class Help(ModalScreen[None]):
    """Every key by view, then every symbol."""

    DEFAULT_CSS = """
    Help { align: center middle; background: $background 60%; }
    Help VerticalScroll { width: 96; max-width: 100%; height: auto; max-height: 100%; background: $panel; }
    Help VerticalScroll { scrollbar-size-vertical: 1; }
    Help Static { width: 1fr; height: auto; background: $panel; padding: 0 1; }
    Help.-wide VerticalScroll { max-width: 96%; max-height: 92%; padding: 1 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,f1", "dismiss", "Close")]

    def __init__(
        self,
        keymap: dict[str, str],
        own: Sequence[Action] = (),
        own_help: Mapping[str, str] | None = None,
        *,
        title: str,
        palette: Palette,
    ) -> None:
        super().__init__()
        self._keymap, self._own, self._own_help = keymap, own, own_help or {}
        self._title, self._palette = title, palette

    def compose(self) -> ComposeResult:
        """Show the table."""
        width = max(8, min(_WIDEST_KEY, self.app.size.width // 4))
        self.set_class(self.app.size.width >= _WIDE, "-wide")
        with VerticalScroll():
            yield Static(help_text(self._keymap, self._own, self._own_help, self._title, self._palette, width))


def help_text(
    keymap: dict[str, str],
    own: Sequence[Action],
    own_help: Mapping[str, str],
    title: str,
    palette: Palette,
    key_width: int = _WIDEST_KEY,
) -> Group:
    """Return every action with its current keys, then what the columns, glyphs, colours and words mean.

    Args:
        keymap: Keys by action, where they differ from the registry's.
        own: Actions that this program adds; they come first.
        own_help: What an action of the registry does in this program, by its id.
        title: Name of the program.
        palette: Colours of the symbols.
        key_width: Columns of keys and symbols.
    """
    sections: list[tuple[str, list[tuple[Text | str, str]]]] = []
    if own:
        sections.append(("The recording", [(" ".join(keys(action, keymap)), action.help) for action in own]))
    for view in (None, *VIEWS):
        rows: list[tuple[Text | str, str]] = [
            (" ".join(keys(action, keymap)), own_help.get(action.id, action.help))
            for action in ACTIONS
            if action.view == view
        ]
        sections.append((TITLES[view] if view else "Everywhere", rows))
    parts: list[RenderableType] = [
        Text(f"{title} {__version__}: keys, columns, symbols and words", style="bold"),
        "Esc, q or ? closes this help; arrow keys and the wheel scroll it.",
        "Ctrl-P finds any action by name. The glossary is at the end.",
    ]
    for heading, described in (*sections, ("Palette and mouse", _ELSEWHERE), *_symbols(palette)):
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", style="bold", width=key_width)
        table.add_column()
        for symbol, text in described:
            table.add_row(symbol, text)
        parts += ["", Text(heading, style="bold underline"), table]
    return Group(*parts)


def _symbols(palette: Palette) -> Iterator[tuple[str, list[tuple[Text | str, str]]]]:
    """Yield headings, each with its symbols and what they mean."""

    def inked(glyph: str, colour: str, name: str = "") -> Text:
        return Text.assemble((f"{name} ", "not bold"), (glyph, palette.style(colour, on=palette.surface)))

    def stretch(span: Span) -> Text:
        glyph = SPAN_GLYPHS[span] if palette.mono else "█"
        return inked(2 * glyph, palette.text if palette.mono else palette.spans[span], SPAN_NAMES[span])

    colours = (palette.good, palette.note, palette.warning, palette.bad)
    hidden, stalled = units.ratio(HIDDEN_BELOW), units.ratio(STALLED_ABOVE)
    yield "Top line: the source", [(f"{link} {glyph}", _LINKS[link]) for link, glyph in LINK_GLYPHS.items()]
    yield (
        "Overview: columns (means and ratios over the last steps)",
        [(each.title.replace(" of ", "\nof "), _COLUMNS[each.title]) for each in COLUMNS],
    )
    yield (
        "Overview: colour of the stall ratio",
        [
            (inked("━━", palette.good), f"Below {hidden}: hidden behind compute."),
            (inked("━━", palette.warning), f"{hidden} to {stalled}: partly hidden."),
            (inked("━━", palette.bad), f"Above {stalled}: not hidden."),
        ],
    )
    yield "Overview: state of a rank", [(f"{state} {glyph}", _STATES[state]) for state, glyph in STATE_GLYPHS.items()]
    explained = entries()
    bars = zip(CAUSES, CAUSE_GLYPHS if palette.mono else "━" * len(CAUSES), palette.causes, strict=True)
    yield (
        "Overview: cause of a stall",
        [
            (inked(2 * glyph, colour, units.words(cause)), plain(entries()[units.words(cause)]))
            for cause, glyph, colour in bars
        ],
    )
    yield (
        "Several hosts: headings",
        [
            ("▾ ▸", "The host's ranks follow, or it is collapsed; a click on the heading changes that (overview)."),
            ("reference clock", "The clock of the first rank; the instants of all ranks are shown on it."),
            ("clock ±40 us", "How far instants of this host's ranks may be off."),
            ("clock unknown", "Nothing limits the difference between the clocks yet, so ranks are not compared."),
        ],
    )
    ramp = Text(RAMP_GLYPHS) if palette.mono else Text.assemble(*(("█", colour) for colour in palette.ramp("stall")))
    yield (
        "Heat map",
        [
            (ramp, "From 20 us or less (left) to the value at the right of the scale; the scale is logarithmic."),
            ("·", "The rank stores this layer and does not wait for it."),
            ("[ ] ▣", "The selected cell (▀ or ▄ where a line shows two ranks); the text at the bottom describes it."),
            ("row mean", "At the right: mean over the rank's waits, and a bar that compares the ranks."),
            ("mean", "At the bottom: mean of each column; the number at the left belongs to the highest."),
            ("▂▅█", "Beside the selected cell's name: its value in each of the last steps, oldest first."),
        ],
    )
    yield (
        "Timeline (two lanes per rank)",
        [
            *((stretch(span), _SPANS[span]) for span in SPAN_NAMES),
            ("hosts ±40 us", "Below the lanes: how far a difference between ranks of two hosts may be off."),
            ("╷12", "Layer number, where the time up to the end of its wait begins."),
            ("▸12◂", "The layer that you opened from the heat map."),
        ],
    )
    yield (
        "Windows",
        [
            *(
                (
                    inked(WINDOW_GLYPHS[state], palette.window(state), WINDOW_NAMES[state]),
                    f"{WINDOW_ABOUT[state].capitalize()}.",
                )
                for state in WINDOW_STATES
            ),
            ("━", "The rank stores this layer and needs no window."),
            ("· (layers)", "The rank holds nothing of this layer now."),
            ("▓ w0 L12", "A window's state, its number, and the layer that it holds; then how long it has been so."),
        ],
    )
    yield (
        "Diagnosis",
        [(inked(glyph, colours[level]), _LEVELS[level]) for level, glyph in MARKS.items()],
    )
    yield "Glossary", [(word, plain(entry)) for word, entry in explained.items()]
