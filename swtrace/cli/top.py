"""``swtrace top``: the terminal view of local rings, daemons or a recording, or its content as text or JSON.

``swtrace replay`` is the same view of a recording, with playback keys.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from swtrace.cli.arguments import (
    CaOption,
    CertOption,
    KeyOption,
    PasswordFileOption,
    PhaseName,
    UserOption,
    choice_option,
    credentials,
    exclusive,
    file_option,
    number,
    phase_option,
    run_option,
    wait_option,
    whole_number,
)
from swtrace.cli.console import PIPE_WIDTH, missing_screen, narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.live import live
from swtrace.cli.recorded import Files, Salvage, opened
from swtrace.cli.ring_folder import FolderOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from swtrace_tui.app import TopApp
    from swtrace_tui.picture import Filter, Picture
    from swtrace_tui.preferences import Configuration

    from swtrace.credentials import Credentials
    from swtrace.observing import Roster


class ViewName(StrEnum):
    """A view of the terminal."""

    OVERVIEW = "overview"
    HEAT_MAP = "heatmap"
    TIMELINE = "timeline"
    WINDOWS = "windows"
    DIAGNOSIS = "diagnosis"


def top(
    *,
    directory: FolderOption = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT,...", help="Watch through daemons, one per host, instead of local rings."),
    ] = None,
    ca: CaOption = None,
    user: UserOption = None,
    password_file: PasswordFileOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    replay: Annotated[
        Path | None,
        file_option("--replay", text="Play a recording; with --once or --json, show its end."),
    ] = None,
    run_id: Annotated[
        str | None,
        run_option("Show this run. Default: the newest live run that moves weights."),
    ] = None,
    series: Annotated[str | None, typer.Option(metavar="NAME", help="Show only this series.")] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="N", help="Show only this rank.", parser=whole_number("--rank", 0)),
    ] = None,
    phase: Annotated[PhaseName | None, phase_option("Include only steps of this phase")] = None,
    view: Annotated[
        ViewName, choice_option("--view", kind=ViewName, metavar="VIEW", text="First view to show")
    ] = ViewName.OVERVIEW,
    theme: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="swtrace-dark, swtrace-light, swtrace-colour-blind, swtrace-mono or a Textual theme."
        ),
    ] = None,
    interval_s: Annotated[
        float,
        typer.Option(
            "--interval",
            metavar="SECONDS",
            help="Shortest time between two updates of the screen.",
            parser=number("--interval", 0.05, 60, of="seconds"),
        ),
    ] = 0.1,
    once: Annotated[bool, typer.Option("--once", help="Print the overview as text and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON and exit.")] = False,
    wait_s: Annotated[
        float,
        wait_option("With --once or --json: wait at most this long for every daemon to answer, and for a step."),
    ] = 2.0,
    salvage: Salvage = False,
    before_summary: Annotated[bool, typer.Option("--before-summary", hidden=True)] = False,
) -> None:
    """Watch live whether prefetch hides the transfers of weights; if not, on which rank and layer, and why.

    Without --connect or --replay, reads the rings of this host: the files in shared memory to which its ranks write
    their records. This needs no daemon and does not affect the ranks. Press ? for the keys. Set theme and
    keys permanently in ~/.config/swtrace/top.toml.
    """
    try:
        from swtrace_tui.picture import Filter
    except ModuleNotFoundError as error:
        if error.name != "textual":
            raise
        raise CommandError("top needs textual, which is not installed; reinstall swtrace") from error
    from swtrace.trace.schema import Phase

    exclusive({"--dir": directory, "--connect": connect, "--replay": replay})
    if salvage and replay is None:
        raise CommandError("--salvage needs --replay", ExitCode.USAGE)
    shown = credentials(connect, ca=ca, user=user, password_file=password_file, cert=cert, key=key)
    make = _roster(directory, connect, replay, whole=once or as_json, salvage=salvage, shown=shown)
    selection = Filter(run=run_id, series=series, rank=rank, phase=Phase[phase.upper()] if phase else None)
    if once or as_json:
        if theme is not None:
            _check_theme(make, theme)
        _print(make(), selection, as_json=as_json, wait_s=wait_s)
        return
    _check_terminal("swtrace top", "use --once to print the overview as text, or --json for JSON")
    ended = "RUN ENDED: q shows the summary" if before_summary else "RUN ENDED"
    configuration = _configuration()
    if theme is not None:
        configuration = replace(configuration, theme=theme)
    if replay is not None:
        from swtrace_tui.replay_app import ReplayApp

        app: TopApp = ReplayApp(
            [replay],
            configuration=configuration,
            view=view.value,
            selection=selection,
            frame_s=interval_s,
            salvage=salvage,
        )
    else:
        from swtrace_tui.app import TopApp

        app = TopApp(
            make, configuration=configuration, view=view.value, selection=selection, frame_s=interval_s, ended=ended
        )
    _end_with(app)


def replay(files: Files, *, salvage: Salvage = False) -> None:
    """Play a recording in the terminal, with the views of `swtrace top`.

    Space pauses, n advances one step, ctrl+left and ctrl+right seek by 5 s, ctrl+up and ctrl+down change the speed,
    ctrl+home and ctrl+end go to the start and the end. `swtrace stats` prints a summary instead.
    """
    _check_terminal("swtrace replay", "swtrace stats prints a summary of a recording")
    opened(files, salvage=salvage).close()
    from swtrace_tui.replay_app import ReplayApp

    _end_with(ReplayApp(files, configuration=_configuration(), salvage=salvage))


def _check_terminal(command: str, instead: str) -> None:
    """Refuse to start without a terminal that can show a screen.

    Raises:
        CommandError: there is none.
    """
    # textual-serve sets the driver: then a browser is the terminal.
    if not os.environ.get("TEXTUAL_DRIVER") and (missing := missing_screen()):
        raise CommandError(f"{command} {missing}; {instead}")


def _roster(
    directory: Path | None,
    connect: str | None,
    replay: Path | None,
    *,
    whole: bool,
    salvage: bool,
    shown: Credentials,
) -> Callable[[], Roster]:
    """Return a function that creates the roster. Bad arguments raise here, not in the reader's thread."""
    from swtrace.ledger.ledger import DEFAULT_RECENT_STEPS
    from swtrace.observing import Roster

    # A printout covers everything that the rings hold; a live view shows only recent steps.
    newest = None if whole else DEFAULT_RECENT_STEPS + 8
    if replay is not None:
        from swtrace.recording.replay import Replay

        opened([replay], salvage=salvage).close()
        return lambda: Roster(Replay(opened([replay], salvage=salvage)))
    _, origin = live(directory, connect, shown=shown, newest_steps=newest)
    return lambda: Roster(origin())


def _check_theme(make: Callable[[], Roster], theme: str) -> None:
    """Refuse an unknown theme, as the terminal view does.

    Raises:
        SettingsError: the theme is unknown.
    """
    from swtrace_tui.app import TopApp
    from swtrace_tui.preferences import Configuration

    TopApp(make, configuration=Configuration(theme=theme))


def _print(roster: Roster, selection: Filter, *, as_json: bool, wait_s: float) -> None:
    from swtrace_tui.once import overview, read

    from swtrace.observing import Link

    with roster:
        seen = read(roster, selection, wait_s)
    origins = seen.observation.origins
    several = len(origins) > 1
    # A part of the ranks must not look like all of them, nor ranks that are not known yet like none.
    if (several or any(origin.link is Link.CONNECTING for origin in origins)) and (missing := seen.observation.silent):
        raise CommandError(
            f"no answer within {wait_s:g} s from {', '.join(missing)}; wait longer with --wait"
            + (", or leave them out of --connect" if several else "")
        )
    if seen.unmatched:
        raise CommandError(seen.unmatched, ExitCode.USAGE)
    for origin in origins:
        if origin.detail and seen.rows:
            narration().print(f"{origin.name}: {origin.detail}", markup=False, soft_wrap=True)
    if as_json:
        write_json(_document(seen))
    else:
        columns = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if sys.stdout.isatty() else PIPE_WIDTH
        text = overview(seen, columns)
        (sys.stdout if seen.rows else sys.stderr).write(text)
    if not seen.rows:
        if as_json:
            narration().print("Nothing to watch.")
        raise typer.Exit(ExitCode.FAILED)


def _document(seen: Picture) -> dict[str, object]:
    from swtrace.cli.summary import summarise

    return {
        "run": seen.run,
        "runs": list(seen.runs),
        "sources": [
            {"name": origin.name, "link": origin.link.value, "detail": origin.detail}
            for origin in seen.observation.origins
        ],
        "ranks": [
            {
                "series": row.series.name,
                "rank": row.rank,
                "state": row.state.value,
                "steps_per_second": row.step_rate,
                "windows": [str(window.state) for window in row.windows],
            }
            for row in seen.rows
        ],
        "summary": summarise(seen.narrowed).to_json(),
    }


def _configuration() -> Configuration:
    """Return the user's saved configuration."""
    from swtrace_tui.preferences import default_path, load

    return load(Path(os.environ.get("SWTRACE_TOP_CONFIG") or default_path()))


def _end_with(app: TopApp) -> NoReturn:
    app.run()
    raise typer.Exit(app.return_code or 0)
