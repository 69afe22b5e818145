"""What a plan is calibrated on: the finished steps of one run, from a recording, local rings or daemons."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.observing import Link, Observation, Origin, Roster
from swtrace.recording import Recording
from swtrace.recording.replay import Replay
from swtrace.recording.selected import SelectedSteps
from swtrace.selection import Selection

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Source:
    """The series of one run, with the steps that were selected."""

    name: str
    """Where the steps come from, in words."""
    run_id: str
    other_runs: tuple[str, ...]
    model: str
    series: tuple[tuple[SeriesFacts, tuple[StepFacts, ...]], ...]
    """Steps are oldest first."""
    refused: Mapping[str, str]
    """Why something that was asked for is not shared, by its name."""
    notes: tuple[str, ...]
    """What is missing from the source."""


def from_recording(paths: Sequence[Path], selection: Selection, run_id: str | None, *, salvage: bool) -> Source:
    """Read a recording.

    Raises:
        CommandError: it has no such run, or no finished step.
        EmptySelectionError: no step is selected.
        RecordingFormatError: it cannot be read.
    """
    name = ", ".join(path.name for path in paths)
    with Recording.open(paths, salvage=salvage) as recording, Roster(Replay(recording), keep_steps=True) as roster:
        selected = SelectedSteps(selection)
        for _ in selected.among(roster.steps()):
            pass
        return _source(name, roster.observe(), selected, run_id, tuple(recording.missing().sentences))


def from_live(origin: Origin, name: str, selection: Selection, run_id: str | None, *, wait_s: float = 0.0) -> Source:
    """Read what the rings of this host, or of daemons' hosts, hold.

    Raises:
        CommandError: a daemon does not answer, or there is no such run, or no finished step.
        EmptySelectionError: no step is selected.
    """
    with Roster(origin, keep_steps=True) as roster:
        selected = SelectedSteps(selection)
        for _ in selected.among(_steps(roster, wait_s)):
            pass
        seen = roster.observe()
        if seen.silent:
            raise CommandError(f"no answer within {wait_s:g} s from {', '.join(seen.silent)}; wait longer with --wait")
        return _source(name, seen, selected, run_id, tuple(seen.problems.values()))


def _steps(roster: Roster, wait_s: float) -> Iterator[StepFacts]:
    """Yield the steps that are finished by now, once every origin has sent all that it has."""
    deadline = time.monotonic() + wait_s
    while True:
        yield from roster.steps()
        seen = roster.observe()
        connecting = any(origin.link is Link.CONNECTING for origin in seen.origins)
        if (seen.caught_up and not connecting and seen.ranks) or time.monotonic() >= deadline:
            return
        time.sleep(_POLL_S)


def _source(
    name: str, seen: Observation, selected: SelectedSteps, run_id: str | None, notes: tuple[str, ...]
) -> Source:
    began: dict[str, int] = {}
    for rank in seen.ranks:
        began[rank.identity.run_id] = max(began.get(rank.identity.run_id, 0), rank.identity.start_time_ns)
    if run_id is not None and run_id not in began:
        raise CommandError(
            f"no run {run_id!r} in {name}; known are: {', '.join(sorted(began)) or 'none'}", ExitCode.USAGE
        )
    if not began:
        raise CommandError(f"no rank was found in {name}; {_NO_RANK}")
    # The newest run that has steps, else the newest: a run that is just starting must not hide the one before it.
    with_steps = {series.key.run_id for series in seen.facts.series if selected.history(series.key)}
    chosen = run_id if run_id is not None else max(began, key=lambda run: (run in with_steps, began[run]))
    ranks = [rank for rank in seen.ranks if rank.identity.run_id == chosen]
    refused = {info.name: info.refused for rank in ranks for info in rank.series if info.refused}
    series = tuple(
        (facts, selected.history(facts.key))
        for facts in seen.facts.series
        if facts.key.run_id == chosen and facts.ranks
    )
    if not any(steps for _, steps in series):
        reasons = "".join(f"; {of} is not shared: {why}" for of, why in refused.items())
        found = "no finished step" if series else "no series"
        raise CommandError(f"{found} in {name}{reasons}; {_NO_STEP}")
    return Source(
        name=name,
        run_id=chosen,
        other_runs=tuple(sorted(set(began) - {chosen})),
        model=next((rank.identity.model for rank in ranks if rank.identity.model), ""),
        series=series,
        refused=refused,
        notes=notes,
    )


_NO_RANK = (
    "start your model with SWTRACE=1 (SWTRACE_SHARE=none only watches it), or name a recording: swtrace plan FILE"
)
_NO_STEP = "let the run finish some steps first, with SWTRACE_SHARE=none if it cannot share"
