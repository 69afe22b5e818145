"""Overview: the verdict, one row per rank, and charts where there is room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter

from rich.style import Style
from textual import events
from textual.strip import Strip

from swtrace import units
from swtrace.diagnosis.finding import HIDDEN_BELOW, STALLED_ABOVE, Finding, Level
from swtrace.diagnosis.rules.plan import AsPlanned
from swtrace_tui.actions import OVERVIEW
from swtrace_tui.canvas import Line, bar, sparkline, wrap
from swtrace_tui.palette import WINDOW_GLYPHS, Palette
from swtrace_tui.picture import Host, Picture, RankRow, RankState
from swtrace_tui.views.hosts import Entry, Note, entries, heading, scrolled_to, visible
from swtrace_tui.views.overview_charts import CHART_LEAST, charts
from swtrace_tui.views.view import Scene, View

_BAR = 6
_WINDOWS = 8
STATE_GLYPHS = {
    RankState.LIVE: "●",
    RankState.BEHIND: "»",
    RankState.JOINED: "◌",
    RankState.IDLE: "◍",
    RankState.CLOSED: "◇",
    RankState.ENDED: "○",
    RankState.DIED: "✗",
}
_BADGES_BY_KIND = {
    "died": "RANK DIED",
    "bypassed": "BYPASSED",
    "nothing": "NOTHING YET",
    "observed": "OBSERVED, NOT SHARED",
}
_BADGES = {Level.GOOD: "HIDDEN", Level.NOTE: "NOTHING YET", Level.WARNING: "PARTLY HIDDEN", Level.BAD: "NOT HIDDEN"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table."""

    title: str
    width: int
    rank: int
    """In a narrow terminal the columns with the highest number are dropped first."""
    sort: Callable[[RankRow], float | str]
    text: Callable[[RankRow], str]
    right: bool = True
    worst_first: bool = True


def _known(value: float | None) -> float:
    return -1.0 if value is None else float(value)


def _state_text(row: RankRow) -> str:
    since = f" {units.age(row.idle_ns)}" if row.state is RankState.IDLE else ""
    return f"{STATE_GLYPHS[row.state]} {row.state}{since}"


def _windows_text(row: RankRow) -> str:
    return "".join(WINDOW_GLYPHS[str(window.state)] for window in row.windows)


def _figure(
    title: str, width: int, rank: int, name: str, text: Callable[[float | None], str], *, worst: int = 1
) -> Column:
    """Return a column of a row's attribute ``name``; ``worst`` is -1 where the lowest value is the worst."""
    of = attrgetter(name)
    return Column(title, width, rank, lambda row: worst * _known(of(row)), lambda row: text(of(row)))


COLUMNS: tuple[Column, ...] = (
    Column("series", 18, 2, lambda row: row.series.name, lambda row: row.series.name, right=False, worst_first=False),
    Column("rank", 5, 0, lambda row: row.rank, lambda row: str(row.rank), worst_first=False),
    Column("host", 14, 9, attrgetter("host"), attrgetter("host"), right=False, worst_first=False),
    Column("pid", 8, 8, lambda row: int(row.pid or 0), attrgetter("pid"), worst_first=False),
    Column("state", 12, 1, lambda row: str(row.state), _state_text, right=False),
    _figure("step/s", 6, 3, "step_rate", units.rate),
    _figure("step", 7, 2, "step_ns", units.duration),
    _figure("stall ratio", _BAR + 7, 0, "recent.stall_ratio", units.ratio),
    _figure("effic.", 7, 2, "recent.efficiency", units.ratio, worst=-1),
    _figure("on time", 7, 3, "recent.on_time_rate", units.ratio, worst=-1),
    _figure("bandwidth", 10, 6, "recent.bandwidth", units.bandwidth, worst=-1),
    Column("lost", 5, 4, lambda row: row.lost, lambda row: units.count(row.lost)),
    Column("windows", _WINDOWS, 5, lambda row: len(row.windows), _windows_text, right=False),
    Column("stall ratio by step", 0, 7, lambda row: _known(row.recent.stall_ratio), lambda _row: ""),
)
_OF_SHARED = {"stall ratio", "effic.", "on time", "bandwidth", "windows", "stall ratio by step"}
"""Columns that say nothing about a series that is only observed."""
_TREND_MIN = 19
_STEP_MOST = 4
"""The most columns that one step takes in the trend."""
_GAP = 1
_SENTENCES = 6
"""Lines of sentences below which no gap follows them."""
_NARROW = 60
"""Columns below which a sentence continues below its badge."""


class Overview(View, view=OVERVIEW):
    """Verdict, table of ranks, charts."""

    def __init__(self) -> None:
        super().__init__()
        self._sort = "rank"
        self._reversed = False
        self._cursor: tuple[object, int] | None = None
        self._rows: list[RankRow] = []
        self._collapsed: set[tuple[str, str]] = set()
        """Places of the hosts that are shown in one line."""
        self._lines: list[Entry] = []
        self._shown: list[Entry] = []
        self._first_row = 0
        self._header: list[tuple[int, int, Column]] = []

    def draw(self, scene: Scene, width: int, height: int) -> list[Strip]:
        """Draw verdict, table, totals and charts."""
        palette, picture = scene.palette, scene.picture
        text = palette.style(palette.text)
        self._rows = self.ordered(picture.rows)
        self._lines = self._listed(picture)
        # Sentences get a third of the lines that the rows leave; all of them if that leaves no room for a chart.
        spare = height - len(self._lines) - 2
        tight = spare < _SENTENCES + 1
        most = min(8, (spare + 2) // 3)
        most = most if spare - most - 2 >= CHART_LEAST else spare - (not tight)
        lines = headline(scene, width, most=max(1, most))
        lines += [] if tight else [Line(width).strip(text)]
        columns = fitting(picture, width)
        lines.append(self._header_line(columns, width, palette))
        self._first_row = len(lines)
        room = max(1, height - len(lines) - 1)
        self._top = scrolled_to(self._at, self._top, room, self._lines)
        self._shown = visible(self._lines, self._top, room)
        top = max(0.1, max((max(row.stall_ratios, default=0.0) for row in self._rows), default=0.0))
        steps = max((len(row.stall_ratios) for row in self._rows), default=0)
        several = len(picture.series) > 1
        for entry in self._shown:
            selected = self._is_cursor(entry)
            if entry.host is None or entry.sticks:
                lines.append(_row_line(entry.rows[0], columns, width, palette, selected=selected, top=top, steps=steps))
            elif entry.collapsed:
                on = palette.selected if selected else palette.background
                notes = _notes(entry.host, palette, on, several=several)
                lines.append(heading(entry.host, width, palette, mark="▸", notes=notes, on=on))
            else:
                lines.append(heading(entry.host, width, palette, mark="▾"))
        hidden = ""
        if len(self._shown) < len(self._lines):
            what = "lines" if picture.hosts else "ranks"
            hidden = f"{what} {self._top + 1}-{self._top + len(self._shown)} of {len(self._lines)}   "
        lines.append(_totals_line(self._rows, hidden, width, palette))
        left = height - len(lines)
        if left > CHART_LEAST:
            lines.append(Line(width).strip(text))
            lines += charts(scene, width, left - 1)
        return lines

    def ordered(self, rows: tuple[RankRow, ...]) -> list[RankRow]:
        """Return the rows in the chosen order."""
        column = next(column for column in COLUMNS if column.title == self._sort)
        in_order = sorted(rows, key=lambda row: (row.series, row.rank))
        in_order.sort(key=column.sort, reverse=column.worst_first != self._reversed)
        return in_order

    def _listed(self, picture: Picture) -> list[Entry]:
        """Return the lines of the table: the host of the first row in the chosen order comes first."""
        ordered: dict[tuple[str, str], list[RankRow]] = {}
        for row in self._rows:
            ordered.setdefault(row.place, []).append(row)
        by_place = {host.place: host for host in picture.hosts}
        lines: list[Entry] = []
        for place, rows in ordered.items() if by_place else ():
            host = replace(by_place[place], rows=tuple(rows))
            lines += [Entry(rows, host, collapsed=True)] if place in self._collapsed else entries((), (host,))
        return lines or entries(self._rows, ())

    # -- keys and mouse ------------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        choices = [entry for entry in self._lines if entry.rows]
        if choices:
            at = next((i for i, entry in enumerate(choices) if self._is_cursor(entry)), -1 if by > 0 else 0)
            self._select(choices[max(0, min(len(choices) - 1, at + by))])

    def action_sort(self, by: int) -> None:
        """Sort by the column ``by`` columns further."""
        titles = [column.title for column in COLUMNS[:-2] if self._fits(column)]
        at = titles.index(self._sort) if self._sort in titles else 0
        self._sort, self._reversed = titles[(at + by) % len(titles)], False
        self.redraw()

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._reversed = not self._reversed
        self.redraw()

    def action_open(self) -> None:
        """Show the rank under the cursor in the timeline."""
        if self._chosen is not None:
            self.post_message(self.Open(rank=_stands_for(self._chosen).rank))

    def action_collapse(self) -> None:
        """Show the selected host in one line, or its ranks again."""
        if self._chosen is not None and self._chosen.host is not None:
            self._collapsed ^= {self._chosen.host.place}
            self.redraw()

    def action_collapse_all(self) -> None:
        """Show every host in one line, or all ranks again."""
        places = {entry.host.place for entry in self._lines if entry.host is not None}
        self._collapsed = set() if places <= self._collapsed else places
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        """Sort by a clicked header; select a clicked row, and open it on a second click; collapse or expand a host."""
        if event.y == self._first_row - 1:
            for begin, end, column in self._header:
                if begin <= event.x < end:
                    self._reversed = not self._reversed if column.title == self._sort else False
                    self._sort = column.title
                    self.redraw()
            return
        at = event.y - self._first_row
        if not 0 <= at < len(self._shown):
            return
        entry = self._shown[at]
        if entry.host is not None and not entry.sticks:
            self._collapsed ^= {entry.host.place}
            self.redraw()
        elif self._is_cursor(entry):
            self.action_open()
        else:
            self._select(entry)

    def on_mouse_scroll_down(self, _event: events.MouseScrollDown) -> None:
        """Move down."""
        self.action_move(1)

    def on_mouse_scroll_up(self, _event: events.MouseScrollUp) -> None:
        """Move up."""
        self.action_move(-1)

    # -- cursor and header -------------------------------------------------------------------------

    def _select(self, entry: Entry) -> None:
        row = _stands_for(entry)
        self._cursor = (row.series, row.rank)
        self.redraw()

    def _is_cursor(self, entry: Entry) -> bool:
        return any(self._cursor == (row.series, row.rank) for row in entry.rows)

    @property
    def _at(self) -> int | None:
        """The selected line; None if there is none."""
        return next((i for i, entry in enumerate(self._lines) if self._is_cursor(entry)), None)

    @property
    def _chosen(self) -> Entry | None:
        """The selected line, or the first one with ranks."""
        at = self._at
        return self._lines[at] if at is not None else next((entry for entry in self._lines if entry.rows), None)

    def _fits(self, column: Column) -> bool:
        return any(column is shown for _, _, shown in self._header)

    def _header_line(self, columns: list[tuple[Column, int]], width: int, palette: Palette) -> Strip:
        plain, chosen = palette.style(palette.dim), palette.style(palette.text, bold=True)
        line = Line(width).put(" ", plain)
        self._header = []
        for column, wide in columns:
            begin = line.used
            sorted_by = column.title == self._sort
            arrow = ("▾" if column.worst_first != self._reversed else "▴") if sorted_by else ""
            line.field(
                column.title + arrow, wide, chosen if sorted_by else plain, right=column.right and bool(column.width)
            )
            self._header.append((begin, line.used, column))
            line.put(" " * _GAP, plain)
        return line.strip(plain)


def fitting(picture: Picture, width: int) -> list[tuple[Column, int]]:
    """Return the columns that fit, with their widths; the trend takes the remaining width."""
    needless = {"host"} if picture.hosts else set()
    needless |= {"series"} if len(picture.series) == 1 else set()
    needless |= set() if any(series.facts.shared for series in picture.series) else _OF_SHARED
    columns = [column for column in COLUMNS if column.title not in needless]
    room = width - 1
    while sum(_wide(column) + _GAP for column in columns) > room and len(columns) > 2:  # noqa: PLR2004 - rank and stall
        columns.remove(max(columns, key=lambda column: column.rank))
    left = room - sum(column.width + _GAP for column in columns)
    return [(column, column.width or left) for column in columns]


def _wide(column: Column) -> int:
    return column.width or _TREND_MIN


def headline(scene: Scene, width: int, most: int) -> list[Strip]:
    """Return the verdict in at most ``most`` lines.

    Headlines come first, worst series first, then what their plans say, then other findings, worst first.
    Consequences are left out.
    """
    palette = scene.palette
    text = palette.style(palette.text)
    findings: list[tuple[str, Finding, bool]] = []
    several = len(scene.picture.series) > 1
    for series in sorted(scene.picture.series, key=lambda each: -each.stall_ratio):
        name = f"{series.key.name}: " if several else ""
        findings.append((name, series.headline, True))
        said = None if scene.diagnosis is None else scene.diagnosis.series.get(series.key)
        if said is not None:
            findings += [(name, finding, False) for finding in said.findings[1:] if not finding.consequence_of]
    findings.sort(key=lambda each: (not each[2], each[1].kind not in AsPlanned.kinds, -each[1].level))
    lines: list[Strip] = []
    for name, finding, first in findings:
        style = palette.levels[finding.level]
        badge = f" {badge_of(finding)} " if first else "· "
        hanging = len(badge) + 1 if first else 2
        indent = 0 if width < _NARROW else hanging
        sentence = name + (sentence_of(finding) if first else finding.sentence)
        rows = wrap(sentence, width - indent - 2, indent=hanging - indent, most=None if lines else most)
        if len(lines) + len(rows) > most:
            break
        for i, row in enumerate(rows):
            line = Line(width).put(" ", text)
            if i == 0 and first:
                line.put(badge, Style(color=style.color, reverse=True, bold=True, bgcolor=style.bgcolor))
                line.put(" ", text)
            elif i == 0:
                line.put(badge, style)
            else:
                line.to(1 + indent, text)
            lines.append(line.put(row, palette.style(palette.text, bold=first)).strip(text))
    return lines or [Line(width).put(" …", palette.style(palette.dim)).strip(text)]


def badge_of(finding: Finding) -> str:
    """Return the words before a headline."""
    return _BADGES_BY_KIND.get(finding.kind) or _BADGES[finding.level]


def sentence_of(headline: Finding) -> str:
    """Return a headline's sentence, without the words that its badge already says."""
    first, _, rest = headline.sentence.partition(": ")
    return rest[0].upper() + rest[1:] if rest and first.upper() == badge_of(headline) else headline.sentence


def _row_line(
    row: RankRow,
    columns: list[tuple[Column, int]],
    width: int,
    palette: Palette,
    *,
    selected: bool,
    top: float,
    steps: int,
) -> Strip:
    on = palette.selected if selected else palette.background
    text = palette.style(palette.text, on=on, bold=selected)
    line = Line(width).put(" ", text)
    for column, wide in columns:
        match column.title:
            case "state":
                line.field(column.text(row), wide, palette.style(_state_colour(row.state, palette), on=on))
            case "stall ratio":
                ratio = row.recent.stall_ratio
                colour = stall_colour(ratio, palette)
                done = bar(ratio or 0.0, _BAR)
                line.put(done, palette.style(colour, on=on))
                line.put("─" * (_BAR - len(done)), palette.style(palette.faint, on=on))
                line.field(column.text(row), wide - _BAR, palette.style(colour, on=on, bold=True), right=True)
            case "windows":
                _put_windows(line, row, wide, palette, on)
            case "lost":
                colour = palette.warning if row.lost else palette.dim
                line.field(column.text(row), wide, palette.style(colour, on=on), right=True)
            case "stall ratio by step":
                colour = stall_colour(row.recent.stall_ratio, palette)
                columns_each = max(1, min(_STEP_MOST, wide // max(1, steps)))
                ratios = [ratio for ratio in row.stall_ratios for _ in range(columns_each)]
                line.put(sparkline(ratios, wide, top), palette.style(colour, on=on))
            case _:
                line.field(column.text(row), wide, text, right=column.right)
        line.put(" " * _GAP, text)
    return line.strip(text)


def _stands_for(entry: Entry) -> RankRow:
    """Return the row of a line; of a collapsed host, the one that stalls most."""
    return entry.host.most_stalled if entry.host is not None and entry.collapsed else entry.rows[0]


def _notes(host: Host, palette: Palette, on: str, *, several: bool) -> list[Note]:
    """Return what a collapsed host says about its ranks: those that do not run, and the one that stalls most."""
    states = Counter(state for _, state in {(row.rank, row.state) for row in host.rows})
    notes = [
        Note((f"{ranks} {state}",), palette.style(_state_colour(state, palette), on=on))
        for state, ranks in states.items()
        if state is not RankState.LIVE
    ]
    worst = host.most_stalled
    ratio = worst.recent.stall_ratio
    name = f"rank {worst.rank}{f' of {worst.series.name}' if several else ''}"
    stalled = units.ratio(ratio)
    texts = (f"{name} stalls most: {stalled}", f"rank {worst.rank} {stalled}", stalled)
    return [*notes, Note(texts if ratio is not None else (), palette.style(stall_colour(ratio, palette), on=on))]


def _put_windows(line: Line, row: RankRow, wide: int, palette: Palette, on: str) -> None:
    shown = row.windows[: wide if len(row.windows) <= wide else wide - 1]
    for window in shown:
        state = str(window.state)
        line.put(WINDOW_GLYPHS[state], palette.style(palette.window(state), on=on))
    rest = "…" if len(row.windows) > wide else ""
    line.field(rest, wide - len(shown), palette.style(palette.dim, on=on))


def _totals_line(rows: list[RankRow], hidden: str, width: int, palette: Palette) -> Strip:
    dim, text = palette.style(palette.dim), palette.style(palette.text)
    line = Line(width).put(" ", dim).put(hidden, palette.style(palette.note))
    shared = any(row.facts.info.shared for row in rows)
    moved = sum(row.facts.totals.bytes for row in rows)
    holding = [row.facts for row in rows if row.state is not RankState.CLOSED]
    held = sum(facts.held_bytes for facts in holding)
    replicated = sum(facts.info.replicated_bytes for facts in holding)
    steps = _steps_of_all(rows, lambda row: row.facts.totals.steps)
    untimed = _steps_of_all(rows, lambda row: sum(row.facts.totals.untimed_steps.values()))
    lost = sum({row.rank: row.lost for row in rows}.values())
    ranks = {row.observed.key: row.observed for row in rows if row.observed is not None}.values()
    written, before = sum(rank.ring.statistics.written for rank in ranks), sum(rank.before for rank in ranks)
    for name, value in (
        ("steps", units.count(steps)),
        *((("untimed", units.count(untimed)),) if untimed else ()),
        ("held", units.size(held)),
        *((("instead of", units.size(replicated)), ("moved", units.size(moved))) if shared else ()),
        ("records", units.count(written)),
        ("lost", units.count(lost)),
        *((("before this view", units.count(before)),) if before else ()),
    ):
        if line.room > len(name) + len(value) + 3:
            line.put(f"{name} ", dim).put(
                f"{value}   ", text if name != "lost" or not lost else palette.style(palette.warning)
            )
    return line.strip(dim)


def _steps_of_all(rows: list[RankRow], of: Callable[[RankRow], int]) -> int:
    """Return the number of steps of the series with most. The ranks of a pull series have steps of their own."""
    together: dict[object, int] = {}
    for row in rows:
        known = together.get(row.series, 0)
        together[row.series] = max(known, of(row)) if row.facts.info.lockstep else known + of(row)
    return max(together.values(), default=0)


def stall_colour(ratio: float | None, palette: Palette) -> str:
    """Return the colour that a stall ratio is shown in."""
    if ratio is None:
        return palette.dim
    return palette.good if ratio < HIDDEN_BELOW else palette.bad if ratio > STALLED_ABOVE else palette.warning


def _state_colour(state: RankState, palette: Palette) -> str:
    return {
        RankState.LIVE: palette.good,
        RankState.BEHIND: palette.note,
        RankState.JOINED: palette.note,
        RankState.IDLE: palette.warning,
        RankState.CLOSED: palette.dim,
        RankState.ENDED: palette.dim,
        RankState.DIED: palette.bad,
    }[state]
