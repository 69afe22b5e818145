"""``swtrace diagnose [FILE]``: what is wrong, who, since when, what to do, and what that would save."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace.cli.arguments import (
    CaOption,
    CertOption,
    KeyOption,
    PasswordFileOption,
    UserOption,
    credentials,
    exclusive,
    run_option,
    wait_option,
)
from swtrace.cli.console import data, narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.live import live
from swtrace.cli.recorded import FilesOrRings, Salvage, opened
from swtrace.cli.ring_folder import FolderOption

if TYPE_CHECKING:
    from swtrace.diagnosis.diagnosis import Diagnosis
    from swtrace.diagnosis.stacks import RankStacks
    from swtrace.observing import Observation, Roster

_POLL_S = 0.05
_AGAIN_S = 1.0
"""How often ``--watch`` looks again."""
_SHORTEST_S = 0.25


def diagnose(
    files: FilesOrRings = None,
    *,
    directory: FolderOption = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT,...", help="Look through daemons, one per host, instead of at local rings."),
    ] = None,
    run_id: Annotated[
        str | None, run_option("Diagnose this run. Default: every run with a living rank, or else the newest.")
    ] = None,
    wait_s: Annotated[
        float,
        wait_option(
            "Look for at most this long, until every rank has gone on and every daemon has answered. Two seconds tell "
            "a rank that hangs from one that pauses."
        ),
    ] = 3.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep looking, and print again when something changes, until Ctrl-C.")
    ] = False,
    stacks: Annotated[
        bool,
        typer.Option("--stacks", help="Add the Python stacks of the ranks that are named, of this host, from py-spy."),
    ] = False,
    salvage: Salvage = False,
    ca: CaOption = None,
    user: UserOption = None,
    password_file: PasswordFileOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON; with --watch, one document per line.")
    ] = False,
) -> None:
    """Say what is wrong: which rank, since when, how sure that is, why, what to do, and what that would save.

    Looks at the ranks of this host, at those of several hosts through their daemons, or at the end of a recording. It
    affects no rank.

    Exits with 0 if nothing is wrong, 5 if the worst that it finds is a warning, and 6 if something is bad. Exits with
    1 if there is nothing to look at, or no step has finished yet.
    """
    from swtrace.observing import Roster
    from swtrace.recording.replay import Replay

    exclusive({"FILE": files or None, "--dir": directory, "--connect": connect})
    if salvage and not files:
        raise CommandError("--salvage needs a recording", ExitCode.USAGE)
    if watch and files:
        raise CommandError("--watch needs living ranks, not a recording", ExitCode.USAGE)
    if stacks and files:
        raise CommandError("--stacks needs living ranks, not a recording", ExitCode.USAGE)
    shown = credentials(connect, ca=ca, user=user, password_file=password_file, cert=cert, key=key)
    if files:
        name, roster = str(files[0]), Roster(Replay(opened(files, salvage=salvage)))
    else:
        name, origin = live(directory, connect, shown=shown)
        roster = Roster(origin())
    with roster:
        with narration().status("looking"):
            _look(roster, 0.0 if files else wait_s)
        found = _diagnosed(roster.observe(), name, run_id)
        _print(found, as_json=as_json, line=watch, stacks=stacks)
        while watch:
            before = found
            deadline = time.monotonic() + _AGAIN_S
            while roster.poll() or time.monotonic() < deadline:
                time.sleep(_POLL_S)
            found = _diagnosed(roster.observe(), name, run_id)
            if _gist(found) != _gist(before):
                _print(found, as_json=as_json, line=True, stacks=stacks, again=True)
            else:
                found = before
    raise typer.Exit(_status(found))


def _look(roster: Roster, wait_s: float) -> None:
    """Read everything that there is; then until every living rank has gone on, and every daemon has answered."""
    from swtrace.observing import Link

    roster.drain()
    began = time.monotonic()
    first = _progress(roster.observe())
    while (now := time.monotonic()) < began + wait_s:
        seen = roster.observe(facts_every_s=wait_s)
        moved = _progress(seen)
        gone_on = all(first.get(rank, 0) < written for rank, written in moved.items())
        connecting = any(origin.link is Link.CONNECTING for origin in seen.origins)
        if seen.ranks and gone_on and seen.caught_up and not connecting and now >= began + _SHORTEST_S:
            return
        first = {**moved, **first}
        if not roster.poll():
            time.sleep(_POLL_S)


def _progress(seen: Observation) -> dict[object, int]:
    """Return how many records each living rank has written."""
    return {rank.key: rank.ring.statistics.written for rank in seen.ranks if rank.ring.alive}


def _diagnosed(seen: Observation, name: str, run_id: str | None) -> Diagnosis:
    """Return the diagnosis of the chosen runs.

    Raises:
        CommandError: there is no such run, or no rank at all.
    """
    from swtrace.diagnosis.diagnosis import current_runs, diagnose

    known = {rank.identity.run_id for rank in seen.ranks}
    if not known and seen.silent:
        raise CommandError(f"no answer from {', '.join(seen.silent)}; wait longer with --wait")
    if not known and not seen.problems:
        raise CommandError(f"no rank was found in {name}; start your model with SWTRACE=1, or name a recording")
    if run_id is not None and run_id not in known:
        raise CommandError(
            f"no run {run_id!r} in {name}; known are: {', '.join(sorted(known)) or 'none'}", ExitCode.USAGE
        )
    return diagnose(seen.of_runs(current_runs(seen) if run_id is None else {run_id}))


def _gist(found: Diagnosis) -> set[tuple[object, ...]]:
    """Return what must differ for the page to be printed again: findings come, go, or get worse."""
    return {(key, finding.kind, finding.level, finding.ranks) for key, finding in found.unexplained()}


def _print(found: Diagnosis, *, as_json: bool, line: bool, stacks: bool, again: bool = False) -> None:
    dumped = _stacks(found) if stacks else ()
    if as_json:
        document = found.to_json()
        if stacks:
            document["stacks"] = [asdict(each) for each in dumped]
        if line:
            sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
            sys.stdout.flush()
        else:
            write_json(document)
        return
    from swtrace.cli.diagnosis_text import print_diagnosis, print_stacks

    console = data()
    if again:
        console.rule(time.strftime("%H:%M:%S"), style="dim")
    print_diagnosis(found, console)
    if stacks:
        print_stacks(dumped, console)


def _stacks(found: Diagnosis) -> tuple[RankStacks, ...]:
    """Return the stacks of the living ranks that the troubles are about."""
    from swtrace.diagnosis.stacks import dump_stacks
    from swtrace.trace.identity import RankKey

    named = {RankKey(trouble.run_id or "", rank) for trouble in found.troubles for rank in trouble.finding.ranks}
    return dump_stacks(rank for rank in found.observation.ranks if rank.key in named and rank.ring.alive)


def _status(found: Diagnosis) -> ExitCode:
    from swtrace.diagnosis.finding import Level

    if not found.judged:
        return ExitCode.FAILED
    return {Level.WARNING: ExitCode.FOUND_WARNING, Level.BAD: ExitCode.FOUND_BAD}.get(found.level, ExitCode.SUCCESS)
