"""``swtrace report FILE -o report.html``: a recorded run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from swtrace import units
from swtrace.cli.arguments import Force, file_option, refuse_existing, refuse_own_input
from swtrace.cli.console import narration
from swtrace.cli.recorded import WARMUP, Files, Salvage, Steps, Warmup, step_range
from swtrace.cli.signals import exit_in_order


def report(
    files: Files,
    *,
    output: Annotated[Path, file_option("--output", "-o", text="HTML file to write.")] = Path("swtrace-report.html"),
    steps: Steps = None,
    warmup: Warmup = WARMUP,
    salvage: Salvage = False,
    force: Force = False,
) -> None:
    """Write an HTML page about a recording: verdicts, step time and stall, heat map, slack, the slowest steps.

    Every part covers the same steps, as selected by --steps and --warmup. The page is a single file that needs no
    network, is readable on a phone and on paper, and explains the words that it uses.
    """
    from swtrace.export.files import opened
    from swtrace.report.page import page
    from swtrace.selection import Selection
    from swtrace.session import RecordingSession

    exit_in_order()
    refuse_own_input(output, files)
    refuse_existing(output, force=force)
    wanted = Selection(steps=step_range(steps), warmup=warmup)
    with RecordingSession(files, salvage=salvage) as session:
        text = page(session, wanted).encode()
    with opened(output) as out:
        out.write(text)
    narration().print(f"Wrote {units.size(len(text))} to {output}", soft_wrap=True, markup=False)
