"""Diagnosis: what is wrong, who, since when, why, and what to do; the page of ``swtrace diagnose``."""

from __future__ import annotations

from textual.strip import Strip

from swtrace.diagnosis.page import LABEL_COLUMNS, MARKS, Style, lines
from swtrace_tui.actions import DIAGNOSIS
from swtrace_tui.canvas import Line
from swtrace_tui.palette import Palette
from swtrace_tui.views.view import Scene, View, with_scroll_hint

_MARGIN = 1
_ROOMY = 14
"""Lines above which the page begins below a blank line."""


class DiagnosisView(View, view=DIAGNOSIS):
    """The page about everything that is selected."""

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Draw the page."""
        drawn = page_lines(scene, width)
        if height >= _ROOMY:
            drawn.insert(0, Line(width).strip(scene.palette.style(scene.palette.text)))
        top = self.scrolled(len(drawn), height)
        return with_scroll_hint(drawn[top : top + height], top, len(drawn), width, scene.palette)


def page_lines(scene: Scene, width: int) -> list[Strip]:
    """Return the page in the palette's colours."""
    palette = scene.palette
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    if scene.diagnosis is None:
        return [Line(width).put(" …", dim).strip(plain)]
    styles = {Style.HEADING: palette.style(palette.text, bold=True), Style.TEXT: plain, Style.DIM: dim}
    drawn = []
    for line in lines(scene.diagnosis, width - 2 * _MARGIN):
        row = Line(width).put(" " * _MARGIN, plain)
        if line.level is not None:
            row.put(f"{MARKS[line.level]} ", palette.levels[line.level])
        elif line.style is Style.HEADING:
            row.put("  ", plain)
        else:
            row.put(f"  {line.label.ljust(LABEL_COLUMNS)}", dim)
        drawn.append(row.put(line.text, styles[line.style]).strip(plain))
    return [*drawn, _hint(palette, width)]


def _hint(palette: Palette, width: int) -> Strip:
    hint = f"{' ' * (_MARGIN + 2 + LABEL_COLUMNS)}? explains the words"
    return Line(width).put(hint, palette.style(palette.dim)).strip(palette.style(palette.text))
