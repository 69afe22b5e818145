"""What the views have in common: lines of cells, of which only the changed ones are drawn again."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from swtrace.ledger.facts import SeriesKey
from swtrace.ledger.verdict import Verdict
from swtrace_tui.canvas import Line
from swtrace_tui.palette import DARK, MONO, Palette
from swtrace_tui.picture import Picture
from swtrace_tui.views.empty import empty_state

_UNITS = re.compile(r"(?<=\d) (?=(?:%|ns|us|ms|s|min|h|B|[KMGT]iB)(?!\w))")
"""A number is not torn from its unit."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a view needs to draw."""

    picture: Picture
    palette: Palette = DARK
    verdicts: Mapping[SeriesKey, Verdict] = field(default_factory=dict)


class View(Widget, can_focus=True):
    """A view: :meth:`draw` makes its lines from the scene, the size and what its keys have set."""

    DEFAULT_CSS = "View { height: 1fr; width: 1fr; background: $background; }"
    BINDINGS: ClassVar[list[BindingType]] = []

    class Open(Message):
        """Somebody wants to see this in the timeline."""

        def __init__(self, *, rank: int | None, position: int | None = None, step: int | None = None) -> None:
            super().__init__()
            self.rank, self.position, self.step = rank, position, step

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name for it
        super().__init__(id=id)
        self._scene: Scene | None = None
        self._strips: list[Strip] = []
        self._stale = True

    # -- for the views -------------------------------------------------------------------------------

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Return the lines, at most ``height`` of them."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw again, because a key changed what is shown."""
        self._stale = True
        if self.display and self._scene is not None:
            self._update()

    @property
    def scene(self) -> Scene | None:
        """What is drawn."""
        return self._scene

    # -- for the application -------------------------------------------------------------------------

    def show(self, scene: Scene) -> None:
        """Take over a new scene; it is drawn at once if the view is on the screen."""
        self._scene = scene
        self.redraw()

    def as_text(self) -> str:
        """Return what is shown, as text: glyphs say what colours say on the screen."""
        if self._scene is None:
            return ""
        lines = self._lines(replace(self._scene, palette=MONO))
        return "\n".join(strip.text.rstrip() for strip in lines).rstrip() + "\n"

    # -- for Textual ---------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """Return one line."""
        if self._stale:
            self._update()
        if y < len(self._strips):
            return self._strips[y]
        return Strip.blank(self.size.width, self.rich_style)

    def on_resize(self, _event: events.Resize) -> None:
        """Draw for the new size."""
        self.redraw()

    def on_show(self, _event: events.Show) -> None:
        """Draw what came in while the view was hidden."""
        self.redraw()

    def _lines(self, scene: Scene) -> list[Strip]:
        width, height = self.size
        picture, palette = scene.picture, scene.palette
        if picture.rows and not picture.unmatched:
            lines = self.draw(scene, width, height)[:height]
        else:
            lines = empty_state(picture, palette, width)[:height]
        blank = Line(width).strip(palette.style(palette.text))
        return lines + [blank] * (height - len(lines))

    def _update(self) -> None:
        width, height = self.size
        self._stale = False
        if self._scene is None or not width or not height:
            return
        lines = self._lines(self._scene)
        before, self._strips = self._strips, lines
        if len(before) != len(lines):
            self.refresh()
            return
        changed = [y for y, line in enumerate(lines) if line is not before[y] and line != before[y]]
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))


def wrap(text: str, width: int) -> list[str]:
    """Return text in lines of at most ``width`` columns."""
    bound = _UNITS.sub("\u00a0", text)
    return [row.replace("\u00a0", " ") for row in textwrap.wrap(bound, max(8, width))] or [""]
