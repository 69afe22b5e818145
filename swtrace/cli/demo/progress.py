"""Progress of the demo: a live table on a terminal, otherwise one line per second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from swtrace import units

if TYPE_CHECKING:
    from rich.console import Console

    from swtrace.cli.summary import SeriesRankSummary, SeriesSummary, Summary

_LINE_EVERY_S = 1.0
_BAR_CELLS = 24


class Progress:
    """Shows the newest summary of an unfinished run."""

    def __init__(self, console: Console) -> None:
        """Show nothing until the first summary."""
        self._console = console
        self._live: Live | None = None
        self._last_line = 0.0

    def show(self, summary: Summary) -> None:
        """Show a summary in place of the last one."""
        if not any(rank.steps for series in summary.series for rank in series.ranks):
            return
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, transient=True, auto_refresh=False)
                self._live.start()
            self._live.update(_table(summary), refresh=True)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            for series in summary.series:
                self._console.print(_line(series), soft_wrap=True)

    def close(self) -> None:
        """Remove the live table from the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _line(series: SeriesSummary) -> str:
    worst = _most_stalled(series)
    return (
        f"{series.name}: step {worst.steps}, "
        f"{units.seconds(worst.step_seconds)} per step, "
        f"stall {units.ratio(worst.stall_ratio)} (rank {worst.rank}), efficiency {units.ratio(worst.efficiency)}, "
        f"on time {units.ratio(worst.on_time_rate)}"
    )


def _most_stalled(series: SeriesSummary) -> SeriesRankSummary:
    return max(series.ranks, key=lambda rank: rank.stall_ratio or 0.0)


def _table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("rank", "step", "step time", "on time", "efficiency", "stall"):
        table.add_column(column, justify="right", style=None, header_style="dim")
    table.add_column("")
    for series in summary.series:
        for rank in series.ranks:
            table.add_row(
                str(rank.rank),
                str(rank.steps),
                units.seconds(rank.step_seconds),
                units.ratio(rank.on_time_rate),
                units.ratio(rank.efficiency),
                units.ratio(rank.stall_ratio),
                _bar(rank.stall_ratio or 0.0),
            )
    return table


def _bar(stall_ratio: float) -> Text:
    """Return a bar of step time, split into stall and the rest."""
    stalled = round(min(1.0, stall_ratio) * _BAR_CELLS)
    return Text.assemble(("━" * stalled, "red"), ("━" * (_BAR_CELLS - stalled), "green"))
