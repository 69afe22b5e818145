"""Lines and charts of cells: never wider than asked for, and no small value vanishes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from swtrace_tui.canvas import Line, bar, clip, column_chart, sparkline, wrap
from swtrace_tui.palette import DARK


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


def test_a_sentence_that_is_cut_says_so() -> None:
    """The last line that has room ends with an ellipsis after a whole word, and no line is too wide."""
    rows = wrap("one two three four five six seven eight nine ten", 12, indent=5, most=2)
    assert len(rows) == 2
    assert rows[-1].endswith(" …")
    assert "one two three four five six seven eight nine ten".startswith(" ".join(rows)[:-2])
    assert wrap("it ended 9.14 ms after issue", 16, most=1) == ["it ended …"]
    assert len(rows[0]) <= 7
    assert len(rows[1]) <= 12
