"""The charts below the overview's table: stall by layer, stall by cause, step time."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from textual.strip import Strip

from swtrace import units
from swtrace.ledger.facts import CAUSES
from swtrace.units import counted
from swtrace_tui.canvas import Line, column_chart
from swtrace_tui.palette import Palette
from swtrace_tui.picture import RankRow, SeriesView, layer_profile
from swtrace_tui.views.view import Scene

CAUSE_GLYPHS = "><=━·"
_LABELS = 10
_CAUSE_LABEL = 8
_STEPS_LEAST = 8
"""Lines of the smallest useful chart of step times."""


def charts(scene: Scene, width: int, height: int) -> list[Strip]:
    """Return the charts that fit into ``height`` lines."""
    focus = scene.picture.focus
    if focus is None:
        return []
    stalled = [row for row in focus.rows if row.recent.stall_ns]
    first = height if height < 12 else min(20, height // 3)  # noqa: PLR2004 - room for one
    left = height - first - (len(focus.rows) + 3 if stalled else 0)
    # Lines that are too few for the last chart go to the first.
    first += left if 0 < left < _STEPS_LEAST else 0
    lines = _layers(focus, scene.palette, width, first)
    left = height - len(lines)
    if left >= 5 and stalled:  # noqa: PLR2004 - title, legend and some bars
        lines += _causes(focus, scene.palette, width, min(left, 20))
    left = height - len(lines)
    if left >= _STEPS_LEAST:
        lines += _steps(focus, scene.palette, width, min(left, 22))
    return lines


def _title(text: str, note: str, width: int, palette: Palette) -> Strip:
    line = Line(width).put(f" {text}: ", palette.style(palette.text, bold=True)).put(note, palette.style(palette.dim))
    return line.strip(palette.style(palette.text))


def _layers(series: SeriesView, palette: Palette, width: int, height: int) -> list[Strip]:
    """Draw each layer's mean stall per wait as columns."""
    profile = layer_profile(series)
    room = width - _LABELS - 1
    wide = max(1, min(6, room // len(profile)))
    fold = -(-len(profile) // room)
    if fold > 1:
        profile = np.array([profile[i : i + fold].max() for i in range(0, len(profile), fold)])
    top = float(profile.max(initial=0.0))
    shades = palette.ramp("stall")
    rows = column_chart(np.repeat(profile, wide).tolist(), height - 2, top)
    plain = palette.style(palette.text)
    note = f"mean per wait, last {counted(len(series.steps), 'step')}"
    note += f"; a column shows the worst of {fold} layers" if fold > 1 else ""
    lines = [_title("Stall by layer", note, width, palette)]
    for i, row in enumerate(rows):
        label = units.duration(top) if i == 0 else "0" if i == len(rows) - 1 else ""
        colour = palette.text if palette.mono else shades[min(len(shades) - 1, 6 + 8 * (len(rows) - i) // len(rows))]
        lines.append(
            Line(width)
            .field(label, _LABELS, palette.style(palette.dim), right=True)
            .put("▕", palette.style(palette.faint))
            .blocks(row, palette.style(colour), solid=not palette.mono)
            .strip(plain)
        )
    axis = Line(width).field("layer ", _LABELS + 1, palette.style(palette.dim), right=True)
    every = max(1, -(-8 // wide))
    for position in range(0, len(profile), every):
        axis.field(str(series.layer(position * fold)), every * wide, palette.style(palette.dim))
    lines.append(axis.strip(plain))
    return lines


def _causes(series: SeriesView, palette: Palette, width: int, height: int) -> list[Strip]:
    """Draw each rank's stall per step as a bar, split by proximate cause."""
    rows = sorted(series.rows, key=lambda row: -_per_step(row))[: max(1, height - 3)]
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    present = [i for i, cause in enumerate(CAUSES) if any(row.recent.cause_ns.get(cause) for row in series.rows)]
    legend = Line(width).put(" Stall by cause: ", palette.style(palette.text, bold=True)).put("mean per step  ", dim)
    for i in present:
        legend.put(_glyph(i, palette) + " ", palette.style(palette.causes[i])).put(f"{units.words(CAUSES[i])}  ", dim)
    lines = [Line(width).strip(plain), legend.strip(plain)]
    top = max((_per_step(row) for row in rows), default=0.0)
    room = max(8, width - _CAUSE_LABEL - 12)
    for row in rows:
        line = Line(width).field(f"rank {row.rank}", _CAUSE_LABEL, dim, right=True).put(" ", plain)
        edges = np.cumsum([0.0, *(row.recent.cause_ns.get(CAUSES[i], 0) / max(1, row.recent.steps) for i in present)])
        cells = np.round(edges / top * room).astype(int) if top > 0 else np.zeros(len(edges), int)
        for i, begin, end in zip(present, cells[:-1].tolist(), cells[1:].tolist(), strict=True):
            line.put(_glyph(i, palette) * (end - begin), palette.style(palette.causes[i]))
        lines.append(line.put(f" {units.duration(_per_step(row))}", plain).strip(plain))
    return lines


def _per_step(row: RankRow) -> float:
    return row.recent.stall_ns / row.recent.steps if row.recent.steps else 0.0


def _glyph(cause: int, palette: Palette) -> str:
    return CAUSE_GLYPHS[cause] if palette.mono else "━"


def _steps(series: SeriesView, palette: Palette, width: int, height: int) -> list[Strip]:
    """Draw the time of the last steps, and the part that the most stalled rank stalled."""
    room = width - _LABELS - 1
    steps = [step for step in series.steps if step.ended.any() and not step.partial]
    wide = max(1, min(8, room // max(1, len(steps))))
    steps = steps[-(room // wide) :]
    total = np.array([float(step.duration_ns.max(initial=0)) for step in steps])
    stall = np.array([float(step.stall_ns.sum(axis=1).max(initial=0)) for step in steps])
    top = float(total.max(initial=0.0))
    whole = column_chart(np.repeat(total, wide).tolist(), height - 3, top)
    part = column_chart(np.repeat(np.minimum(stall, total), wide).tolist(), height - 3, top)
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    compute, stalled = palette.spans[1], palette.spans[2]
    legend = Line(width).put(" Step time: ", palette.style(palette.text, bold=True))
    legend.put(f"last {counted(len(steps), 'step')}  ", dim)
    legend.put("█ ", palette.style(palette.text if palette.mono else stalled)).put(
        "stall of the most stalled rank  ", dim
    )
    legend.put("░ " if palette.mono else "█ ", palette.style(palette.text if palette.mono else compute)).put(
        "the rest", dim
    )
    lines = [Line(width).strip(plain), legend.strip(plain)]
    for i, (outer, inner) in enumerate(zip(whole, part, strict=True)):
        label = units.duration(top) if i == 0 else "0" if i == len(whole) - 1 else ""
        line = Line(width).field(label, _LABELS, dim, right=True).put("▕", palette.style(palette.faint))
        for (block, covered), run in groupby(zip(outer, inner, strict=True)):
            count = len(list(run))
            if palette.mono:
                line.put((covered if covered != " " else "░" if block != " " else " ") * count, plain)
            elif covered == " ":
                line.blocks(block * count, palette.style(compute))
            else:
                below = compute if block == "█" else palette.background
                line.blocks(covered * count, palette.style(stalled, on=below))
        lines.append(line.strip(plain))
    return lines
