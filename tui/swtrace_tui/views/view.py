"""The base of all views: lines of cells, of which only changed ones are sent to the terminal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from textual import events
from textual.binding import BindingType
from textual.filter import ANSIToTruecolor
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from swtrace.diagnosis.diagnosis import Diagnosis
from swtrace_tui.actions import bindings
from swtrace_tui.canvas import Line
from swtrace_tui.palette import DARK, MONO, Palette
from swtrace_tui.picture import Picture, SeriesView
from swtrace_tui.views.empty import empty_state


def with_scroll_hint(shown: list[Strip], top: int, total: int, width: int, palette: Palette) -> list[Strip]:
    """Return lines of which some are hidden; the last one then says which are shown."""
    if total <= len(shown) or not shown:
        return shown
    text = f" lines {top + 1}-{top + len(shown) - 1} of {total}, j/k scroll"
    hint = Line(width).put(text, palette.style(palette.note)).strip(palette.style(palette.text))
    return [*shown[:-1], hint]


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a view needs to draw."""

    picture: Picture
    palette: Palette = DARK
    diagnosis: Diagnosis | None = None
    """None until it is reached."""


class Drawn(Widget):
    """A widget of whole lines, drawn once per change. Only lines that changed are sent to the terminal.

    Its lines fill every column and are final: they have true colours only, and no border or opacity. So they go
    straight to the compositor, without Textual's restyling of every segment.
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name for it
        super().__init__(id=id)
        self.scene: Scene | None = None
        """The scene to draw."""
        self._strips: list[Strip] = []
        self._stale = True
        self._drawn_for = Size(0, 0)

    def lines(self, scene: Scene) -> list[Strip]:
        """Return a line for every row of the widget."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw again, now if the widget is on the screen, and send the lines that changed."""
        self._stale = True
        if not self.display or self.scene is None or not self.size:
            return
        before = self._strips
        self._update()
        if len(before) != len(self._strips):
            self.refresh()
            return
        width = self.size.width
        changed = [
            Region(0, y, width, 1)
            for y, (old, new) in enumerate(zip(before, self._strips, strict=True))
            if old is not new and old != new
        ]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        """Return one line."""
        return self.render_lines(Region(0, y, self.size.width, 1))[0]

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return the drawn lines, through the filters that remove colour if ``NO_COLOR`` is set."""
        if self._stale or self._drawn_for != self.size:
            self._update()
        strips = self._strips[crop.y : crop.bottom] or [Strip.blank(self.size.width, self.rich_style)] * crop.height
        for each in self.get_line_filters():
            if not isinstance(each, ANSIToTruecolor):
                strips = [strip.apply_filter(each, self.background_colors[1]) for strip in strips]
        return strips if crop.width == self.size.width else [strip.crop(crop.x, crop.right) for strip in strips]

    def on_resize(self, _event: events.Resize) -> None:
        """Draw for the new size."""
        self.redraw()

    def on_show(self, _event: events.Show) -> None:
        """Draw what arrived while the widget was hidden."""
        self.redraw()

    def _update(self) -> None:
        self._stale, self._drawn_for = False, self.size
        if self.scene is not None and self.size:
            self._strips = self.lines(self.scene)


class View(Drawn, can_focus=True):
    """A view: :meth:`draw` makes its lines from the scene, the size and the state that its keys set."""

    DEFAULT_CSS = "View { height: 1fr; width: 1fr; background: $background; }"
    BINDINGS: ClassVar[list[BindingType]] = []
    VIEW: ClassVar[str]

    class Open(Message):
        """The user wants to see this in the timeline."""

        def __init__(self, *, rank: int | None, position: int | None = None) -> None:
            super().__init__()
            self.rank, self.position = rank, position

    _top = 0
    """First line, lane or row that a scrolling view shows."""

    def __init_subclass__(cls, *, view: str, **widget: Any) -> None:
        """Give a view its name and the keys of its actions (:mod:`swtrace_tui.actions`)."""
        cls.VIEW, cls.BINDINGS = view, bindings(view)
        super().__init_subclass__(**widget)

    def __init__(self) -> None:
        super().__init__(id=self.VIEW)

    # -- for the views -------------------------------------------------------------------------------

    @property
    def focus_series(self) -> SeriesView | None:
        """The series that views of one series show."""
        return self.scene.picture.focus if self.scene else None

    def action_scroll(self, by: int) -> None:
        """Scroll."""
        self._top = max(0, self._top + by)
        self.redraw()

    def scrolled(self, total: int, room: int) -> int:
        """Limit scrolling to ``total`` lines of which ``room`` are shown, and return the first shown line."""
        self._top = max(0, min(self._top, total - room))
        return self._top

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Return the lines, at most ``height`` of them."""
        raise NotImplementedError

    # -- for the application -------------------------------------------------------------------------

    def show(self, scene: Scene) -> None:
        """Set a new scene, and draw it now if the view is on the screen."""
        self.scene = scene
        self.redraw()

    def as_text(self) -> str:
        """Return what is shown, as text: glyphs replace the colours."""
        if self.scene is None:
            return ""
        lines = self.lines(replace(self.scene, palette=MONO))
        return "\n".join(strip.text.rstrip() for strip in lines).rstrip() + "\n"

    def lines(self, scene: Scene) -> list[Strip]:
        """Return the drawn lines, or advice if there are no data, padded to the bottom."""
        width, height = self.size
        picture, palette = scene.picture, scene.palette
        if picture.rows and not picture.unmatched:
            lines = self.draw(scene, width, height)[:height]
        else:
            lines = empty_state(picture, palette, width)[:height]
        blank = Line(width).strip(palette.style(palette.text))
        return lines + [blank] * (height - len(lines))
