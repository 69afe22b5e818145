"""``swtrace stats FILE``: what a recorded run amounts to, as ``swtrace run`` would have said it."""

from __future__ import annotations

from typing import Annotated

import typer

from swtrace.cli.console import data, narration, write_json
from swtrace.cli.recorded import Files, Salvage, described, opened, say_missing, statuses


def stats(
    files: Files,
    *,
    salvage: Salvage = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Sum up a recording: tables and verdict, the same as at the end of the run."""
    from dataclasses import asdict

    from swtrace.cli.summary import summarise
    from swtrace.cli.summary_text import print_summary
    from swtrace.recording.replay import replay

    with opened(files, salvage=salvage) as recording:
        replayed = replay(recording)
        ledger = replayed.ledger
        summary = summarise(ledger.facts(), statuses(replayed, recording.paths[0]), ledger.history)
        if as_json:
            document = {
                "recording": {**asdict(recording.about), "missing": asdict(recording.missing())},
                "summary": summary.to_json(),
            }
            write_json(document)
            return
        console = data()
        console.print(described(recording, len(replayed.identities)))
        print_summary(summary, console)
        say_missing(recording, narration())
