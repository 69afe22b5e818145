"""Ranks of several hosts: the ranks of each host follow its heading, which stays on the screen while they scroll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.style import Style
from textual.strip import Strip

from swtrace.units import counted
from swtrace_tui.canvas import Line, clip
from swtrace_tui.palette import Palette
from swtrace_tui.picture import Host, RankRow

_WIDEST_NAME = 32
_GAP = "  "


class Entry(NamedTuple):
    """A line of ranks, or the heading of a host."""

    rows: Sequence[RankRow]
    """The ranks; none in a heading."""
    host: Host | None = None
    """Their host; None if all ranks are on one host, which has no heading."""
    collapsed: bool = False
    """Whether the line stands for all ranks of the host."""

    @property
    def sticks(self) -> bool:
        """Whether the heading above it must be visible."""
        return self.host is not None and bool(self.rows) and not self.collapsed


def entries(rows: Sequence[RankRow], hosts: Sequence[Host], per_line: int = 1) -> list[Entry]:
    """Return headings and lines of ``per_line`` ranks; only lines of ranks if there are no hosts."""
    runs: list[tuple[Host | None, Sequence[RankRow]]] = [(host, host.rows) for host in hosts] or [(None, rows)]
    return [
        entry
        for host, of in runs
        for entry in (
            *([Entry((), host)] if host is not None else ()),
            *(Entry(of[at : at + per_line], host) for at in range(0, len(of), per_line)),
        )
    ]


def scrolled_to(at: int | None, top: int, room: int, lines: Sequence[Entry]) -> int:
    """Return the first of ``room`` lines so that line ``at`` is visible, changed from ``top`` as little as possible."""
    if at is not None:
        top = min(max(top, at - room + 1), at - (room > 1 and lines[at].sticks))
    return max(0, min(top, len(lines) - room))


def visible(lines: Sequence[Entry], top: int, room: int) -> list[Entry]:
    """Return ``room`` lines from ``top`` on. If they begin within a host, its heading replaces the first one."""
    shown = list(lines[top : top + room])
    if len(shown) > 1 and shown[0].sticks:
        shown[0] = Entry((), shown[0].host)
    return shown


class Note(NamedTuple):
    """Something that a heading says; the first of its texts that fits is shown."""

    texts: tuple[str, ...]
    style: Style


def heading(
    host: Host,
    width: int,
    palette: Palette,
    *,
    mark: str = "",
    notes: Sequence[Note] = (),
    on: str | None = None,
) -> Strip:
    """Return a line with the name of a host, its number of ranks and its clock, as far as there is room.

    Args:
        host: The host.
        width: Columns.
        palette: Colours.
        mark: Symbol before the name.
        notes: What comes before the clock. The line then has no rule.
        on: Background.
    """
    dim = palette.style(palette.dim, on=on)
    line = Line(width).put(f" {mark} " if mark else " ", dim)
    line.put(clip(host.name, min(_WIDEST_NAME, width // 2)), palette.style(palette.text, on=on, bold=True))
    clock = Note((host.clock, host.clock.partition(" by ")[0]), dim)
    for note in (Note((counted(host.ranks, "rank"),), dim), *notes, clock):
        text = next((text for text in note.texts if len(_GAP) + len(text) <= line.room), "")
        line.put(_GAP if text else "", dim).put(text, note.style)
    if not notes:
        line.put(" ", dim).put("─" * (line.room - 1), palette.style(palette.faint, on=on))
    return line.strip(dim)
