"""Windows: what every window of every rank holds now, and where it is among the layers."""

from __future__ import annotations

from textual import events
from textual.strip import Strip

from swtrace import units
from swtrace.observing import Link
from swtrace.trace.marks import WindowState
from swtrace_tui.actions import WINDOWS
from swtrace_tui.canvas import Line, legend
from swtrace_tui.palette import WINDOW_ABOUT, WINDOW_GLYPHS, WINDOW_NAMES, WINDOW_STATES, Palette
from swtrace_tui.picture import RankRow, RankState, SeriesView
from swtrace_tui.views.view import Scene, View, with_scroll_hint

_LABEL = 10
_CARD = 30
_SMALL = 14
"""Lines below which the legend is brief."""
_LONG_NS = 1_000_000_000


class WindowsView(View, view=WINDOWS):
    """The windows of one series."""

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Draw the legend, then each rank's layers and windows."""
        series, palette = scene.picture.focus, scene.palette
        if series is None:
            return []
        recorded = any(origin.link is Link.RECORDED for origin in scene.picture.observation.origins)
        lines = [*_legend(series, palette, width, height, recorded=recorded), *_axis(series, palette, width)]
        room = height - len(lines)
        tall = len(rank_lines(series.rows[0], series, palette, width))
        total = tall * len(series.rows) - 1
        top = self.scrolled(total, room)
        first, last = top // tall, -(-(top + room) // tall)
        rows = series.rows[first:last]
        body = [line for row in rows for line in rank_lines(row, series, palette, width, aged=not recorded)]
        return lines + with_scroll_hint(body[top - first * tall :][: min(room, total)], top, total, width, palette)

    def on_mouse_scroll_down(self, _event: events.MouseScrollDown) -> None:
        """Scroll down."""
        self.action_scroll(2)

    def on_mouse_scroll_up(self, _event: events.MouseScrollUp) -> None:
        """Scroll up."""
        self.action_scroll(-2)


def rank_lines(row: RankRow, series: SeriesView, palette: Palette, width: int, *, aged: bool = True) -> list[Strip]:
    """Return a rank's row of layers and the cards of its windows; ``aged`` says whether these show ages."""
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    info = row.facts.info
    counts = {state: sum(str(window.state) == state for window in row.windows) for state in WINDOW_STATES}
    summary = ", ".join(f"{count} {WINDOW_NAMES[state]}" for state, count in counts.items() if count)
    title = Line(width).field(f"rank {row.rank} ", _LABEL, palette.style(palette.text, bold=True), right=True)
    held = f"holds {units.size(row.facts.held_bytes)} instead of {units.size(info.replicated_bytes)}"
    step = max((window.step for window in row.windows), default=None)
    title.put(str(row.state), dim)
    several = bool(series.facts.host_of(row.rank))
    for part in (
        f"on {row.host}" if several and row.host else "",
        summary or f"no {info.terms.window}s",
        f"step {step}" if step is not None else "",
        held if row.state is not RankState.CLOSED else "",
        f"pid {row.pid}{'' if several else f' on {row.host}'}" if row.pid else "",
    ):
        if part and len(part) + 2 <= title.room:
            title.put(f", {part}", dim)
    lines = [title.strip(plain)]
    lines += _layer_row(row, series, palette, width)
    per_line = max(1, (width - _LABEL) // _CARD)
    for begin in range(0, len(row.windows), per_line):
        line = Line(width).to(_LABEL, plain)
        for window in row.windows[begin : begin + per_line]:
            _card(line, window, row, series, palette, aged=aged)
        lines.append(line.strip(plain))
    lines.append(Line(width).strip(plain))
    return lines


def _layer_row(row: RankRow, series: SeriesView, palette: Palette, width: int) -> list[Strip]:
    """Draw the layers in a row, each by what this rank holds of it: its own, a window in some state, or nothing."""
    occupant = {window.position: str(window.state) for window in row.windows if str(window.state) != "free"}
    wide, per_line = _layers_per_line(series, width)
    faint = palette.style(palette.faint)
    lines = []
    for begin in range(0, series.layers, per_line):
        name = "layers " if per_line >= series.layers else f"layer {series.layer(begin)} "
        line = Line(width).field(name, _LABEL, palette.style(palette.dim), right=True)
        for position in range(begin, min(series.layers, begin + per_line)):
            state = occupant.get(position)
            if state is not None:
                line.put(WINDOW_GLYPHS[state] * wide, palette.style(palette.window(state)))
            elif row.facts.info.terms.own and row.facts.info.source(position) == row.group_rank:
                line.put("━" * wide, palette.style(palette.dim))
            else:
                line.put("·".center(wide), faint)
        lines.append(line.strip(faint))
    return lines


def _layers_per_line(series: SeriesView, width: int) -> tuple[int, int]:
    """Return how many columns a layer takes, and how many layers a line."""
    room = width - _LABEL - 1
    wide = max(1, min(3, room // series.layers))
    return wide, max(1, room // wide)


def _axis(series: SeriesView, palette: Palette, width: int) -> list[Strip]:
    """Return a line of layer numbers; none if a rank's layers need several lines, which then have a number each."""
    dim = palette.style(palette.dim)
    wide, per_line = _layers_per_line(series, width)
    if per_line < series.layers:
        return []
    line = Line(width).field("layer ", _LABEL, dim, right=True)
    every = -(-6 // wide)
    for position in range(0, series.layers, every):
        line.field(str(series.layer(position)), every * wide, dim)
    return [line.strip(dim)]


def _card(line: Line, window: WindowState, row: RankRow, series: SeriesView, palette: Palette, *, aged: bool) -> None:
    state = str(window.state)
    colour = palette.window(state)
    since = age_ns(window, row) if aged else None
    # On a device a window is in flight from its launch, and while the device idles until the next step.
    on_device = row.facts.info.clock == "device"
    alarming = not on_device and state == "inflight" and since is not None and since > _LONG_NS
    line.put(f"{WINDOW_GLYPHS[state]} ", palette.style(colour))
    line.field(f"w{window.window}", 4, palette.style(palette.dim))
    layer = "" if state == "free" else f"L{series.layer(window.position)}"
    line.field(layer, 5, palette.style(palette.text, bold=True))
    line.field(WINDOW_NAMES[state], 10, palette.style(colour))
    style = palette.style(palette.bad if alarming else palette.dim, bold=alarming)
    line.field(units.age(since) if since is not None else "", _CARD - 21, style)


def age_ns(window: WindowState, row: RankRow) -> int | None:
    """Return for how long a window has been in its state; None if no clock says so or its rank is gone."""
    if row.observed is None or not row.observed.ring.alive:
        return None
    if not window.since_ns or row.facts.info.clock == "virtual":
        return None
    return max(0, row.observed.ring.taken_ns - window.since_ns)


def _legend(series: SeriesView, palette: Palette, width: int, height: int, *, recorded: bool) -> list[Strip]:
    """Return the policy and the states; what a state means is left out where it would take another line."""
    info = series.facts.ranks[0].info
    launched = ", as launched by the host" if info.clock == "device" else ""
    stored = ", as stored once a second" if recorded else ""
    if not info.shared:
        line = Line(width).put(" The series is observed, not shared: there are no windows.", palette.style(palette.dim))
        return [line.strip(palette.style(palette.text))]
    first = f"{info.places}{launched}{stored} "
    for about in (WINDOW_ABOUT, dict.fromkeys(WINDOW_STATES, "")):
        items = [
            (
                WINDOW_GLYPHS[state],
                palette.style(palette.window(state)),
                f"{WINDOW_NAMES[state]}{': ' if about[state] else ''}{about[state]}",
            )
            for state in WINDOW_STATES
        ]
        if info.terms.own:
            items.append(("━", palette.style(palette.dim), info.terms.own))
        lines = legend(items, width, palette.style(palette.dim), first="" if height < _SMALL else first)
        if len(lines) == 1:
            break
    return lines
