"""Charts as inline SVG: lines, bars, a heat map, lanes. They need no script, font or network, and can be printed.

A charting library would add megabytes of script for four static charts. Colours are CSS classes, so that the style of
the page decides about light, dark and print.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import StepFacts
from swtrace.units import milliseconds

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 8, 8, 26
SHADES = 8
_MAX_LABELS = 16
_LABEL_WIDTH = 48


def lines(series: Sequence[tuple[str, str, npt.NDArray[np.float64]]], *, x_label: str, x_end: int) -> str:
    """Return curves over steps. ``series``: label, CSS class and values in ns, one per block of steps."""
    height = 200
    inner_width, inner_height = WIDTH - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    top = max((float(values.max(initial=0)) for _, _, values in series), default=0.0) or 1.0
    parts = [_y_axis(top, inner_height, inner_width)]
    for label, css, values in series:
        count = max(1, len(values) - 1)
        points = " ".join(
            f"{_LEFT + inner_width * index / count:.1f},{_TOP + inner_height * (1 - value / top):.1f}"
            for index, value in enumerate(values)
        )
        parts.append(f'<polyline class="line {css}" points="{points}"><title>{escape(label)}</title></polyline>')
    parts += [
        _text(_LEFT, height - 8, "0", "start"),
        _text(WIDTH - _RIGHT, height - 8, f"{x_label} {x_end}", "end"),
    ]
    return _svg(height, parts, x_label)


def bars(groups: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, labels: Sequence[str]) -> str:
    """Return stacked bars. ``groups``: each bar's label and its (CSS class, value) parts; ``labels``: text below."""
    height = 190
    inner_width, inner_height = WIDTH - _LEFT - _RIGHT, height - _TOP - _BOTTOM - 14
    top = max((sum(value for _, value in parts) for _, parts in groups), default=0.0) or 1.0
    slot = inner_width / max(1, len(groups))
    out = [_text(_LEFT - 6, _TOP + 10, f"{top:.0f}", "end"), _text(_LEFT - 6, _TOP + inner_height, "0", "end")]
    for index, (label, values) in enumerate(groups):
        y = float(_TOP + inner_height)
        for css, value in values:
            tall = inner_height * value / top
            y -= tall
            if tall:
                out.append(
                    f'<rect class="{css}" x="{_LEFT + slot * index + 1:.1f}" y="{y:.1f}" width="{slot - 2:.1f}" '
                    f'height="{tall:.1f}"><title>{escape(label)}: {value:.0f}</title></rect>'
                )
        if slot >= _LABEL_WIDTH or index % 2 == 0:
            out.append(_text(_LEFT + slot * (index + 0.5), _TOP + inner_height + 14, labels[index], "middle"))
    return _svg(height, out, "distribution")


def heat_map(values: npt.NDArray[np.float64], known: npt.NDArray[np.bool_], ranks: Sequence[int], first: int) -> str:
    """Return a heat map of mean stall per step in ns, by rank and layer. Cells that never wait look like own layers."""
    rows, columns = values.shape
    cell = min(26.0, max(12.0, 320 / rows))
    width = (WIDTH - _LEFT - _RIGHT) / columns
    height = round(_TOP + rows * cell + _BOTTOM)
    top = float(values.max(initial=0)) or 1.0
    every = max(1, -(-columns // _MAX_LABELS))
    parts = []
    for row in range(rows):
        y = _TOP + row * cell
        parts.append(_text(_LEFT - 6, y + cell / 2 + 4, f"rank {ranks[row]}", "end"))
        for column in range(columns):
            x = _LEFT + column * width
            shade = min(SHADES, round(SHADES * values[row, column] / top))
            css = f"heat{shade}" if known[row, column] else "own"
            what = milliseconds(values[row, column]) if known[row, column] else "its own layer"
            parts.append(
                f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width - 0.6):.1f}" '
                f'height="{cell - 1:.1f}"><title>rank {ranks[row]}, layer {first + column}: {what}</title></rect>'
            )
    parts += [
        _text(_LEFT + (column + 0.5) * width, height - 10, str(first + column), "middle")
        for column in range(0, columns, every)
    ]
    return _svg(height, parts, "stall by rank and layer")


def lanes(step: StepFacts) -> str:
    """Return one step to scale: for each rank, when it computed, stalled and received broadcasts."""
    ranks = len(step.ranks)
    lane, gap = 34, 10
    height = _TOP + ranks * (lane + gap) + _BOTTOM
    begin, end = int(step.begin_ns.min()), int(step.end_ns.max())
    scale = (WIDTH - _LEFT - _RIGHT) / max(1, end - begin)
    parts = []

    def box(css: str, since: int, until: int, y: float, tall: float, title: str) -> None:
        left, right = max(begin, since), min(end, until)
        if right > left:
            parts.append(
                f'<rect class="{css}" x="{_LEFT + (left - begin) * scale:.2f}" y="{y:.1f}" '
                f'width="{max(0.3, (right - left) * scale):.2f}" height="{tall:.1f}">'
                f"<title>{escape(title)}</title></rect>"
            )

    for rank in range(ranks):
        y = _TOP + rank * (lane + gap)
        parts.append(_text(_LEFT - 6, y + 14, f"rank {step.ranks[rank].rank}", "end"))
        box("compute", int(step.begin_ns[rank]), int(step.end_ns[rank]), y, 18, "computing")
        for position in np.flatnonzero(step.receiver[rank]).tolist():
            layer = step.series.start_layer + position
            stall = int(step.stall_ns[rank, position])
            at = int(step.wait_begin_ns[rank, position])
            if stall:
                box("stall", at, at + stall, y, 18, f"layer {layer}: stalled {milliseconds(stall)}")
            issued, ready = int(step.issued_ns[rank, position]), int(step.ready_ns[rank, position])
            moving = f"layer {layer}: broadcast, {milliseconds(ready - issued)}"
            box("hidden", issued, min(ready, at), y + 20, 6, moving)
            box("exposed", max(issued, at), ready, y + 20, 6, moving)
    parts += [
        _text(_LEFT, height - 8, "0", "start"),
        _text(WIDTH - _RIGHT, height - 8, milliseconds(end - begin), "end"),
    ]
    return _svg(height, parts, f"step {step.step}")


def _y_axis(top: float, inner_height: float, inner_width: float) -> str:
    out = []
    for share in (0.0, 0.5, 1.0):
        y = _TOP + inner_height * (1 - share)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + inner_width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(_text(_LEFT - 6, y + 4, milliseconds(top * share) if share else "0", "end"))
    return "".join(out)


def _text(x: float, y: float, content: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )
