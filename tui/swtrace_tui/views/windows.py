"""Windows: what every window of every rank holds now, and where it is among the layers."""

from __future__ import annotations

from textual import events
from textual.strip import Strip

from swtrace import units
from swtrace.trace.ring_reader import WindowState
from swtrace_tui.actions import WINDOWS
from swtrace_tui.canvas import Line
from swtrace_tui.palette import WINDOW_ABOUT, WINDOW_GLYPHS, WINDOW_NAMES, WINDOW_STATES, Palette
from swtrace_tui.picture import RankRow, SeriesView
from swtrace_tui.views.view import Scene, View

_LABEL = 10
_CARD = 30
_LONG_NS = 1_000_000_000


class WindowsView(View, view=WINDOWS):
    """The windows of one series."""

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Draw the legend, then each rank's layers and windows."""
        series, palette = scene.picture.focus, scene.palette
        if series is None:
            return []
        lines = [_legend(series, palette, width), Line(width).strip(palette.style(palette.text))]
        room = height - len(lines)
        tall = len(rank_lines(series.rows[0], series, palette, width))
        total = tall * len(series.rows)
        self._top = max(0, min(self._top, total - room))
        first, last = self._top // tall, -(-(self._top + room) // tall)
        body = [line for row in series.rows[first:last] for line in rank_lines(row, series, palette, width)]
        shown = body[self._top - first * tall :][:room]
        if total > room and shown:
            text = f" lines {self._top + 1}-{self._top + len(shown)} of {total}, j/k scroll"
            shown[-1] = Line(width).put(text, palette.style(palette.note)).strip(palette.style(palette.text))
        return lines + shown

    def on_mouse_scroll_down(self, _event: events.MouseScrollDown) -> None:
        """Scroll down."""
        self.action_scroll(2)

    def on_mouse_scroll_up(self, _event: events.MouseScrollUp) -> None:
        """Scroll up."""
        self.action_scroll(-2)


def rank_lines(row: RankRow, series: SeriesView, palette: Palette, width: int) -> list[Strip]:
    """Return a rank's row of layers and the cards of its windows."""
    plain, dim = palette.style(palette.text), palette.style(palette.dim)
    info = row.facts.info
    counts = {state: sum(str(window.state) == state for window in row.windows) for state in WINDOW_STATES}
    summary = ", ".join(f"{count} {WINDOW_NAMES[state]}" for state, count in counts.items() if count)
    title = Line(width).field(f"rank {row.rank} ", _LABEL, palette.style(palette.text, bold=True), right=True)
    step = max((window.step for window in row.windows), default=None)
    title.put(f"{row.state}, {summary or 'no windows'}", dim)
    if step is not None:
        title.put(f", step {step}", dim)
    kept = f", holds {units.size(row.facts.held_bytes)} instead of {units.size(info.replicated_bytes)}"
    if len(kept) <= title.room:
        title.put(kept, dim)
    lines = [title.strip(plain)]
    lines += _layer_row(row, series, palette, width)
    per_line = max(1, (width - _LABEL) // _CARD)
    for begin in range(0, len(row.windows), per_line):
        line = Line(width).to(_LABEL, plain)
        for window in row.windows[begin : begin + per_line]:
            _card(line, window, row, series, palette)
        lines.append(line.strip(plain))
    lines.append(Line(width).strip(plain))
    return lines


def _layer_row(row: RankRow, series: SeriesView, palette: Palette, width: int) -> list[Strip]:
    """Draw the layers in a row, each by what this rank holds of it: its own, a window in some state, or nothing."""
    occupant = {window.position: str(window.state) for window in row.windows if str(window.state) != "free"}
    room = width - _LABEL - 1
    wide = max(1, min(3, room // series.layers))
    faint = palette.style(palette.faint)
    lines = []
    per_line = max(1, room // wide)
    for begin in range(0, series.layers, per_line):
        line = Line(width).field("layers " if begin == 0 else "", _LABEL, palette.style(palette.dim), right=True)
        for position in range(begin, min(series.layers, begin + per_line)):
            state = occupant.get(position)
            if state is not None:
                line.put(WINDOW_GLYPHS[state] * wide, palette.style(palette.window(state)))
            elif row.facts.info.source(position) == row.group_rank:
                line.put("━" * wide, palette.style(palette.dim))
            else:
                line.put("·".center(wide), faint)
        lines.append(line.strip(faint))
    return lines


def _card(line: Line, window: WindowState, row: RankRow, series: SeriesView, palette: Palette) -> None:
    state = str(window.state)
    colour = palette.window(state)
    since = age_ns(window, row)
    alive = row.observed is not None and row.observed.ring.alive
    # On a device a window is in flight from its launch, and while the device idles until the next step.
    on_device = row.facts.info.clock == "device"
    alarming = alive and not on_device and state == "inflight" and since is not None and since > _LONG_NS
    line.put(f"{WINDOW_GLYPHS[state]} ", palette.style(colour))
    line.field(f"w{window.window}", 4, palette.style(palette.dim))
    layer = "" if state == "free" else f"L{series.layer(window.position)}"
    line.field(layer, 5, palette.style(palette.text, bold=True))
    line.field(WINDOW_NAMES[state], 10, palette.style(colour))
    style = palette.style(palette.bad if alarming else palette.dim, bold=alarming)
    line.field(units.age(since) if since is not None else "", _CARD - 20, style, right=False)


def age_ns(window: WindowState, row: RankRow) -> int | None:
    """Return for how long a window has been in its state; None if no clock says so."""
    if row.observed is None or not window.since_ns or row.facts.info.clock == "virtual":
        return None
    return max(0, row.observed.ring.taken_ns - window.since_ns)


def _legend(series: SeriesView, palette: Palette, width: int) -> Strip:
    dim = palette.style(palette.dim)
    info = series.facts.ranks[0].info
    launched = ", as launched by the host" if info.clock == "device" else ""
    line = Line(width).put(
        f" {info.windows} windows{launched}, prefetch step {info.prefetch_step}   ",
        palette.style(palette.text),
    )
    for state in WINDOW_STATES:
        line.put(WINDOW_GLYPHS[state], palette.style(palette.window(state)))
        about = f" {WINDOW_NAMES[state]}: {WINDOW_ABOUT[state]}  " if width >= 184 else f" {WINDOW_NAMES[state]}  "  # noqa: PLR2004 - room
        line.put(about, dim)
    if line.room > len("━ own layer"):
        line.put("━", palette.style(palette.dim)).put(" own layer", dim)
    return line.strip(dim)
