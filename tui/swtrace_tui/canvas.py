"""Lines of cells that are drawn piece by piece, then handed over as strips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from swtrace_tui.palette import BLOCKS


class Line:
    """One line, drawn from left to right. What does not fit is cut off."""

    __slots__ = ("_segments", "_width", "used")

    def __init__(self, width: int) -> None:
        self._width = width
        self._segments: list[Segment] = []
        self.used = 0

    @property
    def segments(self) -> list[Segment]:
        """What was drawn so far."""
        return self._segments

    @property
    def room(self) -> int:
        """Columns left."""
        return self._width - self.used

    def put(self, text: str, style: Style) -> Line:
        """Append text."""
        if self.room <= 0 or not text:
            return self
        length = cell_len(text)
        if length > self.room:
            text = clip(text, self.room)
            length = cell_len(text)
        self._segments.append(Segment(text, style))
        self.used += length
        return self

    def blocks(self, text: str, style: Style, *, solid: bool = True) -> Line:
        """Append a bar or chart. Whole blocks become blanks of their colour, which leave no seam between lines."""
        if not solid:
            return self.put(text, style)
        whole = style + Style(bgcolor=style.color)
        for full, run in groupby(text, "█".__eq__):
            piece = "".join(run)
            self.put(" " * len(piece) if full else piece, whole if full else style)
        return self

    def field(self, text: str, width: int, style: Style, *, right: bool = False) -> Line:
        """Append text in a field of its own: cut off or filled up to ``width``."""
        text = clip(text, width)
        gap = " " * (width - cell_len(text))
        return self.put(gap + text if right else text + gap, style)

    def cells(self, segments: Iterable[Segment], width: int) -> Line:
        """Append prebuilt segments that are ``width`` columns wide together."""
        self._segments.extend(segments)
        self.used += width
        return self

    def to(self, column: int, style: Style) -> Line:
        """Fill up with blanks to a column."""
        return self.put(" " * (column - self.used), style) if column > self.used else self

    def strip(self, style: Style) -> Strip:
        """Return the line, filled up with blanks."""
        if self.room > 0:
            self.put(" " * self.room, style)
        return Strip(self._segments, self.used)


def clip(text: str, width: int) -> str:
    """Return text cut off to ``width`` columns, with an ellipsis."""
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    while cell_len(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def sparkline(values: Sequence[float], width: int, top: float) -> str:
    """Return the newest values as blocks, oldest first; what is not nothing shows at least the lowest block.

    The highest block leaves a gap, so that lines below each other stay apart.
    """
    shown = values[-width:] if width > 0 else ()
    text = "".join(
        BLOCKS[0] if value <= 0 else BLOCKS[max(1, min(7, round(7 * value / top)))] if top > 0 else BLOCKS[1]
        for value in shown
    )
    return text.ljust(width)


def bar(share: float, width: int) -> str:
    """Return a horizontal bar, to half a column; what is not nothing shows at least that."""
    halves = max(1 if share > 0 else 0, min(2 * width, round(2 * width * share)))
    whole, rest = divmod(halves, 2)
    return "━" * whole + "╸" * rest


def column_chart(values: Sequence[float], height: int, top: float) -> list[str]:
    """Return values as columns of ``height`` rows, top row first."""
    eighths = [
        0 if value <= 0 or top <= 0 else max(1, min(8 * height, round(8 * height * value / top))) for value in values
    ]
    return ["".join(BLOCKS[max(0, min(8, each - 8 * row))] for each in eighths) for row in range(height - 1, -1, -1)]
