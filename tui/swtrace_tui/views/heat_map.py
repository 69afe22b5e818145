"""Heat map: ranks by layers, coloured by stall, slack, transfer or skew. Only changed rows are drawn."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.strip import Strip

from swtrace import units
from swtrace.ledger.facts import CAUSES, Cause, StepFacts
from swtrace.ledger.readers import readers
from swtrace.trace.schema import NO_WINDOW, Observed, TransferFlag
from swtrace.units import counted
from swtrace_tui.actions import HEAT_MAP
from swtrace_tui.canvas import Line, bar, column_chart, sparkline, wrap
from swtrace_tui.palette import DARK_BELOW, LEVELS, RAMP_GLYPHS, Palette, luminance
from swtrace_tui.picture import SeriesView
from swtrace_tui.views.hosts import entries, heading, scrolled_to, visible
from swtrace_tui.views.view import Scene, View

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
_Cell = TypeVar("_Cell", np.int64, np.float64)

_SKEWS = [CAUSES.index(Cause.ENTRY_SKEW), CAUSES.index(Cause.SKEW)]
_FLOOR_NS = 20_000.0
"""Values below this share one colour: a wait that stalls less is on time."""
_OWN = LEVELS
"""Level of a cell without a wait: the rank keeps the layer."""
_LABEL = 9
_MARGIN = 19
_PROFILE = 12
_TALLEST = 12
"""The most lines that a rank takes."""
_SMALL = 16
"""Lines below which words and charts give way to the map."""
_NARROW = 60
"""Columns below which the legend is brief."""
_NICE = (1, 2, 5)
_INSTANTS = ("ready_ns", "wait_begin_ns", "wait_end_ns")


@dataclass(frozen=True, slots=True)
class CellMetric:
    """A quantity that cells can be coloured by."""

    name: str
    about: str
    of: Callable[..., Counts]
    """Its values in a step; with ``[group rank, position]`` as the second argument, that cell's value."""
    counts: Callable[[StepFacts], npt.NDArray[np.bool_]] = attrgetter("receiver")
    """Returns which cells of a step have one."""


METRICS: tuple[CellMetric, ...] = (
    CellMetric("stall", "time that a wait was blocked for its weight", lambda step, at=...: step.stall_ns[at]),
    CellMetric("slack", "how early the weight was ready", lambda step, at=...: step.slack_ns[at]),
    CellMetric("transfer", "time that the weight moved on the channel", lambda step, at=...: step.transfer_ns[at]),
    CellMetric(
        "skew",
        "part of the stall because a peer issued or entered later",
        lambda step, at=...: sum(step.cause_ns[cause][at] for cause in _SKEWS),
    ),
)
COMPUTE = CellMetric(
    "compute",
    "time from a layer's reach to the next one's",
    lambda step, at=...: step.layer_ns[at],
    lambda step: np.asarray(step.layer_ns > 0, np.bool_),
)
SPANS = ("mean", "worst", "last")


def metrics_of(series: SeriesView) -> tuple[CellMetric, ...]:
    """Return what the cells of a series can be coloured by. In a pull series, no rank waits for another."""
    if not series.facts.shared:
        return (COMPUTE,)
    return METRICS if series.facts.lockstep else tuple(metric for metric in METRICS if metric.name != "skew")


class StepSums:
    """A metric summed over the last steps, updated by the steps that came or went between two frames."""

    def __init__(self) -> None:
        self._metric: CellMetric | None = None
        self._steps: tuple[StepFacts, ...] = ()
        self._total: Counts = np.zeros((0, 0), np.int64)
        self._waits = self._total

    def over(self, steps: tuple[StepFacts, ...], metric: CellMetric) -> tuple[Counts, Counts]:
        """Return the sum over all receivers' waits, and their number, ``[group rank, position]``."""
        known, wanted = set(map(id, self._steps)), set(map(id, steps))
        if metric is not self._metric or known.isdisjoint(wanted):
            shape = steps[0].receiver.shape
            self._total, self._waits = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
            self._metric, self._steps, known = metric, (), set()
        for sign, changed in (
            (-1, [step for step in self._steps if id(step) not in wanted]),
            (1, [step for step in steps if id(step) not in known]),
        ):
            for step in changed:
                counts = metric.counts(step)
                self._total += sign * np.where(counts, metric.of(step), 0)
                self._waits += sign * counts.astype(np.int64)
        self._steps = steps
        return self._total, self._waits


class _Runs(dict[tuple[int, int], Segment]):
    """Runs of equal cells as one segment each, by code and length; built when first drawn."""

    def __init__(self, cells: Sequence[Segment]) -> None:
        super().__init__()
        self._cells = cells

    def __missing__(self, run: tuple[int, int]) -> Segment:
        text, style, _ = self._cells[run[0]]
        made = self[run] = Segment(text * run[1], style)
        return made


class Look(NamedTuple):
    """The parameters that all rows of a map share."""

    palette: Palette
    metric: str
    wide: int
    paired: bool
    """Whether each line shows two ranks: a code is the upper level times the number of levels, plus the lower level."""
    width: int


class HeatMap(View, view=HEAT_MAP):
    """Ranks by layers of one series."""

    def __init__(self) -> None:
        super().__init__()
        self._metric = 0
        self._span = 0
        self._ramp: tuple[str, ...] = ()
        """The colours of the metric that is shown."""
        self._cursor = (0, 0)
        """Row among the ranks shown, and position."""
        self._untouched = True
        """Whether the cursor was not moved: it then follows the worst cell."""
        self._top_row = 0
        self._scale = _FLOOR_NS
        self._sums = StepSums()
        self._values: Values = np.zeros((0, 0))
        self._origin = (_LABEL, 2)
        self._wide, self._fold, self._tall, self._paired, self._headed = 1, 1, 1, False, False
        self._lines: list[int | None] = []
        """By line of the map: the row that it shows first; None for a heading."""

    # -- drawing -------------------------------------------------------------------------------------

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Draw the legend, the map, the profile and the description of the selected cell."""
        series, palette = scene.picture.focus, scene.palette
        if series is None:
            return []
        ranks = [row.group_rank for row in series.rows]
        metrics = metrics_of(series)
        self._metric %= len(metrics)
        metric = metrics[self._metric]
        self._ramp = palette.ramp(metric.name)
        self._values, waited = values(series, metric, SPANS[self._span], self._sums)
        if self._untouched:
            self._cursor = _argmax(self._values[ranks])
        self._cursor = (min(self._cursor[0], len(ranks) - 1), min(self._cursor[1], series.layers - 1))
        small = height < _SMALL
        rows = len(ranks) + len(series.hosts)
        most = max(height // 4 if small else height // 3, height - rows - (3 if small else 6))
        explained = self._explain(scene, series, ranks, width, min(10, most))
        gap = 0 if small else 1
        self._fit(width, height - len(explained) - 3 - gap, series, palette)
        self._rescale(float(self._values[ranks].max(initial=0.0)))
        levels = np.where(waited, level(self._values, self._scale), _OWN)[ranks]
        values_shown = self._values[ranks]
        means = row_means(values_shown, waited[ranks])
        if self._fold > 1:
            levels, values_shown = folded(levels, self._fold, own=_OWN), folded(values_shown, self._fold, own=None)
        lines = [self._legend(metric, series, width, palette), self._axis(series, width, palette)]
        self._origin = (_LABEL, len(lines))
        room = height - len(lines) - len(explained) - 1 - gap
        lines += self._map(levels, means, series, width, room, palette)
        left = height - len(lines) - len(explained) - gap
        lines += self._profile(values_shown, levels, width, max(1, min(_PROFILE, left)), palette)
        lines += [Line(width).strip(palette.style(palette.text))] * gap
        return lines + explained

    def _fit(self, width: int, height: int, series: SeriesView, palette: Palette) -> None:
        ranks, layers, hosts = len(series.rows), series.layers, len(series.hosts)
        # Headings that would push ranks off the screen are left out.
        self._headed = hosts > 0 and not ranks <= height < ranks + hosts
        height -= hosts * self._headed
        margin = _MARGIN if width >= 120 else 0  # noqa: PLR2004 - enough room
        room = max(8, width - _LABEL - margin - 1)
        self._fold = -(-layers // room)
        self._wide = max(1, min(8, room // -(-layers // self._fold)))
        self._paired = ranks > height and not palette.mono
        self._tall = max(1, min(_TALLEST, (height - _PROFILE) // max(1, ranks)))

    def _rescale(self, most: float) -> None:
        """Grow the scale at once and shrink it late, so that colours stay steady."""
        top = nice(max(most, _FLOOR_NS * 5))
        if top > self._scale or top < 0.3 * self._scale:
            self._scale = top

    def _map(
        self,
        levels: npt.NDArray[np.int64],
        means: Values,
        series: SeriesView,
        width: int,
        room: int,
        palette: Palette,
    ) -> list[Strip]:
        listed = entries(series.rows, series.hosts if self._headed else (), 2 if self._paired else 1)
        firsts = np.cumsum([0, *(len(entry.rows) for entry in listed)]).tolist()
        at = next(i for i, first in enumerate(firsts[1:]) if self._cursor[0] < first)
        shown = max(1, room) if self._tall == 1 else len(listed)
        self._top_row = scrolled_to(at, self._top_row, shown, listed)
        look = Look(palette, metrics_of(series)[self._metric].name, self._wide, self._paired, width)
        top = float(means.max(initial=0.0))
        lines: list[Strip] = []
        self._lines = []
        for entry, begin in zip(visible(listed, self._top_row, shown), firsts[self._top_row :], strict=False):
            if entry.host is not None and not entry.rows:
                lines.append(heading(entry.host, width, palette))
                self._lines.append(None)
                continue
            end = begin + len(entry.rows)
            codes = levels[begin]
            if self._paired:
                codes = codes * (_OWN + 1) + (levels[begin + 1] if len(entry.rows) > 1 else _OWN)
            row = codes.astype(np.uint16).tobytes()
            selected = begin <= self._cursor[0] < end
            cursor = (self._cursor[1] // self._fold, self._cursor[0] == begin) if selected else None
            mean = float(means[begin:end].max())
            margin = (units.duration(mean), bar(mean / top if top else 0.0, 8))
            lines.append(map_line(look, row, str(entry.rows[0].rank), cursor, margin))
            lines += [map_line(look, row, "", None, None)] * (self._tall - 1)
            self._lines += [begin] * self._tall
        return lines[:room]

    def _legend(self, metric: CellMetric, series: SeriesView, width: int, palette: Palette) -> Strip:
        dim, plain = palette.style(palette.dim), palette.style(palette.text)
        line = Line(width).put(f" {metric.name}: ", palette.style(palette.text, bold=True))
        brief = width < _NARROW
        steps, last = counted(len(series.steps), "step"), "last step"
        if series.facts.apart:
            steps, last = f"each rank's last {counted(series.facts.steps, 'step')}", "each rank's last step"
        elif series.steps:
            last = f"step {series.steps[-1].step}"
        over = {"mean": f"mean of {steps}", "worst": f"worst of {steps}", "last": last}
        line.put(f"{SPANS[self._span] if brief else over[SPANS[self._span]]}  ", plain)
        line.put(f"≤{units.duration(_FLOOR_NS)} ", dim)
        ramp = palette.ramp(metric.name)
        for i, colour in list(enumerate(ramp))[:: 2 if brief else 1]:
            if palette.mono:
                line.put(RAMP_GLYPHS[i], plain)
            else:
                line.put("▄", palette.style(colour))
        line.put(f" {units.duration(self._scale)}", dim)
        own = series.facts.terms.own if series.facts.shared else ""
        own = own and f"  · {own}"
        if line.room > len(own):
            line.put(own, dim)
        for note in (f"a column shows the worst of {self._fold} layers" if self._fold > 1 else "", metric.about):
            if note and line.room > len(note) + 2:
                line.put(f"  {note}", dim)
        return line.strip(plain)

    def _axis(self, series: SeriesView, width: int, palette: Palette) -> Strip:
        dim = palette.style(palette.dim)
        line = Line(width).field("layer ", _LABEL, dim, right=True)
        every = max(1, -(-6 // self._wide))
        for position in range(0, series.layers, every * self._fold):
            line.field(str(series.layer(position)), every * self._wide, dim)
        line.to(_LABEL + -(-series.layers // self._fold) * self._wide, dim)
        if line.room >= _MARGIN:
            line.field("worse mean" if self._paired else "row mean", 10, dim, right=True)
        return line.strip(dim)

    def _profile(
        self, shown: Values, levels: npt.NDArray[np.int64], width: int, height: int, palette: Palette
    ) -> list[Strip]:
        """Draw each column's mean below the map."""
        waited = levels < _OWN
        mean = np.where(waited, shown, 0.0).sum(axis=0) / np.maximum(1, waited.sum(axis=0))
        top = float(mean.max(initial=0.0))
        colour = palette.text if palette.mono else self._ramp[10]
        plain, dim = palette.style(palette.text), palette.style(palette.dim)
        lines = []
        labels = {0: "mean "} if height == 1 else {0: f"{units.duration(top)} ", 1: "mean ", height - 1: "0 "}
        for i, row in enumerate(column_chart(np.repeat(mean, self._wide).tolist(), height, top)):
            line = Line(width).field(labels.get(i, ""), _LABEL, dim, right=True)
            lines.append(line.blocks(row, palette.style(colour), solid=not palette.mono).strip(plain))
        return lines

    # -- the cell under the cursor ---------------------------------------------------------------------

    def _explain(self, scene: Scene, series: SeriesView, ranks: list[int], width: int, most: int) -> list[Strip]:
        palette = scene.palette
        plain = palette.style(palette.text)
        group_rank, position = ranks[self._cursor[0]], self._cursor[1]
        title, *sentences = explanation(series, group_rank, position)
        line = Line(width).put(f" {title}  ", palette.style(palette.note, bold=True))
        steps = [step for step in series.steps if step.of_rank in {None, group_rank}]
        past = [float(metrics_of(series)[self._metric].of(step, (group_rank, position))) for step in steps]
        if any(past) and line.room > 20:  # noqa: PLR2004 - room for some steps
            shown = min(len(past), line.room - 1)
            line.put(sparkline(past, shown, max(past)), palette.style(self._ramp[11]))
        lines = [line.strip(plain)]
        for sentence in sentences:
            rows = wrap(sentence, width - 2, most=most - len(lines)) if len(lines) < most else []
            lines += [Line(width).put(f" {row}", plain).strip(plain) for row in rows]
        return lines

    # -- keys and mouse --------------------------------------------------------------------------------

    def action_metric(self, by: int) -> None:
        """Colour by the next metric."""
        series = self.focus_series
        self._metric = (self._metric + by) % len(METRICS if series is None else metrics_of(series))
        self._scale = _FLOOR_NS
        self.redraw()

    def action_span(self, by: int) -> None:
        """Show the mean or the worst of the steps, or the last step."""
        self._span = (self._span + by) % len(SPANS)
        self._scale = _FLOOR_NS
        self.redraw()

    def action_move(self, down: int, right: int) -> None:
        """Move the cursor."""
        series = self.focus_series
        if series is not None and series.rows:
            row, position = self._cursor
            right = right * self._fold if abs(right) == 1 else right
            self._untouched = False
            self._cursor = (
                max(0, min(len(series.rows) - 1, row + down)),
                max(0, min(series.layers - 1, position + right)),
            )
            self.redraw()

    def action_worst(self) -> None:
        """Move to the cell with the highest value."""
        series = self.focus_series
        if series is not None and series.rows and self._values.size:
            self._untouched = True
            self.redraw()

    def action_open(self) -> None:
        """Show the cell in the timeline."""
        series = self.focus_series
        if series is not None and series.rows:
            self.post_message(self.Open(rank=series.rows[self._cursor[0]].rank, position=self._cursor[1]))

    def on_click(self, event: events.Click) -> None:
        """Select a cell; open it on a second click."""
        cell = self._cell_at(event.x, event.y)
        if cell is None:
            return
        if cell == self._cursor:
            self.action_open()
        else:
            self._cursor, self._untouched = cell, False
            self.redraw()

    def on_mouse_scroll_down(self, _event: events.MouseScrollDown) -> None:
        """Move down."""
        self.action_move(1, 0)

    def on_mouse_scroll_up(self, _event: events.MouseScrollUp) -> None:
        """Move up."""
        self.action_move(-1, 0)

    def _cell_at(self, x: int, y: int) -> tuple[int, int] | None:
        series = self.focus_series
        left, top = self._origin
        if series is None or x < left or y < top:
            return None
        row = self._lines[y - top] if y - top < len(self._lines) else None
        position = (x - left) // self._wide * self._fold
        if row is None or row >= len(series.rows) or position >= series.layers:
            return None
        return row, position


@lru_cache(maxsize=16)
def _runs(palette: Palette, metric: str, wide: int, paired: bool) -> _Runs:  # noqa: FBT001 - a key of a cache
    if paired:
        return _Runs([cell for row in palette.heat_pairs(metric, wide) for cell in row])
    own = Segment("·".center(wide), palette.style(palette.dim, on=palette.background))
    return _Runs([*palette.heat_segments(metric, wide), own])


@lru_cache(maxsize=512)
def map_line(
    look: Look, codes: bytes, name: str, cursor: tuple[int, bool] | None, margin: tuple[str, str] | None
) -> Strip:
    """Return a line of the map; equal arguments return the same strip.

    Args:
        look: What all lines share.
        codes: The code of each column, as 16-bit numbers.
        name: Name of the line's first rank; empty to repeat a rank.
        cursor: The selected column, and whether its upper rank is selected.
        margin: Mean and its bar, drawn if there is room.
    """
    palette = look.palette
    dim, plain = palette.style(palette.dim), palette.style(palette.text)
    row = np.frombuffer(codes, np.uint16)
    parted = row[1:] != row[:-1]
    if cursor is not None:
        parted[max(0, cursor[0] - 1) : cursor[0] + 1] = True
    inner = (np.flatnonzero(parted) + 1).tolist()
    starts, ends = [0, *inner], [*inner, len(row)]
    runs = _runs(palette, look.metric, look.wide, look.paired)
    lengths = map(operator.sub, ends, starts)
    cells = [runs[run] for run in zip(row[starts].tolist(), lengths, strict=True)]
    if cursor is not None:
        at = starts.index(cursor[0])
        cells[at] = _cursor_cell(cells[at], look, upper_half=cursor[1])
    label = palette.style(palette.text, bold=True) if cursor is not None else dim
    line = (
        Line(look.width).field(name and f"rank {name} ", _LABEL, label, right=True).cells(cells, len(row) * look.wide)
    )
    if margin is not None and line.room >= _MARGIN:
        line.put("  ", plain).field(margin[0], 8, plain, right=True).put(" ", plain).put(margin[1], dim)
    return line.strip(plain)


def _cursor_cell(cell: Segment, look: Look, *, upper_half: bool) -> Segment:
    mark = "▣" if look.wide == 1 else "[" + " " * (look.wide - 2) + "]"
    if look.paired:
        mark = ("▀" if upper_half else "▄") * look.wide
    background = cell.style.bgcolor if cell.style is not None else None
    colour = look.palette.cursor[background is not None and luminance(background) >= DARK_BELOW]
    return Segment(mark, Style(color=colour, bgcolor=background, bold=True))


def _argmax(shown: Values) -> tuple[int, int]:
    if not shown.size:
        return 0, 0
    row, position = np.unravel_index(int(shown.argmax()), shown.shape)
    return int(row), int(position)


def values(
    series: SeriesView, metric: CellMetric, span: str, sums: StepSums | None = None
) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Return ``[group rank, position]`` values in ns, and which cells are receivers' waits."""
    shape = (len(series.key.group_ranks), series.layers)
    if not series.steps:
        return np.zeros(shape), np.zeros(shape, np.bool_)
    if span == "worst":
        waited = np.any([metric.counts(step) for step in series.steps], axis=0)
        worst = np.max([np.where(metric.counts(step), metric.of(step), 0) for step in series.steps], axis=0)
        return worst.astype(np.float64), waited
    steps = last_steps(series) if span == "last" else series.steps
    total, waits = (sums or StepSums()).over(steps, metric)
    return total / np.maximum(1, waits), waits > 0


def last_steps(series: SeriesView) -> tuple[StepFacts, ...]:
    """Return the last step; of a pull series, the last step of each rank."""
    return tuple({step.of_rank: step for step in series.steps}.values())


def row_means(shown: Values, waited: npt.NDArray[np.bool_]) -> Values:
    """Return the mean of each row over its waits, without the layers that the rank keeps."""
    return np.asarray(np.where(waited, shown, 0.0).sum(axis=1) / np.maximum(1, waited.sum(axis=1)), np.float64)


def level(shown: Values, top: float) -> npt.NDArray[np.int64]:
    """Return each value's level on the ramp: logarithmic from the floor to ``top``, 0 below the floor."""
    with np.errstate(divide="ignore"):
        share = np.log(np.maximum(shown, 1.0) / _FLOOR_NS) / np.log(max(top / _FLOOR_NS, 1.001))
    steps = 1 + np.floor(share * (LEVELS - 1))
    return np.where(shown < _FLOOR_NS, 0, np.clip(steps, 1, LEVELS - 1)).astype(np.int64)


def folded(cells: npt.NDArray[_Cell], fold: int, *, own: int | None) -> npt.NDArray[_Cell]:
    """Return the worst of each ``fold`` columns; the result is an own cell only where all of them are."""
    columns = -(-cells.shape[1] // fold)
    padded = np.full((cells.shape[0], columns * fold), -1 if own is not None else 0, cells.dtype)
    padded[:, : cells.shape[1]] = cells if own is None else np.where(cells == own, -1, cells)
    worst: npt.NDArray[_Cell] = padded.reshape(cells.shape[0], columns, fold).max(axis=2)
    return worst if own is None else np.where(worst < 0, own, worst).astype(cells.dtype)


def nice(value: float) -> float:
    """Return the lowest of 1, 2, 5, 10, ... that is at least ``value``."""
    magnitude = 10.0 ** np.floor(np.log10(max(value, 1.0)))
    return float(next((each * magnitude for each in _NICE if each * magnitude >= value), 10 * magnitude))


def explanation(series: SeriesView, group_rank: int, position: int) -> list[str]:
    """Return a title, then sentences about one rank's waits for one layer."""
    name = series.rank_name(group_rank, "Rank")
    layer = series.layer(position)
    steps = [step for step in series.steps if step.present[group_rank, position]]
    if not series.facts.shared:
        return [f"{name}, layer {layer}", *_observed(steps, group_rank, position)]
    info = series.facts.ranks[0].info
    source, words = info.source(position), info.terms
    if source == group_rank and words.own:
        return [
            f"{name}, layer {layer}",
            "Its own layer: the rank reads its own copy, waits for nothing, and broadcasts it to the others."
            if series.facts.lockstep
            else "Its own layer: the rank reads it where it is, and waits for nothing. The others copy it from there.",
        ]
    title = f"{name}, layer {layer}, from {series.rank_name(source) if words.own else words.source}"
    waits = [step for step in steps if step.receiver[group_rank, position]]
    if not waits:
        return [title, f"The rank waited for no {series.facts.terms.move} of this layer in these steps."]
    cell = (group_rank, position)
    stalls = np.array([int(step.stall_ns[cell]) for step in waits])
    slack = np.array([int(step.slack_ns[cell]) for step in waits])
    transfer = [int(step.transfer_ns[cell]) for step in waits if step.attributed[cell]]
    on_time = sum(bool(step.on_time[cell]) for step in waits)
    over = (
        f"Last {counted(len(waits), 'step')}: on time in {on_time}; stall {units.duration(float(stalls.mean()))} mean, "
        f"{units.duration(float(stalls.max()))} worst; mean slack "
        f"{units.duration(float(slack.mean()))}; mean transfer "
        f"{units.duration(float(np.mean(transfer)) if transfer else None)}."
    )
    sentences = [over, *_crowds(series, waits, group_rank, position)]
    cause = np.sum([step.cause_ns[:, group_rank, position] for step in waits], axis=0)
    if cause.any():
        parts = sorted(
            ((int(ns), str(name)) for ns, name in zip(cause.tolist(), CAUSES, strict=True) if ns), reverse=True
        )
        split = ", ".join(f"{units.words(name)} {100 * ns / int(cause.sum()):.0f} %" for ns, name in parts)
        skewed = [step for step in waits if step.cause_ns[_SKEWS, group_rank, position].any()]
        late = [int(step.late_rank[cell]) for step in skewed if step.late_rank[cell] >= 0]
        latest = series.rank_name(max(set(late), key=late.count)) if late else ""
        named = f" The rank waits most often for {latest} to issue." if latest else ""
        sentences.append(f"Stall by cause: {split}.{named}")
    sentences.append(_last(series, waits[-1], group_rank, position))
    return [title, *sentences]


def _observed(steps: Sequence[StepFacts], group_rank: int, position: int) -> list[str]:
    """Return how long a rank's layer takes, and when its linear begins."""
    took = np.array([int(step.layer_ns[group_rank, position]) for step in steps])
    begin = np.array([int(step.wait_begin_ns[group_rank, position]) for step in steps])
    reached = np.array([int(step.issued_ns[group_rank, position]) for step in steps])
    sentences = []
    if (known := took[took > 0]).size:
        sentences.append(
            f"Last {counted(known.size, 'step')}: from its reach to the next layer's "
            f"{units.duration(float(known.mean()))} mean, {units.duration(float(known.max()))} worst."
        )
    if (called := begin > 0).any():
        sentences.append(
            f"Its linear begins {units.duration(float((begin - reached)[called].mean()))} after it (mean)."
        )
    return sentences or ["Nothing is known of this layer in these steps."]


def _crowds(series: SeriesView, waits: Sequence[StepFacts], group_rank: int, position: int) -> list[str]:
    """Return how long a rank's copies of a layer take by the number of ranks that read from its owner at once."""
    known = readers(series.facts, series.steps)
    moved = [step for step in waits if step.attributed[group_rank, position]]
    if known is None or not moved or not series.facts.terms.own:
        return []
    ready = np.array([step.ready_ns[group_rank, position] for step in moved], np.int64)
    took = np.array([step.transfer_ns[group_rank, position] for step in moved], np.int64)
    owner = int(moved[-1].source[position])
    counts = known.during(group_rank, owner, ready - took, ready)
    parts = [
        f"{units.duration(float(took[counts == count].mean()))} "
        f"{'alone' if count == 1 else f'while {count} ranks read'} ({counted(int((counts == count).sum()), 'time')})"
        for count in np.unique(counts[counts > 0]).tolist()
    ]
    return [f"Transfer by ranks that read from {series.rank_name(owner)} at once: {', '.join(parts)}."] if parts else []


def _last(series: SeriesView, step: StepFacts, group_rank: int, position: int) -> str:
    """Return the last step's ready, wait begin and wait end, relative to issued, in words."""
    cell = (group_rank, position)
    issued = int(step.issued_ns[cell])
    flags = int(step.flags[cell])
    ahead = (position - int(step.reach_position[cell])) % series.layers
    term = series.facts.ranks[0].info.layer_term
    bound = "at most " if step.observed[cell] == Observed.UPPER_BOUND else ""
    window = int(step.window[cell])
    where = f" into {series.facts.terms.window} {window}" if window != NO_WINDOW else ""
    crosses = " in the previous step" if flags & TransferFlag.CROSSES_STEPS else ""
    since = {name: units.duration(int(getattr(step, name)[cell]) - issued) for name in _INSTANTS}
    return (
        f"Step {step.step}: issued {counted(ahead, term)} ahead{crosses}{where}; ready {bound}{since['ready_ns']} "
        f"after issue; wait: began {since['wait_begin_ns']} and ended {since['wait_end_ns']} after issue; stall "
        f"{units.duration(int(step.stall_ns[cell]))}, slack {units.duration(int(step.slack_ns[cell]))}."
    )
