"""What to say when there is nothing to show: why, and what to do next."""

from __future__ import annotations

import textwrap

from textual.strip import Strip

from swtrace.ledger.facts import SeriesKey
from swtrace_tui.canvas import Line
from swtrace_tui.palette import Palette
from swtrace_tui.picture import Picture, phase_of
from swtrace_tui.snapshot import Link


def advice(picture: Picture) -> list[tuple[str, str]]:
    """Return lines as ``(kind, text)``; kinds are title, text, command, problem and nothing."""
    snapshot = picture.snapshot
    lost = [source for source in snapshot.sources if source.link is Link.LOST]
    problems = [("problem", f"{source.name}: {source.detail}") for source in snapshot.sources if source.detail]
    if missing := unmatched(picture):
        esc = "Press Esc to show every series, rank and phase again."
        return [("title", "Nothing matches the selection."), ("text", missing), ("text", esc), *problems]
    if picture.series:
        return [("title", "No step has finished yet."), *problems]
    if lost and not snapshot.ranks:
        return [
            ("title", "No answer yet."),
            *problems,
            ("", ""),
            ("text", "It is asked again every second. On the host of the ranks, start a daemon:"),
            ("command", "swtrace daemon --listen 0.0.0.0:9465"),
            ("text", "or watch this host's own rings, without a daemon:"),
            ("command", "swtrace top"),
        ]
    refused = sorted({(info.name, info.refused) for view in snapshot.ranks for info in view.series if info.refused})
    if refused:
        return [
            ("title", "Nothing is shared."),
            *(("problem", f"{name}: {reason}") for name, reason in refused),
            ("", ""),
            ("text", "What would share it, and what else this machine lacks:"),
            ("command", "swtrace doctor"),
        ]
    if snapshot.ranks:
        return [
            ("title", f"{len(snapshot.ranks)} ranks are there; none has made its series yet."),
            ("text", "A series is made when the model's weights are loaded. This screen changes by itself then."),
            *problems,
        ]
    where = ", ".join(source.name for source in snapshot.sources)
    return [
        ("title", "Nothing to watch yet."),
        ("text", f"No ring in {where}. This screen changes by itself when a rank makes one."),
        *problems,
        ("", ""),
        ("text", "See a series at work on this machine, in another terminal:"),
        ("command", f"SWTRACE_DIR={where} swtrace demo --scenario stalled"),
        ("text", "Trace your own model:"),
        ("command", "swtrace run -- vllm serve MODEL"),
        ("text", "Ranks elsewhere? Watch another folder, or daemons on other hosts:"),
        ("command", "swtrace top --dir FOLDER"),
        ("command", "swtrace top --connect HOST:9465"),
        ("text", "Expected ranks here, and see none? This says what is missing:"),
        ("command", "swtrace doctor"),
    ]


def unmatched(picture: Picture) -> str:
    """Return which part of the selection matches nothing, and what there is; empty where everything matches."""
    selection = picture.selection
    if picture.snapshot.ranks and picture.run not in picture.runs:
        return f"There is no run {picture.run}; there are: {', '.join(picture.runs)}."
    if picture.all_series and not picture.series:
        names = sorted({key.name for key in picture.all_series})
        return f"There is no series {_name(selection.series)} in run {picture.run}; there are: {', '.join(names)}."
    if picture.series and not picture.rows:
        ranks = sorted({rank for series in picture.series for rank in series.key.group_ranks})
        return f"There is no rank {selection.rank} in these series; there are: {', '.join(map(str, ranks))}."
    return _unmatched_phase(picture)


def _unmatched_phase(picture: Picture) -> str:
    phase, history = picture.selection.phase, picture.snapshot.history
    steps = [step for series in picture.series for step in history.get(series.key, ())]
    if phase is None or not steps or any(series.steps for series in picture.series):
        return ""
    there = ", ".join(seen.name.lower() for seen in sorted({phase_of(step) for step in steps}))
    return f"None of the last steps is of phase {phase.name.lower()}; they are of: {there}."


def _name(series: SeriesKey | str | None) -> str:
    return series.name if isinstance(series, SeriesKey) else str(series)


def continued(command: str, width: int) -> list[str]:
    """Return a command in lines of at most ``width`` columns, as a shell reads them; a longer word stays whole."""
    rows = textwrap.wrap(command, max(8, width - 2), break_long_words=False, break_on_hyphens=False)
    return [*(f"{row} \\" for row in rows[:-1]), *rows[-1:]] if len(command) > width else [command]


def empty_state(picture: Picture, palette: Palette, width: int) -> list[Strip]:
    """Return the advice as lines."""
    from swtrace_tui.views.view import wrap

    text = palette.style(palette.text)
    styles = {
        "title": palette.style(palette.note, bold=True),
        "text": text,
        "command": palette.style(palette.good),
        "problem": palette.style(palette.warning),
        "": text,
    }
    strips = [Line(width).strip(text)]
    for kind, words in advice(picture):
        indent = 6 if kind == "command" else 3
        rows = continued(words, width - 2 * indent) if kind == "command" else wrap(words, width - 2 * indent)
        strips += [Line(width).to(indent, text).put(row, styles[kind]).strip(text) for row in rows]
        if kind == "title":
            strips.append(Line(width).strip(text))
    return strips
