"""Charts as inline SVG: lines, bars, a heat map, lanes. They need no script, font or network, and can be printed.

A charting library would add megabytes of script for four static charts. Colours are CSS classes, so that the style of
the page decides about light, dark and print. The shapes stretch to the width of the page. The labels beside them are
HTML, which does not stretch, so they stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import StepFacts
from swtrace.units import milliseconds

SHADES = 8
"""Shades of the heat map above the lowest."""
_WIDTH = 720
"""Width in units of the drawing, whatever the width on the screen."""
_MAX_LABELS = 16
_TICKS_LEFT, _TICKS_BELOW = 4, 10
"""Most intervals between the labels of an axis."""
_NARROW_LABELS = 5
"""More labels below a chart than this do not fit on a narrow screen."""

_Floats = npt.NDArray[np.float64]
_Labels = Sequence[tuple[float, str]]


def lines(curves: Sequence[tuple[str, str, _Floats]], steps: _Floats, first: int, last: int) -> str:
    """Return curves over steps.

    Args:
        curves: Label, CSS class and values in ns.
        steps: Step number of each value.
        first: Step number at the left edge.
        last: Step number at the right edge.
    """
    height = 180
    top = max((float(values.max(initial=0)) for _, _, values in curves), default=0.0) or 1.0
    width = max(1, last - first)
    shapes = []
    ticks = [(height * (1 - value / top), short_duration(value)) for value in _ticks(0, top, _TICKS_LEFT)]
    for y, _ in ticks:
        shapes.append(f'<line class="grid" x1="0" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for label, css, values in curves:
        points = " ".join(
            f"{_WIDTH * (step - first) / width:.1f},{height * (1 - value / top):.1f}"
            for step, value in zip(steps.tolist(), values.tolist(), strict=True)
        )
        shapes.append(f'<polyline class="line {css}" points="{points}"><title>{escape(label)}</title></polyline>')
    below = [((step - first) / width, f"{step:.0f}") for step in _ticks(first, last, _TICKS_BELOW) if step == int(step)]
    return _chart("step time and stall by step", height, shapes, left=ticks, below=below)


def bars(groups: Sequence[tuple[str, str, int]]) -> str:
    """Return one bar per group: its label, CSS class and count."""
    height = 150
    top = max((count for _, _, count in groups), default=0) or 1
    slot = _WIDTH / max(1, len(groups))
    shapes = []
    for index, (label, css, count) in enumerate(groups):
        tall = height * count / top
        shapes.append(
            f'<rect class="{css}" x="{slot * index + 1:.1f}" y="{height - tall:.1f}" width="{slot - 2:.1f}" '
            f'height="{tall:.1f}"><title>up to {escape(label)}: {count}</title></rect>'
        )
    every = -(-len(groups) // _MAX_LABELS)
    below = [((index + 0.5) / len(groups), groups[index][0]) for index in range(0, len(groups), every)]
    ticks = [
        (height * (1 - value / top), f"{value:.0f}") for value in _ticks(0, top, _TICKS_LEFT) if value == int(value)
    ]
    return _chart("waits by slack and stall", height, shapes, left=ticks, below=below)


def heat_map(
    stall: _Floats,
    waits: npt.NDArray[np.bool_],
    own: npt.NDArray[np.bool_],
    ranks: Sequence[int],
    layers: Sequence[int],
) -> str:
    """Return a heat map by rank and layer.

    Args:
        stall: ``[rank, position]``: mean stall per step in ns.
        waits: ``[rank, position]``: whether the rank waited for the layer at all.
        own: ``[rank, position]``: whether the rank stores the layer itself.
        ranks: Global numbers of the ranks.
        layers: Absolute indexes of the layers by position.
    """
    rows, columns = stall.shape
    cell = min(26, max(12, 320 // rows))
    width = _WIDTH / columns
    top = float(stall.max(initial=0)) or 1.0
    shapes = []
    for row, column in np.ndindex(rows, columns):
        value = float(stall[row, column])
        css = f"heat{min(SHADES, round(SHADES * value / top))}" if waits[row, column] else "own"
        what = milliseconds(value) if waits[row, column] else "its own layer" if own[row, column] else "no wait"
        shapes.append(
            f'<rect class="{css}" x="{column * width:.1f}" y="{row * cell}" width="{max(0.5, width - 0.6):.1f}" '
            f'height="{cell - 1}"><title>rank {ranks[row]}, layer {layers[column]}: {what}</title></rect>'
        )
    every = -(-columns // _MAX_LABELS)
    below = [((column + 0.5) / columns, str(layers[column])) for column in range(0, columns, every)]
    left = [((row + 0.5) * cell, f"rank {ranks[row]}") for row in range(rows)]
    return _chart("stall by rank and layer", rows * cell, shapes, left=left, below=below)


def lanes(step: StepFacts) -> str:
    """Return one step to scale: for each rank that runs it, when it computed, stalled and received layers.

    Ranks that cannot be compared all begin at 0.
    """
    running, moves = step.running, "broadcast" if step.of_rank is None else "copy"
    lane = 40
    begins = step.begin_ns.copy()
    if step.comparable:
        begins[:] = begins[running].min()
    extent = int((step.end_ns - begins)[running].max())
    scale = _WIDTH / max(1, extent)
    shapes: list[str] = []

    def box(css: str, since: int, until: int, y: int, tall: int, title: str) -> None:
        left, right = max(0, since - begins[rank]), min(extent, until - begins[rank])
        if right > left:
            shapes.append(
                f'<rect class="{css}" x="{left * scale:.2f}" y="{y}" '
                f'width="{max(0.3, (right - left) * scale):.2f}" height="{tall}">'
                f"<title>{escape(title)}</title></rect>"
            )

    for row, rank in enumerate(running):
        y = row * lane
        box("compute", int(step.begin_ns[rank]), int(step.end_ns[rank]), y, 18, "computing")
        for position in np.flatnonzero(step.receiver[rank]).tolist():
            layer = step.layers[position]
            stall = int(step.stall_ns[rank, position])
            at = int(step.wait_begin_ns[rank, position])
            if stall:
                box("stall", at, at + stall, y, 18, f"layer {layer}: stalled {milliseconds(stall)}")
        for css in ("hidden", "exposed"):  # in this order: what was exposed must not be covered by what moved meanwhile
            for position in np.flatnonzero(step.receiver[rank]).tolist():
                at, ready = int(step.wait_begin_ns[rank, position]), int(step.ready_ns[rank, position])
                began = int(step.issued_ns[rank, position])
                if step.attributed[rank, position]:
                    began = ready - int(step.transfer_ns[rank, position])
                moving = f"layer {step.layers[position]}: {moves}, {milliseconds(ready - began)}"
                since, until = (began, min(ready, at)) if css == "hidden" else (max(began, at), ready)
                box(css, since, until, y + 20, 6, moving)
    left = [(row * lane + 9.0, f"rank {step.ranks[rank].rank}") for row, rank in enumerate(running)]
    below = [(value / max(1, extent), short_duration(value)) for value in _ticks(0, extent, _TICKS_BELOW)]
    return _chart(f"step {step.step}", len(running) * lane - 10, shapes, left=left, below=below)


@dataclass(frozen=True, slots=True)
class Mark:
    """A predicted figure in a chart, with its interval."""

    css: str
    title: str
    x: float
    low: float
    value: float
    high: float


def intervals(
    name: str,
    marks: Sequence[Mark],
    *,
    left: Callable[[float], str],
    below: Callable[[float], str],
    from_zero: bool = False,
    limit: float | None = None,
) -> str:
    """Return a dot and a vertical bar for each mark.

    Args:
        name: What the chart shows.
        marks: At least one.
        left: Text for a value beside the chart.
        below: Text for an x below the chart.
        from_zero: Whether the axis beside the chart begins at 0.
        limit: A value to mark across the chart; left out if it is far above all marks.
    """
    height = 220
    top, bottom = max(mark.high for mark in marks), 0.0 if from_zero else min(mark.low for mark in marks)
    if limit is not None and limit <= 2 * top:
        top = max(top, limit)
    room = (top - bottom) * 0.06 or abs(top) * 0.01 or 1.0
    top, bottom = top + room, bottom - room
    first, last = min(mark.x for mark in marks), max(mark.x for mark in marks)
    aside = (last - first) * 0.05 or abs(last) * 0.05 or 1.0
    first, last = first - aside, last + aside

    def down(value: float) -> float:
        return height * (top - value) / (top - bottom)

    def line(css: str, x1: float, y1: float, x2: float, y2: float, inside: str = "") -> str:
        return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}">{inside}</line>'

    ticks = [(down(value), left(value)) for value in _ticks(bottom, top, _TICKS_LEFT)]
    shapes = [line("grid", 0, y, _WIDTH, y) for y, _ in ticks]
    if limit is not None and limit <= top:
        shapes.append(line("limit", 0, down(limit), _WIDTH, down(limit)))
    for mark in marks:
        x = _WIDTH * (mark.x - first) / (last - first)
        title = f"<title>{escape(mark.title)}</title>"
        shapes.append(line(f"range {mark.css}", x, down(mark.high), x, down(mark.low), title))
        shapes.append(line(f"dot {mark.css}", x, down(mark.value), x, down(mark.value), title))
    under = [((value - first) / (last - first), below(value)) for value in _ticks(first, last, _TICKS_BELOW)]
    return _chart(name, height, shapes, left=ticks, below=under)


def short_duration(ns: float) -> str:
    """Return a round duration without trailing zeros: ``2 ms``."""
    for limit, unit in ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")):
        if ns >= limit:
            return f"{ns / limit:g} {unit}"
    return f"{ns:g} ns" if ns else "0"


def _ticks(first: float, last: float, intervals: int) -> Iterator[float]:
    """Yield round numbers from ``first`` to ``last``. Their distance is 1, 2 or 5 times a power of ten."""
    least = (last - first) / intervals or 1.0
    power = 10.0 ** math.floor(math.log10(least))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    for multiple in range(math.ceil(first / distance), math.floor(last / distance) + 1):
        yield multiple * distance


def _chart(name: str, height: int, shapes: Sequence[str], *, left: _Labels, below: _Labels) -> str:
    """Return the drawing with its labels. ``left``: offset from the top in pixels; ``below``: share of the width."""
    apart = -(-len(below) // _NARROW_LABELS)
    beside = "".join(f'<span style="top:{y:.0f}px">{escape(text)}</span>' for y, text in left)
    under = "".join(
        f'<span class="{"thin" if index % apart else ""}" style="left:{100 * share:.2f}%">{escape(text)}</span>'
        for index, (share, text) in enumerate(below)
    )
    return (
        f'<div class="chart keep"><div class="left">{beside}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" preserveAspectRatio="none" style="height:{height}px" role="img" '
        f'aria-label="{escape(name)}">{"".join(shapes)}</svg><div class="below">{under}</div></div>'
    )
