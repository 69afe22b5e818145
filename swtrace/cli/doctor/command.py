"""``swtrace doctor``: looks at everything, prints one line each, and fails if something is broken."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from swtrace.cli.console import data, write_json
from swtrace.cli.doctor.finding import Finding, State
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
    quick: Annotated[bool, typer.Option("--quick", help="Do not import vLLM to look into it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the findings to stdout as JSON.")] = False,
) -> None:
    """Say what is right and wrong here, and how to mend it.

    Looks at versions, at vLLM and what the plugin needs of it, at the settings, the folder of rings, the rings in it,
    and the daemon. Exits with 1 if something is broken.
    """
    findings = _look(import_vllm=not quick)
    broken = any(finding.state is State.BROKEN for finding in findings)
    if as_json:
        write_json({"broken": broken, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings, data())
    raise typer.Exit(ExitCode.FAILED if broken else ExitCode.SUCCESS)


def _look(*, import_vllm: bool) -> tuple[Finding, ...]:
    from swtrace.cli.doctor.daemon import daemon
    from swtrace.cli.doctor.folder import folder
    from swtrace.cli.doctor.rings import rings
    from swtrace.cli.doctor.settings import settings
    from swtrace.cli.doctor.versions import versions
    from swtrace.errors import SettingsError
    from swtrace.settings import ring_directory

    here = (*versions(import_vllm=import_vllm), *settings())
    try:
        directory = ring_directory()
    except SettingsError as error:
        return (*here, Finding("ring folder", State.BROKEN, str(error), "set or unset SWTRACE_DIR"), *daemon())
    return (*here, *folder(directory), *daemon(), *(rings(directory) if directory.is_dir() else ()))


def _print(findings: tuple[Finding, ...], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column()
    for finding in findings:
        mark, style = _MARKS[finding.state]
        detail = Text(finding.detail)
        if finding.mend and finding.state is not State.GOOD:
            detail.append(f"\n-> {finding.mend}", "cyan")
        table.add_row(Text(mark, style), Text(finding.subject), detail)
    console.print(table)
    broken = sum(finding.state is State.BROKEN for finding in findings)
    console.print(f"\n{broken} broken." if broken else "\nNothing is broken.")
