"""The advice that a view shows when it has no data: why, and what to do next."""

from __future__ import annotations

import textwrap

from textual.strip import Strip

from swtrace.observing import Link
from swtrace.units import counted
from swtrace_tui.canvas import Line, wrap
from swtrace_tui.palette import Palette
from swtrace_tui.picture import Picture


def advice(picture: Picture, *, screen: bool = True) -> list[tuple[str, str]]:
    """Return lines as ``(kind, text)``; the kind is title, text, command, problem or empty.

    Args:
        picture: What is known.
        screen: Whether a screen shows it, with keys and updates; otherwise it is printed once.
    """
    seen = picture.observation
    lost = [origin for origin in seen.origins if origin.link is Link.LOST]
    problems = [("problem", f"{origin.name}: {origin.detail}") for origin in seen.origins if origin.detail]
    if picture.unmatched:
        keys = [("text", "Press Esc to clear the filter, R for another run.")] if screen else []
        return [("title", "Nothing matches the filter."), ("problem", picture.unmatched), *keys]
    others = [run for run in picture.runs if run != picture.run]
    choose = "Press R to show one." if screen else "--run shows one."
    other_runs = [("", ""), ("text", f"There are other runs: {', '.join(others)}. {choose}")] if others else []
    if lost and not seen.ranks:
        retrying = "swtrace asks again every second. " if screen else ""
        return [
            ("title", "No answer yet."),
            *problems,
            ("", ""),
            ("text", f"{retrying}If the host of the ranks has no daemon, start one:"),
            ("command", "swtrace daemon --listen 0.0.0.0:9465 --web-config FILE"),
            ("text", "Or watch the rings of this host, without a daemon:"),
            ("command", "swtrace top"),
        ]
    connecting = [origin.name for origin in seen.origins if origin.link is Link.CONNECTING]
    if connecting and not seen.ranks:
        then = "This screen updates when it does." if screen else "Wait longer with --wait."
        return [
            ("title", "No answer yet."),
            ("text", f"{', '.join(connecting)} has not reported all its ranks. {then}"),
            *problems,
        ]
    of_run = [rank for rank in seen.ranks if rank.identity.run_id == picture.run]
    refused = sorted({(info.name, info.refused) for view in of_run for info in view.series if info.refused})
    if refused:
        return [
            ("title", f"Run {picture.run} shares nothing."),
            *(("problem", f"{name}: {reason}") for name, reason in refused),
            ("", ""),
            ("text", "Run this to see what this machine lacks and how to fix it:"),
            ("command", "swtrace doctor"),
            *other_runs,
        ]
    if of_run:
        then = " This screen then updates." if screen else ""
        count = counted(len(of_run), "rank")
        return [
            ("title", f"{count} found, but no series yet."),
            ("text", f"The series appears once the model's weights are loaded.{then}"),
            *problems,
            *other_runs,
        ]
    where = ", ".join(origin.name for origin in seen.origins)
    return [
        ("title", "Nothing to watch yet."),
        ("text", f"No ring in {where}.{' This screen updates when a rank creates one.' if screen else ''}"),
        *problems,
        ("", ""),
        ("text", "To see a series at work, run this in another terminal:" if screen else "To see a series at work:"),
        ("command", f"SWTRACE_DIR={where} swtrace demo --scenario stalled"),
        ("text", "To trace your own model:"),
        ("command", "swtrace run -- vllm serve MODEL"),
        ("text", "To watch another folder, or daemons on other hosts:"),
        ("command", "swtrace top --dir FOLDER"),
        ("command", "swtrace top --connect HOST:9465"),
        ("text", "If ranks should be here, find out what is missing:"),
        ("command", "swtrace doctor"),
    ]


def continued(command: str, width: int) -> list[str]:
    """Return a command as shell lines of at most ``width`` columns; a longer word stays whole."""
    rows = textwrap.wrap(command, max(8, width - 2), break_long_words=False, break_on_hyphens=False)
    return [*(f"{row} \\" for row in rows[:-1]), *rows[-1:]] if len(command) > width else [command]


def empty_state(picture: Picture, palette: Palette, width: int) -> list[Strip]:
    """Return the advice as lines."""
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
