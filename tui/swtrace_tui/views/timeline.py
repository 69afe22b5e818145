"""Timeline: one step on all ranks, to scale: what each rank did, and what moved into its windows.

In a pull series, it is one rank's step, and what the other ranks did meanwhile in their own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from textual import events
from textual.strip import Strip

from swtrace import units
from swtrace.ledger.facts import StepFacts
from swtrace.observing import Observation
from swtrace.trace.schema import Phase
from swtrace.units import counted
from swtrace_tui.actions import TIMELINE
from swtrace_tui.canvas import Line, legend, wrap
from swtrace_tui.palette import SPAN_GLYPHS, SPAN_NAMES, Palette, Span
from swtrace_tui.picture import SeriesView
from swtrace_tui.views.heat_map import nice
from swtrace_tui.views.hosts import entries, heading, visible
from swtrace_tui.views.lanes import Ns, channel_lane, compute_lane, moved, rasterised
from swtrace_tui.views.view import Scene, View

_LABEL = 9
_HOLD_S = 0.5
"""How long a followed step stays on the screen, so that it can be read."""
_CLOSEST_NS = 2_000
_TALLEST = 10
"""The most lines that one lane takes."""
_SMALL = 14
"""Lines below which words give way to lanes."""
_LAYERS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Which layers are numbered: every first, every second, ..."""
_APART = 6
"""Columns from the begin of one layer number to that of the next."""


@dataclass(slots=True)
class _Where:
    """The shown part of a step, in ns from its first begin; all of it if ``end`` is None."""

    step: tuple[int | None, int] | None = None
    """The rank whose step it is, in a pull series, and its number; None for the newest step."""
    begin: float = 0.0
    end: float | None = None


class Timeline(View, view=TIMELINE):
    """Lanes of the ranks of one series."""

    def __init__(self) -> None:
        super().__init__()
        self._where = _Where()
        self._shown: StepFacts | None = None
        self._shown_at = 0.0
        self._mark: tuple[int, int | None] | None = None
        """Global rank and position to mark."""
        self._width = 80
        self._drawn: tuple[object, ...] = ()
        self._kept: list[Strip | tuple[str, str]] = []
        """The lanes that were drawn last, under the places of their hosts, whose bounds change more often."""

    # -- drawing -------------------------------------------------------------------------------------

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Draw the legend, the axis, the lanes and the description of the step."""
        series, palette = scene.picture.focus, scene.palette
        plain = palette.style(palette.text)
        if series is None:
            return []
        step = self._step(series)
        if step is None:
            return [Line(width).put(" No finished step yet.", palette.style(palette.dim)).strip(plain)]
        self._width = max(8, width - _LABEL - 1)
        offsets = drawn_offsets(step, step, scene.picture.observation)
        origin, length = extent(step, offsets)
        begin = self._where.begin if self._where.end is not None else -0.01 * length
        end = self._where.end if self._where.end is not None else 1.01 * length
        kinds = [kind for kind in SPAN_NAMES if kind is not Span.SENT or step.of_rank is None]
        kinds = kinds if series.facts.shared else [Span.COMPUTE]
        lines = [*_legend(kinds, palette, width, brief=height < _SMALL), self._axis(begin, end, palette, width)]
        spare = height - len(lines) - len(series.rows) - len(series.hosts)
        about = self._about(scene, series, step, width, most=max(1, min(spare, max(6, spare - 2 * len(series.rows)))))
        room = height - len(lines) - len(about)
        drawn = (id(step), begin, end, room, width, palette.name, self._top, self._mark, *offsets.tolist())
        drawn += (*(row.rank for row in series.rows), *(host.place for host in series.hosts))
        if drawn != self._drawn:
            # A held step looks the same in every frame, so its lanes are drawn once.
            self._kept = self._lanes(scene, series, step, (origin + begin, origin + end), room, width)
            self._drawn = drawn
        by_place = {host.place: host for host in series.hosts}
        lines += [line if isinstance(line, Strip) else heading(by_place[line], width, palette) for line in self._kept]
        blank = Line(width).strip(plain)
        lines += [blank] * (height - len(lines) - len(about))
        return lines + about

    def _step(self, series: SeriesView) -> StepFacts | None:
        """Return the step to show: the selected one, or the newest complete one, kept for a moment."""
        if self._where.step is not None:
            chosen = next((step for step in series.steps if _named(step) == self._where.step), None)
            if chosen is None and self._shown is not None and _named(self._shown) == self._where.step:
                return self._shown
            if chosen is not None:
                self._shown = chosen
                return chosen
        steps = self._steps(series)
        newest = next((step for step in reversed(steps) if step.complete), steps[-1] if steps else None)
        now = time.monotonic()
        held = self._shown
        if (
            held is not None
            and newest is not None
            and now < self._shown_at + _HOLD_S
            and (held.series, held.of_rank) == (newest.series, newest.of_rank)
        ):
            return held
        self._shown, self._shown_at = newest, now
        return newest

    def _steps(self, series: SeriesView) -> Sequence[StepFacts]:
        """Return the steps to choose from: in a pull series, those of the marked rank or the most stalled one."""
        if series.facts.lockstep:
            return series.steps
        marked = None if self._mark is None else series.group_rank(self._mark[0])
        wanted = [row.group_rank for row in sorted(series.rows, key=lambda row: -(row.recent.stall_ratio or 0.0))]
        for rank in wanted if marked is None else [marked, *wanted]:
            if steps := [step for step in series.steps if step.of_rank == rank]:
                return steps
        return series.steps

    def _lanes(
        self,
        scene: Scene,
        series: SeriesView,
        step: StepFacts,
        window: tuple[float, float],
        room: int,
        width: int,
    ) -> list[Strip | tuple[str, str]]:
        palette = scene.palette
        ranks = len(series.rows)
        # Headings that would push ranks off the screen are left out.
        hosts = () if ranks <= room < ranks + len(series.hosts) else series.hosts
        tall, lane = _lines_per_rank((room - len(hosts)) // max(1, ranks))
        listed = entries(series.rows, hosts)
        fits = max(1, room) if tall == 1 else len(listed)
        top = self.scrolled(len(listed), fits)
        marked, wanted = self._mark if self._mark is not None else (None, None)
        own = drawn_offsets(step, step, scene.picture.observation)
        clocks: dict[int | None, tuple[str, str]] = {row.group_rank: row.place for row in series.rows}
        # The steps of ranks that pull are drawn beside each other by their clock alone.
        beside = [each for each in series.steps if clocks.get(each.of_rank) == clocks.get(step.of_rank)]
        shifted = [(each, drawn_offsets(each, step, scene.picture.observation)) for each in beside]
        near = [(each, offsets) for each, offsets in shifted if each is step or _overlaps(each, offsets, window)]
        if not any(each is step for each, _ in near):
            near.insert(0, (step, own))
        lines: list[Strip | tuple[str, str]] = []
        for entry in visible(listed, top, fits):
            if entry.host is not None and not entry.rows:
                lines.append(entry.host.place)
                continue
            rank, name = entry.rows[0].group_rank, entry.rows[0].rank
            style = palette.style(palette.text, bold=True) if name == marked else palette.style(palette.dim)
            begin, end = round(window[0]), round(window[1])
            compute = [moved(compute_lane(each, rank), offsets[rank]) for each, offsets in near]
            channel = [moved(channel_lane(each, rank), offsets[rank]) for each, offsets in near]
            columns = self._width
            if tall == 1:
                upper = rasterised(compute, begin, end, columns)
                lower = rasterised(channel, begin, end, columns)
                cells = [palette.stacked_segments[a][b] for a, b in zip(upper, lower, strict=True)]
                line = Line(width).field(f"rank {name} ", _LABEL, style, right=True).cells(cells, columns)
                lines.append(line.strip(palette.style(palette.text)))
                continue
            top_lane = rasterised(compute, begin, end, 2 * columns)
            below = rasterised(channel, begin, end, 2 * columns)
            labels: dict[int, str] = {}
            for each in [step] if step.of_rank is None else [each for each, _ in near if each.ended[rank]]:
                position = wanted if name == marked and each is step else None
                theirs = self._labels(series, each, rank, int(own[rank]), window, position)
                if not labels or min(theirs, default=0) > max(labels) + _APART:
                    labels |= theirs
            above = tall > 2 * lane
            if above:
                lines.append(_layer_line(labels, width, palette))
            lines.append(self._lane(f"rank {name} ", style, top_lane, width, palette, {} if above else labels))
            lines += [self._lane("", style, top_lane, width, palette, {})] * (lane - 1)
            lines += [self._lane("", style, below, width, palette, {})] * lane
        if len(listed) > fits and lines:
            what = "lines" if hosts else "ranks"
            text = f" {what} {top + 1}-{top + fits} of {len(listed)}, j/k scroll"
            lines[-1] = Line(width).put(text, palette.style(palette.note)).strip(palette.style(palette.text))
        return lines

    def _lane(
        self,
        label: str,
        style: object,
        kinds: list[Span],
        width: int,
        palette: Palette,
        labels: dict[int, str],
    ) -> Strip:
        table = palette.lane_segments
        line = Line(width).field(label, _LABEL, style, right=True)  # type: ignore[arg-type]
        column = 0
        columns = len(kinds) // 2
        while column < columns:
            text = labels.get(column)
            if text is not None and column + len(text) <= columns:
                for i, character in enumerate(text):
                    line.put(character, palette.readable(palette.spans[kinds[2 * (column + i)]]))
                column += len(text)
                continue
            line.cells([table[kinds[2 * column]][kinds[2 * column + 1]]], 1)
            column += 1
        return line.strip(palette.style(palette.text))

    def _labels(
        self,
        series: SeriesView,
        step: StepFacts,
        rank: int,
        offset: int,
        window: tuple[float, float],
        marked: int | None,
    ) -> dict[int, str]:
        """Return layer numbers by column: every n-th layer, where the time up to the end of its wait begins.

        Args:
            series: The series.
            step: The step.
            rank: The group rank.
            offset: What to add to the rank's instants, in ns.
            window: The shown time.
            marked: The position that is always numbered, in the middle of its time.
        """
        per_cell = (window[1] - window[0]) / self._width
        ends = step.wait_end_ns[rank] + offset - window[0]
        begins = np.concatenate(([step.begin_ns[rank] + offset - window[0]], ends[:-1]))
        first, last = np.floor(begins / per_cell).astype(np.int64), (ends / per_cell).astype(np.int64)
        usual = max(0.01, float(np.median(np.diff(ends)) / per_cell)) if len(ends) > 1 else float(self._width)
        enough = [each for each in _LAYERS if each * usual >= _APART] or [_LAYERS[-1]]
        layers = np.array([series.layer(position) for position in range(series.layers)])
        every = next((each for each in enough[:2] if _apart(first[layers % each == 0])), enough[0])
        labels: dict[int, str] = {}
        taken = range(0)
        if marked is not None:
            left, right = max(0, int(first[marked])), min(self._width, int(last[marked]))
            text = f"▸{series.layer(marked)}◂"
            column = max(0, min(self._width - len(text), (left + right - len(text) + 1) // 2))
            if left < right or 0 <= first[marked] < self._width:
                labels[column] = text
                taken = range(column - 1, column + len(text) + 1)
        free_from = 0
        for position, column in enumerate(first.tolist()):
            layer = series.layer(position)
            text = f"╷{layer}"
            clash = taken and column < taken.stop and column + len(text) > taken.start
            if layer % every == 0 and free_from <= column <= self._width - len(text) and not clash:
                labels[column] = text
                free_from = column + len(text) + 1
        return labels

    def _axis(self, begin: float, end: float, palette: Palette, width: int) -> Strip:
        dim = palette.style(palette.dim)
        line = Line(width).to(_LABEL, dim)
        per_cell = (end - begin) / self._width
        tick = nice(14 * per_cell)
        at = np.ceil(begin / tick) * tick
        while at <= end:
            column = _LABEL + round((at - begin) / per_cell)
            text = f"╷{units.duration(float(at))}"
            if column + len(text) > width:
                break
            line.to(column, dim).put(text, dim)
            at += tick
        return line.strip(dim)

    def _about(self, scene: Scene, series: SeriesView, step: StepFacts, width: int, most: int) -> list[Strip]:
        palette = scene.palette
        plain, dim = palette.style(palette.text), palette.style(palette.dim)
        mode = "following" if self._where.step is None else "held; f follows the newest"
        whose = "" if step.of_rank is None else f" of {series.rank_name(step.of_rank)}"
        title = Line(width).put(f" Step {step.step}{whose}: ", palette.style(palette.note, bold=True))
        tokens = counted(int(step.tokens.max(initial=0)), "token")
        phase = step.common_phase
        facts = f"{'' if phase is Phase.OTHER else f'{phase.name.lower()}, '}{tokens}"
        sentences = step_sentences(series, step)
        clocks, brief = clock_words(series, step, scene.picture.observation)
        style = dim if step.comparable else palette.style(palette.warning)
        fits = len(f"{facts}  ({mode})  {clocks}") <= title.room
        if clocks and not fits and most == 1:
            title.put(brief, style).put(f"  ({mode})", dim)
        else:
            title.put(f"{facts}  ({mode}) ", dim).put(f" {clocks}" if clocks and fits else "", style)
        if clocks and not fits:
            sentences.insert(0, f"{clocks[0].upper()}{clocks[1:]}.")
        small = most < 6  # noqa: PLR2004 - a gap, the title and four lines of sentences
        lines = [title.strip(plain)] if small else [Line(width).strip(plain), title.strip(plain)]
        for sentence in sentences:
            left = most - len(lines)
            rows = wrap(sentence, width - 2, most=left) if left > 0 else []
            lines += [Line(width).put(f" {row}", plain).strip(plain) for row in rows]
        return lines

    # -- keys and mouse --------------------------------------------------------------------------------

    def point_out(self, rank: int | None, position: int | None) -> None:
        """Mark a rank, and zoom to its wait for a layer if there is one."""
        self._mark = None if rank is None else (rank, position)
        series = self.focus_series
        step = self._step(series) if series is not None else None
        if self.scene is None or series is None or step is None:
            return
        group_rank = series.group_rank(rank)
        if position is None:
            self._where = _Where()
        elif group_rank is not None:
            offsets = drawn_offsets(step, step, self.scene.picture.observation)
            origin, length = extent(step, offsets)
            wait = int(step.wait_begin_ns[group_rank, position] + step.wait_end_ns[group_rank, position]) // 2
            middle = float(wait + int(offsets[group_rank]) - origin)
            half = 4 * length / series.layers
            self._where = _Where(_named(step), middle - half, middle + half)
        self.redraw()

    def action_zoom(self, factor: float) -> None:
        """Show more or less time around the middle."""
        self._zoom(factor, 0.5)

    def action_pan(self, share: float) -> None:
        """Move by a share of the shown time."""
        begin, end = self._range()
        by = share * (end - begin)
        self._hold(begin + by, end + by)

    def action_step(self, by: int) -> None:
        """Show the previous or next step, and hold it."""
        series = self.focus_series
        if series is None or self._shown is None:
            return
        names = [_named(step) for step in series.steps if step.of_rank == self._shown.of_rank]
        if not names:
            return
        at = names.index(_named(self._shown)) if _named(self._shown) in names else len(names) - 1
        self._where.step = names[max(0, min(len(names) - 1, at + by))]
        self.redraw()

    def action_fit(self) -> None:
        """Show the whole step."""
        self._where.begin, self._where.end = 0.0, None
        self.redraw()

    def action_newest(self) -> None:
        """Follow the newest step."""
        self._where = _Where()
        self._shown_at = 0.0
        self.redraw()

    def action_worst(self) -> None:
        """Show the step that stalled most."""
        series = self.focus_series
        if series is not None and series.steps:
            worst = max(self._steps(series), key=lambda step: int(step.stall_ns.sum(axis=1).max()))
            self._where = _Where(_named(worst))
            self.redraw()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Zoom out around the pointer; with a modifier, pan."""
        self._wheel(event, 1.25, 0.1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom in around the pointer; with a modifier, pan."""
        self._wheel(event, 0.8, -0.1)

    def _wheel(self, event: events.MouseEvent, factor: float, pan: float) -> None:
        if event.ctrl or event.shift:
            self.action_pan(pan)
        else:
            self._zoom(factor, max(0.0, min(1.0, (event.x - _LABEL) / self._width)))

    def _range(self) -> tuple[float, float]:
        if self._where.end is not None:
            return self._where.begin, self._where.end
        if self._shown is None or self.scene is None:
            return 0.0, 1.0
        length = extent(self._shown, drawn_offsets(self._shown, self._shown, self.scene.picture.observation))[1]
        return -0.01 * length, 1.01 * length

    def _zoom(self, factor: float, around: float) -> None:
        begin, end = self._range()
        middle = begin + around * (end - begin)
        begin, end = middle + (begin - middle) * factor, middle + (end - middle) * factor
        if end - begin >= _CLOSEST_NS:
            self._hold(begin, end)

    def _hold(self, begin: float, end: float) -> None:
        if self._shown is not None and self._where.step is None:
            self._where.step = _named(self._shown)
        self._where.begin, self._where.end = begin, end
        self.redraw()


def _named(step: StepFacts) -> tuple[int | None, int]:
    """Return what tells a step from the others of its series."""
    return step.of_rank, step.step


def _lines_per_rank(room: int) -> tuple[int, int]:
    """Return how many lines a rank takes, and how many each of its two lanes.

    A line of layer numbers is above the lanes if there is room. With a single line, both lanes share it.
    """
    if room < 2:  # noqa: PLR2004 - a line per lane
        return 1, 0
    lane = max(1, min(_TALLEST, (room - 1) // 2))
    return (2 * lane + 1 if room > 2 else 2), lane  # noqa: PLR2004 - a line for the numbers


def _apart(columns: npt.NDArray[np.int64]) -> bool:
    """Return whether numbers that begin in these columns leave room for each other."""
    return bool((np.diff(columns) >= _APART - 1).all())


def _layer_line(labels: dict[int, str], width: int, palette: Palette) -> Strip:
    dim = palette.style(palette.dim)
    line = Line(width).field("layer ", _LABEL, dim, right=True)
    for column, text in sorted(labels.items()):
        line.to(_LABEL + column, dim).put(text, dim if text.startswith("╷") else palette.style(palette.text, bold=True))
    return line.strip(dim)


def _legend(kinds: Sequence[Span], palette: Palette, width: int, *, brief: bool) -> list[Strip]:
    items = (
        (
            SPAN_GLYPHS[kind] if palette.mono else "█" if brief else "██",
            palette.style(palette.text if palette.mono else palette.spans[kind]),
            SPAN_NAMES[kind].rpartition(" ")[2] if brief else SPAN_NAMES[kind],
        )
        for kind in kinds
    )
    return legend(items, width, palette.style(palette.dim))


def _overlaps(step: StepFacts, offsets: Ns, window: tuple[float, float]) -> bool:
    begin, length = extent(step, offsets)
    return begin < window[1] and begin + length > window[0]


def drawn_offsets(step: StepFacts, shown: StepFacts, observation: Observation) -> Ns:
    """Return what to add to the instants of a step's ranks, ``[rank]``, to draw it beside the step that is shown.

    All instants of a comparable step are on one clock. If the clocks of the step that is shown are not aligned, the
    hosts' wall clocks apply, relative to the first rank's.
    """
    if shown.comparable:
        return np.zeros(len(step.ranks), np.int64) if step.comparable else shown.clock_shift_ns - step.clock_shift_ns
    wall = [observation.clock_offsets.get(rank, 0) for rank in step.ranks]
    return np.array(wall, np.int64) - next(filter(None, wall), 0) - step.clock_shift_ns


def extent(step: StepFacts, offsets: Ns) -> tuple[int, int]:
    """Return the first begin of a step and its length in ns, after adding offsets to its ranks' instants."""
    if not step.ended.any():
        if not step.present.any():
            return 0, 1
        begin = int((step.wait_begin_ns + offsets[:, np.newaxis])[step.present].min())
        return begin, max(1, int((step.wait_end_ns + offsets[:, np.newaxis])[step.present].max()) - begin)
    begin = int((step.begin_ns + offsets)[step.ended].min())
    return begin, max(1, int((step.end_ns + offsets)[step.ended].max()) - begin)


def clock_words(series: SeriesView, step: StepFacts, observation: Observation) -> tuple[str, str]:
    """Return how the lanes of a step are aligned, and the same in short; empty if its ranks share one clock."""
    if (aligned := series.alignment(step)) is not None:
        by, error_ns = aligned
        return f"hosts aligned by {by}, ±{units.duration(error_ns)}", f"hosts ±{units.duration(error_ns)}"
    if step.comparable:
        return "", ""
    if observation.clock_offsets:
        return "hosts aligned by their wall clocks", "by wall clocks"
    return "clocks differ and are not aligned", "clocks differ"


def step_sentences(series: SeriesView, step: StepFacts) -> list[str]:
    """Return sentences about one step: its stalls, then its critical path."""
    took = units.duration(int(step.duration_ns.max(initial=0)))
    if not series.facts.shared:  # nothing but the model's own collectives keeps ranks in step
        return [f"Duration {took} on the slowest rank; nothing is shared."]
    stall = step.stall_ns.sum(axis=1)
    worst = int(stall.argmax())
    stalled = int((step.receiver[worst] & ~step.on_time[worst]).sum())
    held = units.duration(int(stall[worst]))
    waits = counted(stalled, "wait")
    if step.of_rank is not None:
        missing = "" if step.complete else " Some records of the step are missing."
        others = " The other ranks' lanes show their own finished steps." if len(step.ranks) > 1 else ""
        return [f"Duration {took}, of which {held} stalled in {waits}.{missing}{others}"]
    about = f"Duration {took} on the slowest rank; {series.rank_name(worst)} stalled most, {held} in {waits}."
    late = int(np.where(step.ended, step.arrival_ns, 0).argmax())
    if step.entry_known and step.entry_skew_ns[late] > 0:
        # Of two ranks on different clocks, the bound may hide which one is later.
        last = "" if series.alignment(step) else "last, "
        entered = units.duration(int(step.entry_skew_ns[late]))
        about += f" {series.rank_name(late, 'Rank')} entered {last}{entered} after the first."
    path = step.path
    if path is None:
        reason = (
            "records of some ranks are missing"
            if not step.complete
            else "the step was aborted, or the cause of a stall is unknown"
        )
        return [about, f"No critical path: {reason}."]
    most = np.argsort(-path.compute_ns).tolist()
    parts = [
        f"compute {units.duration(int(path.compute_ns[rank]))} on {series.rank_name(rank)}"
        for rank in most[:6]
        if path.compute_ns[rank]
    ]
    shown = ", ".join(parts) or "no compute"
    bound = f" ±{units.duration(path.entry_bound_ns)}" if path.entry_bound_ns else ""
    critical = (
        f"Critical path, ending on {series.rank_name(path.last_rank)}: {shown}, "
        f"transfer {units.duration(path.transfer_ns)}, wake {units.duration(path.wake_ns)}, "
        f"late entry {units.duration(int(path.entry_ns.sum()))}{bound}; "
        f"total {units.duration(path.length_ns)}."
    )
    return [about, critical]
