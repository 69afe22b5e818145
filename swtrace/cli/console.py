"""Where output goes: stdout carries only data, stderr tells people what happens."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

PIPE_WIDTH = 100
"""Columns where there is no terminal: wide enough for every table."""


def narration() -> Console:
    """Return a console on stderr, for progress, warnings and summaries."""
    return _console(stderr=True)


def data() -> Console:
    """Return a console on stdout, for the data a command prints."""
    return _console(stderr=False)


def missing_screen() -> str:
    """Return why a full screen cannot be shown here, after the name of a command; empty if it can."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "needs a terminal"
    term = os.environ.get("TERM")
    return f"cannot draw in this terminal (TERM={term})" if term in {"dumb", "unknown"} else ""


def write_json(document: object, path: Path | None = None) -> None:
    """Write ``document`` as indented JSON to ``path``, or to stdout."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if path is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        path.write_text(text, encoding="utf-8")


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else PIPE_WIDTH)


def table(*columns: str, caption: str | None = None, padding: tuple[int, int] = (0, 1)) -> Table:
    """Return an empty table in the layout that all commands share."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=padding, collapse_padding=True)
    made.caption, made.caption_justify = caption, "left"
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made
