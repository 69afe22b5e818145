"""Timeline: one step on all ranks, to scale: what each rank did, and what moved into its windows."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from textual import events
from textual.strip import Strip

from swtrace import units
from swtrace.ledger.facts import StepFacts
from swtrace.units import counted
from swtrace_tui.actions import TIMELINE
from swtrace_tui.canvas import Line, wrap
from swtrace_tui.palette import SPAN_GLYPHS, SPAN_NAMES, Palette, Span
from swtrace_tui.picture import SeriesView, phase_of
from swtrace_tui.views.heat_map import nice
from swtrace_tui.views.lanes import channel_lane, compute_lane, rasterised
from swtrace_tui.views.view import Scene, View

_LABEL = 9
_HOLD_S = 0.5
"""How long a followed step stays on the screen, so that it can be read."""
_CLOSEST_NS = 2_000
_TALL = (5, 3, 2)
"""Lines per rank: each lane twice and a gap; each once and a gap; each once. With less room both share one line."""


@dataclass(slots=True)
class _Where:
    """The shown part of a step, in ns from its first begin; all of it if ``end`` is None."""

    step: int | None = None
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
        self._kept: list[Strip] = []

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
        offsets = [scene.picture.observation.clock_offsets.get(rank, 0) for rank in step.ranks]
        origin, length = extent(step, offsets)
        begin = self._where.begin if self._where.end is not None else -0.01 * length
        end = self._where.end if self._where.end is not None else 1.01 * length
        about = self._about(scene, step, width)
        lines = [self._legend(palette, width), self._axis(begin, end, palette, width)]
        room = height - len(lines) - len(about)
        drawn = (id(step), begin, end, room, width, palette.name, self._top, self._mark, tuple(offsets))
        if (*drawn, *(row.rank for row in series.rows)) != self._drawn:
            # A held step looks the same in every frame, so its lanes are drawn once.
            self._kept = self._lanes(scene, series, step, offsets, (origin + begin, origin + end), room, width)
            self._drawn = (*drawn, *(row.rank for row in series.rows))
        lines += self._kept
        blank = Line(width).strip(plain)
        lines += [blank] * (height - len(lines) - len(about))
        return lines + about

    def _step(self, series: SeriesView) -> StepFacts | None:
        """Return the step to show: the selected one, or the newest complete one, kept for a moment."""
        if self._where.step is not None:
            chosen = next((step for step in series.steps if step.step == self._where.step), None)
            if chosen is None and self._shown is not None and self._shown.step == self._where.step:
                return self._shown
            if chosen is not None:
                self._shown = chosen
                return chosen
        newest = next(
            (step for step in reversed(series.steps) if step.complete), series.steps[-1] if series.steps else None
        )
        now = time.monotonic()
        held = self._shown
        if held is not None and newest is not None and held.series == newest.series and now < self._shown_at + _HOLD_S:
            return held
        self._shown, self._shown_at = newest, now
        return newest

    def _lanes(
        self,
        scene: Scene,
        series: SeriesView,
        step: StepFacts,
        offsets: list[int],
        window: tuple[float, float],
        room: int,
        width: int,
    ) -> list[Strip]:
        palette = scene.palette
        ranks = [row.group_rank for row in series.rows]
        tall = next((lines for lines in _TALL if room >= lines * len(ranks)), 1)
        fits = max(1, room // tall)
        self._top = max(0, min(self._top, len(ranks) - fits))
        marked = self._mark[0] if self._mark is not None else None
        near = [each for each in series.steps if _overlaps(each, offsets, window)]
        near = near if any(each is step for each in near) else [step, *near]
        lines: list[Strip] = []
        for rank in ranks[self._top : self._top + fits]:
            name = series.key.group_ranks[rank]
            style = palette.style(palette.text, bold=True) if name == marked else palette.style(palette.dim)
            begin, end = round(window[0]), round(window[1])
            compute = [compute_lane(each, rank) for each in near]
            channel = [channel_lane(each, rank) for each in near]
            columns = self._width
            if tall == 1:
                upper = rasterised(compute, begin, end, columns, offsets[rank])
                lower = rasterised(channel, begin, end, columns, offsets[rank])
                cells = [palette.stacked_segments[a][b] for a, b in zip(upper, lower, strict=True)]
                line = Line(width).field(f"rank {name} ", _LABEL, style, right=True).cells(cells, columns)
                lines.append(line.strip(palette.style(palette.text)))
                continue
            top = rasterised(compute, begin, end, 2 * columns, offsets[rank])
            below = rasterised(channel, begin, end, 2 * columns, offsets[rank])
            labels = self._labels(series, step, rank, offsets, window)
            both = [self._lane(f"rank {name} ", style, top, width, palette, labels)]
            both += [self._lane("", style, top, width, palette, {})] * (tall == _TALL[0])
            both += [self._lane("", style, below, width, palette, {})] * (2 if tall == _TALL[0] else 1)
            both += [Line(width).strip(palette.style(palette.text))] * (tall != _TALL[-1])
            lines += both
        hidden = len(ranks) - fits
        if hidden > 0 and lines:
            text = f" ranks {self._top + 1}-{self._top + fits} of {len(ranks)}, j/k scroll"
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
                    kind = kinds[2 * (column + i)]
                    on = palette.background if palette.mono else palette.spans[kind]
                    colour = palette.text if palette.mono or kind is not Span.STALL else palette.background
                    line.put(character, palette.style(colour, on=on))
                column += len(text)
                continue
            line.cells([table[kinds[2 * column]][kinds[2 * column + 1]]], 1)
            column += 1
        return line.strip(palette.style(palette.text))

    def _labels(
        self, series: SeriesView, step: StepFacts, rank: int, offsets: list[int], window: tuple[float, float]
    ) -> dict[int, str]:
        """Return the columns of layer numbers: each in the middle of its layer's time, if there is room."""
        per_cell = (window[1] - window[0]) / self._width
        ends = step.wait_end_ns[rank] + offsets[rank] - window[0]
        begins = np.concatenate(([step.begin_ns[rank] + offsets[rank] - window[0]], ends[:-1]))
        first, last = (begins / per_cell).astype(np.int64), (ends / per_cell).astype(np.int64)
        marked = self._mark[1] if self._mark is not None and self._mark[0] == series.key.group_ranks[rank] else None
        labels: dict[int, str] = {}
        free_from = 0
        for position, (left, right) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            wanted = position == marked
            text = f"▸{series.layer(position)}◂" if wanted else f"{series.layer(position)}"
            visible = range(max(0, left), min(self._width, right))
            column = (visible.start + visible.stop - len(text) + 1) // 2
            if visible and column >= free_from and (len(visible) > len(text) + 1 or wanted):
                labels[column] = text
                free_from = column + len(text) + 1
        return labels

    def _legend(self, palette: Palette, width: int) -> Strip:
        dim = palette.style(palette.dim)
        line = Line(width).put(" ", dim)
        for kind, name in SPAN_NAMES.items():
            if line.room < len(name) + 4:
                break
            if palette.mono:
                line.put(SPAN_GLYPHS[kind], palette.style(palette.text))
            else:
                line.put("██" if width > 100 else "█", palette.style(palette.spans[kind]))  # noqa: PLR2004 - room for it
            line.put(f" {name}  ", dim)
        return line.strip(dim)

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

    def _about(self, scene: Scene, step: StepFacts, width: int) -> list[Strip]:
        palette = scene.palette
        plain, dim = palette.style(palette.text), palette.style(palette.dim)
        mode = "following" if self._where.step is None else "held; f follows the newest"
        offsets = scene.picture.observation.clock_offsets
        title = Line(width).put(f" Step {step.step}: ", palette.style(palette.note, bold=True))
        tokens = counted(int(step.tokens.max(initial=0)), "token")
        title.put(f"{str(phase_of(step).name).lower()}, {tokens}  ({mode}) ", dim)
        if offsets:
            title.put(" hosts aligned by their wall clocks", palette.style(palette.warning))
        lines = [Line(width).strip(plain), title.strip(plain)]
        for sentence in step_sentences(step):
            lines += [Line(width).put(f" {row}", plain).strip(plain) for row in wrap(sentence, width - 2)]
        return lines[:6]

    # -- keys and mouse --------------------------------------------------------------------------------

    def point_out(self, rank: int | None, position: int | None) -> None:
        """Mark a rank, and zoom to its wait for a layer if there is one."""
        self._mark = None if rank is None else (rank, position)
        series = self.focus_series
        step = self._step(series) if series is not None else None
        if series is None or step is None:
            return
        group_rank = series.group_rank(rank)
        if position is None:
            self._where = _Where()
        elif group_rank is not None:
            offset = 0
            origin, length = extent(step, [offset] * len(step.ranks))
            middle = (
                float(step.wait_begin_ns[group_rank, position] + step.wait_end_ns[group_rank, position]) / 2 - origin
            )
            half = 4 * length / series.layers
            self._where = _Where(step.step, middle - half, middle + half)
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
        numbers = [step.step for step in series.steps]
        at = numbers.index(self._shown.step) if self._shown.step in numbers else len(numbers) - 1
        self._where.step = numbers[max(0, min(len(numbers) - 1, at + by))]
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
            worst = max(series.steps, key=lambda step: int(step.stall_ns.sum(axis=1).max()))
            self._where = _Where(worst.step)
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
        if self._shown is None:
            return 0.0, 1.0
        offsets = [
            self.scene.picture.observation.clock_offsets.get(rank, 0) if self.scene else 0 for rank in self._shown.ranks
        ]
        length = extent(self._shown, offsets)[1]
        return -0.01 * length, 1.01 * length

    def _zoom(self, factor: float, around: float) -> None:
        begin, end = self._range()
        middle = begin + around * (end - begin)
        begin, end = middle + (begin - middle) * factor, middle + (end - middle) * factor
        if end - begin >= _CLOSEST_NS:
            self._hold(begin, end)

    def _hold(self, begin: float, end: float) -> None:
        if self._shown is not None and self._where.step is None:
            self._where.step = self._shown.step
        self._where.begin, self._where.end = begin, end
        self.redraw()


def _overlaps(step: StepFacts, offsets: list[int], window: tuple[float, float]) -> bool:
    begin, length = extent(step, offsets)
    return begin < window[1] and begin + length > window[0]


def extent(step: StepFacts, offsets: list[int]) -> tuple[int, int]:
    """Return the first begin of a step and its length, on the common clock, in ns."""
    shift = np.array(offsets, np.int64)
    ended = step.ended
    if not ended.any():
        present = step.present
        begin = int(step.wait_begin_ns[present].min(initial=0))
        return begin, max(1, int(step.wait_end_ns[present].max(initial=1)) - begin)
    begin = int((step.begin_ns + shift)[ended].min())
    return begin, max(1, int((step.end_ns + shift)[ended].max()) - begin)


def step_sentences(step: StepFacts) -> list[str]:
    """Return sentences about one step: its stalls, then its critical path."""
    name = [rank.rank for rank in step.ranks]
    stall = step.stall_ns.sum(axis=1)
    worst = int(stall.argmax())
    stalled = int((step.receiver[worst] & ~step.on_time[worst]).sum())
    about = (
        f"Duration {units.duration(int(step.duration_ns.max(initial=0)))} on the slowest rank; "
        f"rank {name[worst]} stalled most, "
        f"{units.duration(int(stall[worst]))} in {counted(stalled, 'wait')}."
    )
    late = int(step.entry_skew_ns.argmax())
    if step.entry_known and step.entry_skew_ns[late] > 0:
        about += f" Rank {name[late]} entered last, {units.duration(int(step.entry_skew_ns[late]))} after the first."
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
        f"compute {units.duration(int(path.compute_ns[rank]))} on rank {name[rank]}"
        for rank in most
        if path.compute_ns[rank]
    ]
    shown = ", ".join(parts[:6]) or "no compute"
    critical = (
        f"Critical path, ending on rank {name[path.last_rank]}: {shown}, transfer {units.duration(path.transfer_ns)}, "
        f"wake {units.duration(path.wake_ns)}, late entry {units.duration(int(path.entry_ns.sum()))}; "
        f"total {units.duration(path.length_ns)}."
    )
    return [about, critical]
