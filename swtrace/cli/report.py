"""``swtrace report FILE -o report.html``: a recorded run as one page, to send to somebody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swtrace.cli import units
from swtrace.cli.console import narration
from swtrace.cli.exit_codes import CommandError
from swtrace.cli.recorded import Files, Salvage


def report(
    files: Files,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to make.", metavar="FILE")] = Path(
        "swtrace-report.html"
    ),
    salvage: Salvage = False,
) -> None:
    """Make a page of a recording: verdicts, step time and stall, heat map, slack, the slowest steps.

    One file that needs no network, readable on a phone and on paper.
    """
    from swtrace.report.page import page
    from swtrace.session import RecordingSession

    with RecordingSession(files, salvage=salvage) as session:
        text = page(session)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{output}: {error.strerror}") from error
    narration().print(f"swtrace: {output}, {units.size(len(text.encode()))}", soft_wrap=True)
