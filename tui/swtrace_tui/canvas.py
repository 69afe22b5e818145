"""Lines of cells, drawn piece by piece and returned as strips."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from swtrace_tui.palette import BLOCKS

_UNITS = re.compile(r"(?<=\d) (?=(?:%|ns|us|ms|s|min|h|B|[KMGT]iB)(?!\w))")
"""A space between a number and its unit, where a line must not break."""
_COLUMNS = np.array(list(BLOCKS))
_RUNS = re.compile("█+|[^█]+")


class Line:
    """One line, drawn from left to right and cut off at its width."""

    __slots__ = ("_width", "segments", "used")

    def __init__(self, width: int) -> None:
        self._width = width
        self.segments: list[Segment] = []
        """The segments drawn so far."""
        self.used = 0

    @property
    def room(self) -> int:
        """Remaining columns."""
        return self._width - self.used

    def put(self, text: str, style: Style) -> Line:
        """Append text."""
        if self.room <= 0 or not text:
            return self
        length = len(text) if text.isascii() and text.isprintable() else cell_len(text)
        if length > self.room:
            text = clip(text, self.room)
            length = cell_len(text)
        self.segments.append(Segment(text, style))
        self.used += length
        return self

    def blocks(self, text: str, style: Style, *, solid: bool = True) -> Line:
        """Append a bar or chart. Full blocks become blanks on their colour, which leave no seam between lines."""
        if not solid:
            return self.put(text, style)
        whole = style + Style(bgcolor=style.color)
        for piece in _RUNS.findall(text):
            full = piece[0] == "█"
            self.put(" " * len(piece) if full else piece, whole if full else style)
        return self

    def field(self, text: str, width: int, style: Style, *, right: bool = False) -> Line:
        """Append text, cut off or padded to ``width``."""
        text = clip(text, width)
        gap = " " * (width - cell_len(text))
        return self.put(gap + text if right else text + gap, style)

    def cells(self, segments: Iterable[Segment], width: int) -> Line:
        """Append prebuilt segments with a total width of ``width`` columns."""
        self.segments.extend(segments)
        self.used += width
        return self

    def to(self, column: int, style: Style) -> Line:
        """Append blanks up to a column."""
        return self.put(" " * (column - self.used), style) if column > self.used else self

    def strip(self, style: Style) -> Strip:
        """Return the line, padded with blanks."""
        if self.room > 0:
            self.put(" " * self.room, style)
        return Strip(self.segments, self.used)


def clip(text: str, width: int) -> str:
    """Return text of at most ``width`` columns, cut off with an ellipsis."""
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    while cell_len(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def wrap(text: str, width: int, *, indent: int = 0, most: int | None = None) -> list[str]:
    """Return text in lines of at most ``width`` columns.

    Args:
        text: The text.
        width: Columns.
        indent: Columns that are missing in the first line.
        most: Number of lines; an ellipsis replaces the words that do not fit.
    """
    bound = _UNITS.sub("\u00a0", text)
    wide = max(8, width, indent + 1)
    wrapped = textwrap.wrap(bound, wide, initial_indent=" " * indent, max_lines=most, placeholder=" …")
    rows = [row.replace("\u00a0", " ") for row in wrapped] or [""]
    rows[0] = rows[0][indent:]
    return rows


def legend(
    items: Iterable[tuple[str, Style, str]],
    width: int,
    plain: Style,
    *,
    first: str = "",
    title: tuple[str, Style] | None = None,
) -> list[Strip]:
    """Return symbols and what they mean, in as many lines as they need.

    Args:
        items: Symbol, its style and its meaning.
        width: Columns.
        plain: Style of the text.
        first: Text before the items.
        title: Text before that, and its style.
    """
    lines = [Line(width).put(" ", plain).put(*(title or ("", plain))).put(first, plain)]
    for symbol, style, about in items:
        gap = "  " if lines[-1].used > 1 else ""
        if gap and lines[-1].room < len(gap) + len(symbol) + 1 + len(about):
            lines.append(Line(width).put(" ", plain))
            gap = ""
        lines[-1].put(gap, plain).put(symbol, style).put(f" {about}", plain)
    return [line.strip(plain) for line in lines]


def sparkline(values: Sequence[float], width: int, top: float) -> str:
    """Return the newest values as blocks, oldest first; a value above 0 shows at least the lowest block.

    The full block is not used, so that a gap separates lines below each other.
    """
    shown = values[-width:] if width > 0 else ()
    text = "".join(
        BLOCKS[0] if value <= 0 else BLOCKS[max(1, min(7, round(7 * value / top)))] if top > 0 else BLOCKS[1]
        for value in shown
    )
    return text.ljust(width)


def bar(share: float, width: int) -> str:
    """Return a horizontal bar in half columns; a share above 0 shows at least one."""
    halves = max(1 if share > 0 else 0, min(2 * width, round(2 * width * share)))
    whole, rest = divmod(halves, 2)
    return "━" * whole + "╸" * rest


def column_chart(values: Sequence[float] | npt.NDArray[np.float64], height: int, top: float) -> list[str]:
    """Return values as columns of ``height`` rows, top row first."""
    heights = np.asarray(values, np.float64)
    eighths = np.rint(8 * height * heights / top) if top > 0 else np.zeros(len(heights))
    eighths = np.where((heights > 0) & (top > 0), np.clip(eighths, 1, 8 * height), 0)
    rows = np.clip(eighths - 8 * np.arange(height - 1, -1, -1)[:, np.newaxis], 0, 8).astype(np.intp)
    return ["".join(row) for row in _COLUMNS[rows].tolist()]
