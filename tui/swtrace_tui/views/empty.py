"""What to say when there is nothing to show: why, and what to do next."""

from __future__ import annotations

import textwrap

from textual.strip import Strip

from swtrace.observing import Link
from swtrace_tui.canvas import Line, wrap
from swtrace_tui.palette import Palette
from swtrace_tui.picture import Picture


def advice(picture: Picture, *, screen: bool = True) -> list[tuple[str, str]]:
    """Return lines as ``(kind, text)``; kinds are title, text, command, problem and nothing.

    Args:
        picture: What there is.
        screen: It is shown by a screen that has keys and changes; otherwise it is printed once.
    """
    seen = picture.observation
    lost = [origin for origin in seen.origins if origin.link is Link.LOST]
    problems = [("problem", f"{origin.name}: {origin.detail}") for origin in seen.origins if origin.detail]
    if picture.unmatched:
        keys = [("text", "Press Esc to show everything again, R for another run.")] if screen else []
        return [("title", "Nothing matches the filter."), ("problem", picture.unmatched), *keys]
    others = [run for run in picture.runs if run != picture.run]
    choose = "Press R to show one." if screen else "--run shows one."
    other_runs = [("", ""), ("text", f"There are other runs: {', '.join(others)}. {choose}")] if others else []
    if lost and not seen.ranks:
        return [
            ("title", "No answer yet."),
            *problems,
            ("", ""),
            ("text", "It is asked again every second. On the host of the ranks, start a daemon:"),
            ("command", "swtrace daemon --listen 0.0.0.0:9465"),
            ("text", "or watch this host's own rings, without a daemon:"),
            ("command", "swtrace top"),
        ]
    of_run = [rank for rank in seen.ranks if rank.identity.run_id == picture.run]
    refused = sorted({(info.name, info.refused) for view in of_run for info in view.series if info.refused})
    if refused:
        return [
            ("title", f"Run {picture.run} shares nothing."),
            *(("problem", f"{name}: {reason}") for name, reason in refused),
            ("", ""),
            ("text", "What would share it, and what else this machine lacks:"),
            ("command", "swtrace doctor"),
            *other_runs,
        ]
    if of_run:
        then = " This screen changes by itself then." if screen else ""
        count = "1 rank is" if len(of_run) == 1 else f"{len(of_run)} ranks are"
        return [
            ("title", f"{count} there; none has made its series yet."),
            ("text", f"A series is made when the model's weights are loaded.{then}"),
            *problems,
            *other_runs,
        ]
    where = ", ".join(origin.name for origin in seen.origins)
    return [
        ("title", "Nothing to watch yet."),
        ("text", f"No ring in {where}.{' This screen changes by itself when a rank makes one.' if screen else ''}"),
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


def continued(command: str, width: int) -> list[str]:
    """Return a command in lines of at most ``width`` columns, as a shell reads them; a longer word stays whole."""
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
