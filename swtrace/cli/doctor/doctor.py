"""``swtrace doctor``: run all checks, print their results, and fail if something is broken."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from swtrace.cli.console import data, write_json
from swtrace.cli.doctor.diagnosis import Diagnosis, State
from swtrace.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

_MARKS = {
    State.GOOD: ("ok", "green"),
    State.ABSENT: ("-", "dim"),
    State.DOUBTFUL: ("?", "yellow"),
    State.BROKEN: ("broken", "bold red"),
}


def doctor(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the checks that import vLLM.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this installation and this host, and say how to fix what is wrong.

    Checks versions, vLLM and what the plugin needs from it, settings, the ring folder, the rings in it, and the
    daemon. Exits with 1 if something is broken.
    """
    diagnoses = _run_checks(import_vllm=not quick)
    broken = any(diagnosis.state is State.BROKEN for diagnosis in diagnoses)
    if as_json:
        write_json({"broken": broken, "findings": [asdict(diagnosis) for diagnosis in diagnoses]})
    else:
        _print(diagnoses, data())
    raise typer.Exit(ExitCode.FAILED if broken else ExitCode.SUCCESS)


def _run_checks(*, import_vllm: bool) -> tuple[Diagnosis, ...]:
    from swtrace.cli.doctor.check_daemon import daemon
    from swtrace.cli.doctor.check_environment import settings, versions
    from swtrace.cli.doctor.check_folder import folder
    from swtrace.cli.doctor.check_rings import rings
    from swtrace.errors import SettingsError
    from swtrace.settings import ring_directory

    found, of_settings = settings()
    here = (*versions(import_vllm=import_vllm), *of_settings)
    try:
        directory = ring_directory()
    except SettingsError as error:
        return (*here, Diagnosis("ring folder", State.BROKEN, str(error), "correct or unset SWTRACE_DIR"), *daemon())
    return (*here, *folder(directory, found), *daemon(), *(rings(directory) if directory.is_dir() else ()))


def _print(diagnoses: tuple[Diagnosis, ...], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column()
    for diagnosis in diagnoses:
        mark, style = _MARKS[diagnosis.state]
        detail = Text(diagnosis.detail)
        if diagnosis.fix and diagnosis.state is not State.GOOD:
            detail.append(f"\n-> {diagnosis.fix}", "cyan")
        table.add_row(Text(mark, style), Text(diagnosis.subject), detail)
    console.print(table)
    broken = sum(diagnosis.state is State.BROKEN for diagnosis in diagnoses)
    console.print(f"\n{broken} broken." if broken else "\nNothing is broken.")
