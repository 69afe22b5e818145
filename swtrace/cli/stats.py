"""``swtrace stats FILE``: summarise a recorded run, as ``swtrace run`` does."""

from __future__ import annotations

from typing import Annotated

import typer

from swtrace.cli.console import data, narration, write_json
from swtrace.cli.recorded import (
    WARMUP,
    Files,
    Salvage,
    Steps,
    Warmup,
    described,
    say_missing,
    step_range,
)


def stats(
    files: Files,
    *,
    steps: Steps = None,
    warmup: Warmup = WARMUP,
    salvage: Salvage = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Summarise a recording: the tables and the verdict of `swtrace run`, over all steps after warm-up."""
    from dataclasses import asdict, replace

    from swtrace.cli.summary import summarise
    from swtrace.cli.summary_text import print_summary
    from swtrace.recording.selected import SelectedSteps
    from swtrace.selection import Selection
    from swtrace.session import RecordingSession

    selected = SelectedSteps(Selection(steps=step_range(steps), warmup=warmup))
    with RecordingSession(files, salvage=salvage) as session:
        for _ in selected.among(session.steps()):
            pass
        recording, seen = session.recording, session.observe()
        facts = selected.facts(seen.facts)
        histories = {series.key: selected.history(series.key) for series in facts.series}
        summary = summarise(replace(seen, facts=facts, history=histories))
        if as_json:
            document = {
                "recording": {**asdict(recording.about), "missing": asdict(recording.missing())},
                "steps": {"selected": steps, "warmup": warmup, "note": selected.coverage_note()},
                "summary": summary.to_json(),
            }
            write_json(document)
            return
        console = data()
        console.print(described(recording, len(session.identities())))
        print_summary(summary, console, over=f"the {{steps}} steps {selected}".rstrip())
        if selected.coverage_note():
            console.print(selected.coverage_note(), soft_wrap=True)
        say_missing(recording, narration())
