"""The charts below the overview's table: stall by layer, stall by cause, step time."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from textual.strip import Strip

from swtrace import units
from swtrace.ledger.facts import CAUSES
from swtrace.units import counted
from swtrace_tui.canvas import Line, clip, column_chart, legend, wrap
from swtrace_tui.palette import Palette
from swtrace_tui.picture import RankRow, SeriesView, layer_profile
from swtrace_tui.views.view import Scene

CAUSE_GLYPHS = "><=━·"
_LABELS = 10
_CAUSE_LABEL = 8
CHART_LEAST = 6
"""Lines of the smallest useful chart of layers."""
_STEPS_LEAST = 8
"""Lines of the smallest useful chart of step times."""


def charts(scene: Scene, width: int, height: int) -> list[Strip]:
    """Return the charts that fit into ``height`` lines."""
    focus = scene.picture.focus
    if focus is None:
        return []
    first = height if height < 12 else min(20, height // 3)  # noqa: PLR2004 - room for one
    left = height - first
    stalled = any(row.recent.stall_ns for row in focus.rows)
    causes = _causes(focus, scene.palette, width, min(left, 20)) if stalled and left >= 5 else []  # noqa: PLR2004
    left -= len(causes)
    # Lines that are too few for the last chart go to the first.
    lines = [*_layers(focus, scene.palette, width, first + (left if left < _STEPS_LEAST else 0)), *causes]
    if left >= _STEPS_LEAST:
        lines += _steps(focus, scene.palette, width, min(left, 22))
    return lines


def _layers(series: SeriesView, palette: Palette, width: int, height: int) -> list[Strip]:
    """Draw each layer's mean stall per wait as columns; of an observed series, its mean time."""
    profile = layer_profile(series)
    room = width - _LABELS - 1
    wide = max(1, min(6, room // len(profile)))
    fold = -(-len(profile) // room)
    if fold > 1:
        profile = np.array([profile[i : i + fold].max() for i in range(0, len(profile), fold)])
    top = float(profile.max(initial=0.0))
    shades = palette.ramp("stall" if series.facts.shared else "compute")
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    whose = " of all ranks" if series.facts.apart else ""
    shared = series.facts.shared
    what = "mean per wait" if shared else "mean from its reach to the next one"
    note = f"{what}, last {counted(len(series.steps), 'step')}{whose}"
    note += f"; a column shows the worst of {fold} layers" if fold > 1 else ""
    title = " Stall by layer: " if shared else " Time by layer: "
    about, *more = wrap(note, width - 2, indent=len(title))
    lines = [Line(width).put(title, palette.style(palette.text, bold=True)).put(about, dim).strip(plain)]
    lines += [Line(width).put(f" {row}", dim).strip(plain) for row in more]
    rows = column_chart(np.repeat(profile, wide).tolist(), height - len(lines) - 1, top)
    for i, row in enumerate(rows):
        label = units.duration(top) if i == 0 else "0" if i == len(rows) - 1 else ""
        colour = palette.text if palette.mono else shades[min(len(shades) - 1, 6 + 8 * (len(rows) - i) // len(rows))]
        lines.append(
            Line(width)
            .field(label, _LABELS, dim, right=True)
            .put("▕", palette.style(palette.faint))
            .blocks(row, palette.style(colour), solid=not palette.mono)
            .strip(plain)
        )
    axis = Line(width).field("layer ", _LABELS + 1, dim, right=True)
    every = max(1, -(-8 // wide))
    for position in range(0, len(profile), every):
        axis.field(str(series.layer(position * fold)), every * wide, dim)
    lines.append(axis.strip(plain))
    return lines


def _causes(series: SeriesView, palette: Palette, width: int, height: int) -> list[Strip]:
    """Draw each rank's stall per step as a bar, split by proximate cause."""
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    present = [i for i, cause in enumerate(CAUSES) if any(row.recent.cause_ns.get(cause) for row in series.rows)]
    items = [(_glyph(i, palette), palette.style(palette.causes[i]), units.words(CAUSES[i])) for i in present]
    title = ("Stall by cause: ", palette.style(palette.text, bold=True))
    lines = [Line(width).strip(plain), *legend(items, width, dim, title=title, first="mean per step")]
    rows = sorted(series.rows, key=lambda row: -_per_step(row))[: max(1, height - len(lines) - 1)]
    top = max((_per_step(row) for row in rows), default=0.0)
    names = {row.rank: series.rank_name(row.group_rank) for row in rows}
    label = max(_CAUSE_LABEL, min(1 + max(map(len, names.values())), width // 4))
    room = max(8, width - label - 12)
    for row in rows:
        line = Line(width).field(clip(names[row.rank], label - 1), label, dim, right=True).put(" ", plain)
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
    """Draw the time of the last steps, and the part that the most stalled rank stalled.

    In a pull series, the steps are those of the most stalled rank.
    """
    room = width - _LABELS - 1
    steps = [step for step in series.judged if step.ended.any() and not step.partial]
    wide = max(1, min(8, room // max(1, len(steps))))
    steps = steps[-(room // wide) :]
    total = np.array([float(step.duration_ns.max(initial=0)) for step in steps])
    stall = np.array([float(step.stall_ns.sum(axis=1).max(initial=0)) for step in steps])
    top = float(total.max(initial=0.0))
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    compute, stalled = palette.spans[1], palette.spans[2]
    only = steps[-1].of_rank if steps else None
    whose = "stall of the most stalled rank" if only is None else "stall"
    items = (
        ()
        if not series.facts.shared
        else (
            ("█", palette.style(palette.text if palette.mono else stalled), whose),
            ("░" if palette.mono else "█", palette.style(palette.text if palette.mono else compute), "the rest"),
        )
    )
    of_rank = "" if only is None else f" of {series.rank_name(only)}"
    title = (f"Step time{of_rank}: ", palette.style(palette.text, bold=True))
    first = f"last {counted(len(steps), 'step')}"
    lines = [Line(width).strip(plain), *legend(items, width, dim, title=title, first=first)]
    whole = column_chart(np.repeat(total, wide).tolist(), height - len(lines) - 1, top)
    part = column_chart(np.repeat(np.minimum(stall, total), wide).tolist(), height - len(lines) - 1, top)
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
