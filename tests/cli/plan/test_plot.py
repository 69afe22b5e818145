"""The plot shows every interval at its place, and an axis that can be read."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from swtrace.cli.plan.plot import HIGH, LIMIT, LINE, LOW, POINT, Axis, plot
from swtrace.ledger.planning.prediction import Interval


@st.composite
def intervals(draw: st.DrawFn) -> list[Interval]:
    """Return intervals of step times from 1 us to 100 s."""
    scale = draw(st.sampled_from((1e3, 1e6, 1e9)))
    rows = draw(st.lists(st.lists(st.floats(1, 100), min_size=3, max_size=3).map(sorted), min_size=1, max_size=8))
    return [Interval(scale * value, scale * low, scale * high) for low, value, high in rows]


@given(rows=intervals(), columns=st.integers(12, 70), from_zero=st.booleans())
def test_every_interval_is_drawn_to_scale(rows: list[Interval], columns: int, from_zero: bool) -> None:  # noqa: FBT001
    """Each row has its point within its interval, in the order of the values, and the axis is as wide as the rows."""
    axis = Axis.over("step time", rows, columns, factor=1e6, from_zero=from_zero)
    drawn = [axis.row(each) for each in rows]
    line, labels = axis.scale()
    assert {len(text) for text in (*drawn, line)} == {columns}
    assert len(labels) == columns
    assert all(
        low <= row.index(POINT) for row, low in zip(drawn, (axis.column(each.low) for each in rows), strict=True)
    )
    by_value = sorted(zip(rows, drawn, strict=True), key=lambda pair: pair[0].value)
    points = [row.index(POINT) for _, row in by_value]
    assert points == sorted(points)


def test_the_axis_names_round_values_where_they_are() -> None:
    """A label stands at its value, and two neighbours differ by a round distance."""
    axis = Axis.over("step time, ms", [Interval(65e6, 60e6, 90e6)], 41, factor=1e6)
    line, labels = axis.scale()
    found = {int(match[0]): match.start() for match in re.finditer(r"\d+", labels)}
    assert list(found) == [60, 70, 80, 90]
    assert [axis.column(value * 1e6) for value in found] == [0, 13, 27, 40]
    assert [line[axis.column(value * 1e6)] for value in (70, 80)] == ["┴", "┴"]
    assert axis.row(Interval(70e6, 65e6, 80e6)).strip() == f"{LOW}{5 * LINE}{POINT}{13 * LINE}{HIGH}"


def test_a_limit_that_is_far_above_all_is_not_drawn() -> None:
    """A limit far above every prediction is left out, so that it does not squeeze them to one column."""
    rows = [Interval(0.01, 0.005, 0.02)]
    near, far = (Axis.over("stall", rows, 40, factor=0.01, from_zero=True, limit=limit) for limit in (0.03, 0.5))
    assert LIMIT in near.row(None)
    assert LIMIT not in far.row(None)
    assert far.row(rows[0]).index(POINT) > 5


def test_two_axes_stand_side_by_side() -> None:
    """Labels, both rows and both axes are in the same columns of every line."""
    axis = Axis.over("a", [Interval(2, 1, 3)], 20, factor=1)
    lines = plot(
        "heading", ["x", "a longer label"], (axis, [Interval(2, 1, 3), None]), (axis, [None, Interval(2, 1, 3)])
    )
    assert [line.index(POINT) - len("a longer label") for line in lines[1:3]] == [2 + 10, 2 + 20 + 2 + 10]
