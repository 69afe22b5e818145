"""The lines around a view. Above: what is watched and its source, then the views. Below: a search, then the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widgets import Input

from swtrace import units
from swtrace.observing import Link
from swtrace.version import __version__
from swtrace_tui.actions import ACTIONS, HELP, PAUSE, QUIT, TITLES, VIEWS, Action, keys
from swtrace_tui.canvas import Line, clip
from swtrace_tui.palette import Palette
from swtrace_tui.picture import Picture
from swtrace_tui.views.view import Drawn, Scene

_BEHIND = 20_000
"""Unread records from which on the title bar says so."""
_ROOMY = 64
"""Columns from which on the title bar has room for the version and the source's name."""
_LEAST_SOURCE = 10
"""Columns from which on it says something."""
LINK_GLYPHS = {Link.LIVE: "●", Link.RECORDED: "▶", Link.WAITING: "◌", Link.CONNECTING: "◌", Link.LOST: "✗"}


class TitleBar(Drawn):
    """One line: series, run, model and source."""

    DEFAULT_CSS = "TitleBar { height: 1; width: 1fr; background: $panel; }"

    def __init__(self) -> None:
        super().__init__()
        self._note = ""

    def show(self, scene: Scene, note: str) -> None:
        """Show what is watched; ``note`` says why the screen does not change, or is empty."""
        self.scene, self._note = scene, note
        self.redraw()

    def lines(self, scene: Scene) -> list[Strip]:
        """Return the line."""
        picture, palette = scene.picture, scene.palette
        on = palette.surface
        dim, text = palette.style(palette.dim, on=on), palette.style(palette.text, on=on)
        width = self.size.width
        right = Line(width - len(" swtrace ") - 1)
        if self._note:
            right.put(f"{self._note}  ", palette.style(palette.warning, on=on, bold=True))
        link = worst_link(picture)
        colour = {Link.LIVE: palette.good, Link.LOST: palette.bad}.get(link, palette.note)
        behind = sum(rank.ring.statistics.pending for rank in picture.observation.ranks)
        if behind > _BEHIND:
            right.put(f"catching up: {units.count(behind)} records unread  ", palette.style(palette.note, on=on))
        over = link is Link.LIVE and picture.ended
        if not over and right.room >= len(link) + len("● "):
            right.put(f"{LINK_GLYPHS[link]} {link} ", palette.style(colour, on=on))
        line = Line(width).put(" swtrace ", palette.style(palette.note, on=on, bold=True))
        if width >= _ROOMY:
            line.put(f"{__version__} ", dim)
        (series, style), *more = about(picture, palette, on)
        if line.used + len(series) + right.used < width:
            line.put(series, style)
        room = min(width // 3, width - line.used - right.used - 3)
        if width >= _ROOMY and room >= _LEAST_SOURCE:
            right.put(f"{source(picture, room)} ", dim)
        for part, style in more:
            if line.used + len(part) + right.used >= width:
                break
            line.put(part, style)
        line.to(width - right.used, text)
        return [line.cells(right.segments, right.used).strip(text)]


def about(picture: Picture, palette: Palette, on: str) -> list[tuple[str, Style]]:
    """Return what is watched, most important part first."""
    dim, text = palette.style(palette.dim, on=on), palette.style(palette.text, on=on)
    focus = picture.focus
    if focus is None:
        return [(picture.run or "", text)]
    info = focus.facts.ranks[0].info
    model = next(
        (row.observed.identity.model for row in focus.rows if row.observed is not None and row.observed.identity.model),
        "",
    )
    parts: list[tuple[str, Style]] = [(f" {info.name}", palette.style(palette.text, on=on, bold=True))]
    parts.append((f"  {focus.shape}", text))
    parts.append((f"  prefetch step {info.prefetch_step}" if info.shared else f"  {info.sharing}", text))
    parts.append((f"  {units.size(info.layer_bytes)} per layer", dim))
    parts.append((f"  {info.transport}" if info.shared else "", dim))
    parts.append((f"  {picture.run}", dim))
    if model:
        parts.append((f"  {model}", dim))
    return parts


def source(picture: Picture, width: int) -> str:
    """Return the names of the sources in at most ``width`` columns: of a path, the end."""
    names = ", ".join(origin.name for origin in picture.observation.origins)
    return f"…{names[1 - width :]}" if names.startswith("/") and len(names) > width else clip(names, width)


def worst_link(picture: Picture) -> Link:
    """Return the worst state of all sources."""
    links = {origin.link for origin in picture.observation.origins}
    return next(
        (link for link in (Link.LOST, Link.CONNECTING, Link.LIVE, Link.RECORDED) if link in links), Link.WAITING
    )


class ViewBar(Drawn):
    """The numbered views, and the current filter."""

    DEFAULT_CSS = "ViewBar { height: 1; width: 1fr; background: $background; }"

    class Chosen(Message):
        """A view was clicked."""

        def __init__(self, view: str) -> None:
            super().__init__()
            self.view = view

    def __init__(self) -> None:
        super().__init__()
        self._view = VIEWS[0]
        self._spans: list[tuple[int, int, str]] = []

    def show(self, scene: Scene, view: str) -> None:
        """Show which view is open, and the filter."""
        self.scene, self._view = scene, view
        self.redraw()

    def lines(self, scene: Scene) -> list[Strip]:
        """Return the line."""
        palette, width = scene.palette, self.size.width
        plain, dim = palette.style(palette.text), palette.style(palette.dim)
        line = Line(width).put(" ", plain)
        self._spans = []
        brief = width < sum(len(f" 1 {title}  ") for title in TITLES.values())
        for number, view in enumerate(VIEWS, 1):
            begin = line.used
            if view == self._view:
                on = palette.text if palette.mono else palette.note
                line.put(f" {number} {TITLES[view]} ", palette.style(palette.background, on=on, bold=True))
            else:
                line.put(f" {number}", palette.style(palette.note)).put(" " if brief else f" {TITLES[view]} ", dim)
            self._spans.append((begin, line.used, view))
            line.put(" ", plain)
        filters = "   ".join(filter(None, (narrowed(scene.picture), other_runs(scene.picture))))
        if filters and line.room > len(filters) + 1:
            line.to(width - len(filters) - 1, plain).put(filters, palette.style(palette.warning, bold=True))
        return [line.strip(plain)]

    def on_click(self, event: events.Click) -> None:
        """Show the view that was clicked."""
        for begin, end, view in self._spans:
            if begin <= event.x < end:
                self.post_message(self.Chosen(view))


def other_runs(picture: Picture) -> str:
    """Return which other runs there are, and the key that shows them."""
    others = [run for run in reversed(picture.runs) if run != picture.run]
    if not others:
        return ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"R: run {clip(others[0], 24)}{more}"


def narrowed(picture: Picture) -> str:
    """Return the filter in words."""
    selection = picture.selection
    parts = []
    if selection.series is not None:
        name = selection.series if isinstance(selection.series, str) else selection.series.name
        parts.append(f"series {name}")
    if selection.rank is not None:
        parts.append(f"rank {selection.rank}")
    if selection.phase is not None:
        parts.append(f"{selection.phase.name.lower()} only")
    if selection.text:
        parts.append(f"matching {selection.text!r}")
    return ", ".join(parts)


class Search(Input):
    """The line in which a text is typed that ranks must match; shown while it has the focus."""

    DEFAULT_CSS = """
    Search { display: none; background: $panel; color: $foreground; padding: 0 1; }
    Search.open { display: block; }
    """

    def __init__(self) -> None:
        super().__init__(placeholder="rank, pid, or a part of series, host or state", compact=True)


class KeyBar(Drawn):
    """The keys of the open view. Those that have no room are left out, but help and quit stay.

    Args:
        own: Actions in addition to the registry's.
    """

    DEFAULT_CSS = "KeyBar { height: 1; width: 1fr; background: $panel; }"

    class Pressed(Message):
        """A key was clicked."""

        def __init__(self, action: Action) -> None:
            super().__init__()
            self.action = action

    def __init__(self, own: Sequence[Action] = ()) -> None:
        super().__init__()
        self._own = own
        self._view = VIEWS[0]
        self._keymap: Mapping[str, str] = {}
        self._searching = False
        self._spans: list[tuple[int, int, Action]] = []

    def show(self, scene: Scene, view: str, keymap: Mapping[str, str], *, searching: bool) -> None:
        """Show the keys of a view, or those of the search."""
        self.scene, self._view, self._keymap, self._searching = scene, view, keymap, searching
        self.redraw()

    def lines(self, scene: Scene) -> list[Strip]:
        """Return the line."""
        palette, width = scene.palette, self.size.width
        on = palette.surface
        key_style, dim = palette.style(palette.note, on=on, bold=True), palette.style(palette.dim, on=on)
        line = Line(width).put(" ", dim)
        self._spans = []
        if self._searching:
            for key, what in (("enter", "Keep"), ("esc", "Show all")):
                line.put(key, key_style).put(f" {what}  ", dim)
            return [line.strip(dim)]
        chosen = [
            action
            for group in ([each for each in ACTIONS if each.view == self._view], [PAUSE], self._own, ACTIONS)
            for action in group
            if action.footer and action.view in {None, self._view} and action not in {HELP, QUIT}
            if scene.picture.hosts or not action.several_hosts
        ]
        last = [(action, self._label(action)) for action in (HELP, QUIT)]
        left = line.room - sum(len(key) + len(title) + 3 for _, (key, title) in last)
        shown = []
        for action in dict.fromkeys(chosen):
            key, title = self._label(action)
            left -= len(key) + len(title) + 3
            if left < 0:
                break
            shown.append((action, (key, title)))
        for action, (key, title) in (*shown, *last):
            begin = line.used
            line.put(key, key_style).put(f" {title}  ", dim)
            self._spans.append((begin, line.used, action))
        return [line.strip(dim)]

    def _label(self, action: Action) -> tuple[str, str]:
        return keys(action, self._keymap)[0], action.label or action.title

    def on_click(self, event: events.Click) -> None:
        """Do what the clicked key does."""
        for begin, end, action in self._spans:
            if begin <= event.x < end:
                self.post_message(self.Pressed(action))
