"""Verdict: the ledger's findings, worst first."""

from __future__ import annotations

from rich.style import Style
from textual.strip import Strip

from swtrace.diagnosis.finding import Finding, Level
from swtrace.units import counted
from swtrace_tui.actions import VERDICT
from swtrace_tui.canvas import Line, wrap
from swtrace_tui.palette import Palette
from swtrace_tui.picture import SeriesView
from swtrace_tui.views.overview import badge_of, sentence_of
from swtrace_tui.views.view import Scene, View, with_scroll_hint

LEVEL_GLYPHS = {Level.GOOD: "✓", Level.NOTE: "·", Level.WARNING: "▲", Level.BAD: "■"}
_WIDEST = 110
"""Columns of text: longer lines are hard to read."""
_SMALL = 14
"""Lines below which the findings begin at once, and what they are about follows them."""


class VerdictView(View, view=VERDICT):
    """Findings of every selected series."""

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Draw the findings."""
        lines: list[Strip] = []
        for series in scene.picture.series:
            lines += series_lines(series, scene, width, small=height < _SMALL)
        top = self.scrolled(len(lines), height)
        return with_scroll_hint(lines[top : top + height], top, len(lines), width, scene.palette)


def series_lines(series: SeriesView, scene: Scene, width: int, *, small: bool = False) -> list[Strip]:
    """Return the findings of one series; what they are about comes first, or last if the screen is small."""
    palette = scene.palette
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    info = series.facts.ranks[0].info
    blank = Line(width).strip(plain)
    title = f" {series.title}  "
    hosts = len(series.facts.hosts)
    where = f" on {hosts} hosts" if hosts > 1 else ""
    ranks = counted(len(series.key.group_ranks), "rank")
    steps = counted(series.facts.steps, "step")
    about = f"{ranks}{where}, {info.sharing}; last {steps}; ? explains the words"
    beside = len(title) < width // 2 and not small
    first, *more = wrap(about, width - 2, indent=len(title)) if beside else ("", *wrap(about, width - 2))
    head = [Line(width).put(title, palette.style(palette.text, bold=True)).put(first, dim).strip(plain)]
    rest = [*(Line(width).put(f" {row}", dim).strip(plain) for row in more), blank]
    said = scene.verdicts.get(series.key)
    if said is None:
        found = [Line(width).put("   …", dim).strip(plain), blank]
    else:
        found = finding_lines(series.headline, palette, width, first=True)
        for finding in said.findings[1:]:
            found += finding_lines(finding, palette, width, first=False)
    return [*head, *found, *rest] if small else [blank, *head, *rest, *found, blank]


def finding_lines(finding: Finding, palette: Palette, width: int, *, first: bool) -> list[Strip]:
    """Return a finding: its mark, its sentence and its advice."""
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    style = palette.levels[finding.level]
    room = min(_WIDEST, width - 8)
    lines: list[Strip] = []
    if first:
        badge = Style(color=style.color, bgcolor=style.bgcolor, reverse=True, bold=True)
        lines.append(Line(width).put("   ", plain).put(f" {badge_of(finding)} ", badge).strip(plain))
    for i, row in enumerate(wrap(sentence_of(finding) if first else finding.sentence, room)):
        mark = LEVEL_GLYPHS[finding.level] if i == 0 else " "
        lines.append(
            Line(width)
            .put("   ", plain)
            .put(f"{mark} ", style)
            .put(row, palette.style(palette.text, bold=first))
            .strip(plain)
        )
    if finding.advice:
        lines += [Line(width).put("     ", plain).put(row, dim).strip(plain) for row in wrap(finding.advice, room)]
    lines.append(Line(width).strip(plain))
    return lines
