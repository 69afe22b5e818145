"""Stretches of time as cells: rounding removes nothing that matters and adds nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swtrace_tui.canvas import Line, bar, clip, column_chart, sparkline
from swtrace_tui.palette import COLOUR_BLIND, DARK, LEVELS, LIGHT, MONO, Span
from swtrace_tui.views.heat_map import folded, level, nice
from swtrace_tui.views.lanes import covered, rasterised


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 200)), max_size=20), st.integers(1, 40))
def test_coverage_is_what_a_plain_loop_finds(stretches: list[tuple[int, int]], cells: int) -> None:
    """For any stretches, each interval's coverage is the sum of the overlaps."""
    begins = np.array([begin for begin, _ in stretches], np.int64)
    ends = np.array([begin + length for begin, length in stretches], np.int64)
    edges = np.linspace(0, 1000, cells + 1)

    expected = [
        sum(max(0.0, min(right, end) - max(left, begin)) for begin, end in zip(begins, ends, strict=True))
        for left, right in pairwise(edges)
    ]
    assert covered(begins, ends, edges) == pytest.approx(expected, abs=1e-6)


def test_a_stall_of_a_third_of_a_cell_is_seen() -> None:
    """A short stall beside compute still colours its cell; a trace of one does not."""
    compute = (np.array([0]), np.array([100]))

    def first(stall: int) -> Span:
        lane = {Span.COMPUTE: compute, Span.STALL: (np.array([0]), np.array([stall]))}
        return rasterised([lane], 0, 100, 10)[0]

    assert first(4) is Span.STALL
    assert first(1) is Span.COMPUTE


def test_outside_the_step_nothing_is_shown() -> None:
    """Cells before the begin and after the end of a rank's step are empty, so that a late rank is visible."""
    lane = {Span.COMPUTE: (np.array([40]), np.array([60]))}

    kinds = rasterised([lane], 0, 100, 10)

    assert kinds == [Span.OUTSIDE] * 4 + [Span.COMPUTE] * 2 + [Span.OUTSIDE] * 4


def test_levels_are_logarithmic_and_on_time_is_the_lowest() -> None:
    """On-time values have level 0, the top of the scale has the highest level, and the scale is logarithmic."""
    shown = np.array([0.0, 19_999.0, 20_000.0, 200_000.0, 2_000_000.0, 9e9])

    levels = level(shown, 2_000_000.0).tolist()

    assert levels[:2] == [0, 0]
    assert levels[4] == levels[5] == LEVELS - 1
    assert levels[3] - levels[2] == pytest.approx(levels[4] - levels[3], abs=1)


def test_folded_columns_show_the_worst_and_own_only_if_all_are() -> None:
    """With more layers than columns, a column shows its hottest layer."""
    cells = np.array([[1, 5, 16, 2, 16, 16, 3]])

    assert folded(cells, 2, own=16).tolist() == [[5, 2, 16, 3]]


@given(st.floats(1, 1e12))
def test_scales_end_on_round_numbers(value: float) -> None:
    """The top of a scale is 1, 2 or 5 times a power of ten, not below the value and not far above it."""
    top = nice(value)

    assert value <= top * (1 + 1e-9)
    assert top <= 2.5 * value * (1 + 1e-9)


@given(st.text(max_size=30), st.integers(1, 20))
def test_lines_are_never_wider_than_told(text: str, width: int) -> None:
    """Whatever is put into a line, its strip has exactly the line's width."""
    style = DARK.style(DARK.text)
    clean = "".join(character for character in text if character.isprintable())

    strip = Line(width).put(clean, style).field(clean, 7, style).strip(style)

    assert strip.cell_length == width
    assert len(clip("x" * 30, width)) == width


def test_small_values_never_vanish_from_charts() -> None:
    """A value above 0 has at least the smallest mark in bars, sparklines and columns."""
    assert bar(1e-6, 6) == "╸"
    assert sparkline([0.0, 1e-6, 1.0], 3, 1.0) == " ▁▇"
    assert column_chart([0.0, 1e-6, 1.0], 2, 1.0) == ["  █", " ▁█"]


@pytest.mark.parametrize("palette", [DARK, LIGHT, COLOUR_BLIND], ids=lambda palette: palette.name)
def test_ramps_go_one_way_in_lightness(palette: object) -> None:
    """Within a ramp, higher values are always lighter (or always darker), so that hue is not needed to read it."""
    chosen = next(each for each in (DARK, LIGHT, COLOUR_BLIND) if each is palette)
    for metric in chosen.ramps:
        light = [
            0.299 * int(colour[1:3], 16) + 0.587 * int(colour[3:5], 16) + 0.114 * int(colour[5:7], 16)
            for colour in chosen.ramp(metric)
        ]
        steps = np.diff(light)
        assert (steps > 0).all() or (steps < 0).all(), metric


def test_without_colour_every_kind_has_its_own_glyph() -> None:
    """The palette without colour has a different glyph for each kind of stretch and each level of heat."""
    lanes = {MONO.lane_segments[kind][kind].text for kind in Span}
    heat = [segment.text for segment in MONO.heat_segments("stall", 1)]

    assert len(lanes) == len(Span)
    assert len(set(heat)) >= LEVELS - 1
