"""``swtrace stats FILE``: summarise a recorded run, as ``swtrace run`` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace import units
from swtrace.cli.arguments import file_option
from swtrace.cli.console import data, narration, write_json
from swtrace.cli.exit_codes import CommandError
from swtrace.cli.recorded import (
    WARMUP,
    Files,
    Salvage,
    Steps,
    Warmup,
    described,
    print_missing,
    step_range,
)
from swtrace.trace.identity import H2D

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swtrace.cli.summary import Summary
    from swtrace.profile import Profile, Timing


def stats(
    files: Files,
    *,
    steps: Steps = None,
    warmup: Warmup = WARMUP,
    salvage: Salvage = False,
    profile: Annotated[
        Path | None,
        file_option(
            "--profile", text="Compare the copies of offloaded layers with those that `swtrace probe` measured."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Summarise a recording: the tables and the verdict of `swtrace run`, over all steps after warm-up."""
    from dataclasses import asdict, replace

    from swtrace.cli.summary import summarise
    from swtrace.cli.summary_text import print_summary
    from swtrace.profile import Profile
    from swtrace.recording.selected import SelectedSteps
    from swtrace.selection import Selection
    from swtrace.session import RecordingSession

    measured = None if profile is None else Profile.read(profile)
    fastest = None if measured is None else _fastest_copies(measured, profile)
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
                "h2d_limit_bytes_per_second": None if fastest is None else fastest.bytes_per_second,
            }
            write_json(document)
            return
        console = data()
        console.print(described(recording, len(session.identities())))
        print_summary(summary, console, over=f"the {{steps}} steps {selected}".rstrip())
        if measured is not None and fastest is not None:
            for sentence in _compared(summary, measured, fastest):
                console.print(sentence, markup=False, soft_wrap=True)
        if selected.coverage_note():
            console.print(selected.coverage_note(), soft_wrap=True)
        print_missing(recording, narration())


def _fastest_copies(profile: Profile, path: Path | None) -> Timing:
    """Return the copies from host memory to devices that a profile has, of the size that moves most per second.

    Raises:
        CommandError: it has none.
    """
    copies = profile.of(H2D, 1, computing=False)
    if not copies:
        raise CommandError(
            f"{path} has no copies from host memory (h2d); run `swtrace probe` again on a host whose GPUs torch sees"
        )
    return max(copies, key=lambda timing: timing.bytes_per_second)


def _compared(summary: Summary, profile: Profile, fastest: Timing) -> Iterator[str]:
    """Yield how fast each rank's copies of offloaded layers are, compared with the fastest that were probed."""
    ranks = [(series, rank) for series in summary.series if series.kind == H2D for rank in series.ranks]
    if not ranks:
        yield "--profile was not used: the recording has no series that copies layers from host memory."
    at_once = f", {fastest.ranks} GPUs at once" if fastest.ranks > 1 else ""
    for series, rank in ranks:
        if rank.bandwidth_bytes_per_second is None:
            continue
        yield (
            f"Copies of {series.name} reach {units.bandwidth(rank.bandwidth_bytes_per_second)} on rank {rank.rank}, "
            f"{units.ratio(rank.bandwidth_bytes_per_second / fastest.bytes_per_second)} of the "
            f"{units.bandwidth(fastest.bytes_per_second)} that `swtrace probe` measured on "
            f"{', '.join(profile.hosts)}{at_once}."
        )
