"""``swtrace report FILE -o report.html``: a recorded run as one page, to send to somebody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swtrace.cli import units
from swtrace.cli.console import narration
from swtrace.cli.exit_codes import CommandError
from swtrace.cli.recorded import WARMUP, Files, Salvage, Steps, Warmup, step_range


def report(
    files: Files,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to make.", metavar="FILE")] = Path(
        "swtrace-report.html"
    ),
    steps: Steps = None,
    warmup: Warmup = WARMUP,
    salvage: Salvage = False,
) -> None:
    """Make a page of a recording: verdicts, step time and stall, heat map, slack, the slowest steps.

    All of it is over the same steps: those that --steps and --warmup leave. One file that needs no network, readable
    on a phone and on paper.
    """
    from swtrace.report.page import page
    from swtrace.selection import Selection
    from swtrace.session import RecordingSession

    wanted = Selection(steps=step_range(steps), warmup=warmup)
    with RecordingSession(files, salvage=salvage) as session:
        text = page(session, wanted)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{output}: {error.strerror}") from error
    narration().print(f"swtrace: {output}, {units.size(len(text.encode()))}", soft_wrap=True, markup=False)
