"""Predictions as lines of text: one row each, with step time and stall on two axes, and the interval of both.

Symbols carry the meaning, not colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swtrace.ledger.planning.prediction import Interval

POINT, LOW, HIGH, LINE, LIMIT = "●", "├", "┤", "─", "┊"
_BASE, _TICK, _LEFT, _RIGHT = "─", "┴", "└", "┘"
_TICKS = 5
_ROUNDING = 1e-9
_LEAST_COLUMNS = 12


@dataclass(frozen=True, slots=True)
class Axis:
    """A horizontal axis of ``columns`` characters from ``low`` to ``high``."""

    title: str
    low: float
    high: float
    columns: int
    label: Callable[[float], str]
    """Of a value on the axis, without its unit."""
    limit: float | None = None
    """A value to mark in every row."""

    @classmethod
    def over(
        cls,
        title: str,
        intervals: Sequence[Interval],
        columns: int,
        *,
        factor: float,
        from_zero: bool = False,
        limit: float | None = None,
    ) -> Axis:
        """Return an axis that covers all intervals, with labels in units of ``factor``."""
        low = 0.0 if from_zero else min(each.low for each in intervals)
        high = max(each.high for each in intervals)
        if limit is not None:
            high = max(high, min(limit, 2 * high) if high else limit)
        if high - low <= _ROUNDING * abs(high):
            high = low + max(abs(low) * 0.01, factor)
        step = round_distance((high - low) / _TICKS)
        digits = max(0, -math.floor(math.log10(step / factor) + 1e-9))
        return cls(title, low, high, max(_LEAST_COLUMNS, columns), lambda value: f"{value / factor:.{digits}f}", limit)

    def column(self, value: float) -> int:
        """Return the column of a value."""
        share = (value - self.low) / (self.high - self.low)
        return min(self.columns - 1, max(0, round(share * (self.columns - 1))))

    def row(self, interval: Interval | None) -> str:
        """Return the row of one prediction."""
        cells = [" "] * self.columns
        if self.limit is not None and self.limit <= self.high:
            cells[self.column(self.limit)] = LIMIT
        if interval is None:
            return "".join(cells)
        low, high = self.column(interval.low), self.column(interval.high)
        for column in range(low, high + 1):
            cells[column] = LINE
        if low < high:
            cells[low], cells[high] = LOW, HIGH
        cells[self.column(interval.value)] = POINT
        return "".join(cells)

    def scale(self) -> tuple[str, str]:
        """Return the axis and its labels."""
        step = round_distance((self.high - self.low) / _TICKS)
        line, labels = [_BASE] * self.columns, [" "] * self.columns
        line[0], line[-1] = _LEFT, _RIGHT
        end = -1
        for tick in range(math.ceil(self.low / step - _ROUNDING), math.floor(self.high / step + _ROUNDING) + 1):
            value = tick * step
            column, text = self.column(value), self.label(value)
            line[column] = _TICK
            first = max(0, min(self.columns - len(text), column - len(text) // 2))
            if first > end + 1 or end < 0:
                labels[first : first + len(text)] = text
                end = first + len(text) - 1
        return "".join(line), "".join(labels)


_Rows = tuple[Axis, Sequence[Interval | None]]
"""An axis, and an interval for each row."""


def plot(heading: str, labels: Sequence[str], left: _Rows, right: _Rows) -> list[str]:
    """Return the lines of a plot with two axes side by side, and a label for each row."""
    width = max(map(len, (heading, *labels)))
    (one, ones), (other, others) = left, right
    rows = [f"{heading:{width}}  {one.title:{one.columns}}  {other.title}"]
    rows += [
        f"{label:{width}}  {one.row(first)}  {other.row(second)}"
        for label, first, second in zip(labels, ones, others, strict=True)
    ]
    rows += [f"{'':{width}}  {first}  {second}" for first, second in zip(one.scale(), other.scale(), strict=True)]
    return [row.rstrip() for row in rows]


def round_distance(least: float) -> float:
    """Return the smallest of 1, 2 or 5 times a power of ten that is at least this."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
