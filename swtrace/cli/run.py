"""``swtrace run -- COMMAND``: run a command with sharing and tracing on, alongside a daemon, and print a summary.

The command keeps the terminal, its stdin, its stdout and its exit status. Output of swtrace goes to stderr.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swtrace.cli.arguments import file_option
from swtrace.cli.child import ANY_PORT, DaemonProcess
from swtrace.cli.console import narration, write_json
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.ring_folder import make_folder
from swtrace.cli.signals import SignalForwarder, exit_status
from swtrace.cli.summary_process import Reader
from swtrace.cli.summary_text import print_summary
from swtrace.daemon.daemon_settings import Listen, listen_address
from swtrace.settings import GROUPS, VARIABLES, WINDOWS, Settings, setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

_POLL_S = 0.1


_SETTINGS = "Settings (override the environment)"


def _setting(text: str, metavar: str) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel=_SETTINGS)


def _choice(text: str, metavar: str, words: tuple[str, ...]) -> Any:
    return typer.Option(
        help=f"{text}: {', '.join(words[:-1])} or {words[-1]}.",
        metavar=metavar,
        autocompletion=lambda: list(words),
        rich_help_panel=_SETTINGS,
    )


def run(
    command: Annotated[
        list[str], typer.Argument(help="The command and its arguments.", show_default=False, metavar="COMMAND")
    ],
    *,
    series: Annotated[str | None, _setting("Linears to share, by path in a decoder layer.", "PATH,...")] = None,
    share: Annotated[
        str | None, _setting("Which layers of them to share: all, a part such as 1/2, or a list.", "PART")
    ] = None,
    prefetch_step: Annotated[str | None, _setting("How many layers ahead a broadcast starts.", "K")] = None,
    group: Annotated[str | None, _choice("Group of ranks that share weights", "GROUP", GROUPS)] = None,
    windows: Annotated[str | None, _choice("Window policy", "POLICY", WINDOWS)] = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict/--no-strict", help="Fail if something cannot be shared.", rich_help_panel=_SETTINGS),
    ] = None,
    with_daemon: Annotated[
        bool, typer.Option("--daemon/--no-daemon", help="Start a daemon that serves metrics and a live API.")
    ] = True,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Address of the daemon. Default: `SWTRACE_LISTEN`, else 127.0.0.1:9465 or, if taken, a free port.",
            metavar="HOST:PORT",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        file_option("--json", text="Also write the summary to this file as JSON."),
    ] = None,
) -> None:
    """Run a command with sharing and tracing on: `swtrace run -- vllm serve MODEL`.

    Sets `SWTRACE=1` and a new run id in the command's environment, passes signals on, and exits with the command's
    status. The summary goes to stderr.
    """
    given = {
        "series": series,
        "share": share,
        "prefetch_step": prefetch_step,
        "group": group,
        "windows": windows,
        "strict": None if strict is None else int(strict),
    }
    for field, value in given.items():
        if value is not None:
            setting(field, value, f"--{field.replace('_', '-')}")
    options = {VARIABLES[field]: str(value) for field, value in given.items() if value is not None}
    environment, settings = _environment(options)
    program = _program(command[0])
    if json_file is not None:
        _check_json_file(json_file)
    if listen is not None:
        Listen.parse(listen, "--listen")
    console = narration()
    with ExitStack() as stack:
        directory, run_id = Path(environment["SWTRACE_DIR"]), environment["SWTRACE_RUN_ID"]
        reader = stack.enter_context(Reader(directory, run_id))
        address = listen or _free_listen(console) if with_daemon else ""
        daemon = stack.enter_context(DaemonProcess(directory, run_id, listen=address)) if with_daemon else None
        started_ns = time.time_ns()
        console.print(f"swtrace: run {run_id}, rings in {directory}", soft_wrap=True, markup=False)
        with SignalForwarder() as signals:
            process = _start(program, command, environment)
            signals.attach(process)
            _forward_until_exit(process, signals, reader, daemon, console)
        status = exit_status(process.returncode)
        summary = reader.finish()
    if not summary.rings:
        why = _why_no_summary(directory, started_ns, traced=settings.trace)
        console.print(f"swtrace: {why}", soft_wrap=True, markup=False)
    else:
        print_summary(summary, console)
    if json_file is not None:
        try:
            write_json({"run_id": run_id, "exit_code": status, "summary": summary.to_json()}, json_file)
        except OSError as error:
            console.print(f"swtrace: --json {json_file}: {error.strerror}", soft_wrap=True, markup=False)
            status = status or ExitCode.FAILED
    raise typer.Exit(status)


def _check_json_file(file: Path) -> None:
    """Refuse a file that could not be written at the end.

    Raises:
        CommandError: it is a folder, or it or its folder is not writable.
    """
    if file.is_dir():
        raise CommandError(f"--json {file} is a folder; it must be a file", ExitCode.USAGE)
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise CommandError(
            f"--json {file} cannot be written; its folder must exist, and both must be writable", ExitCode.USAGE
        )


def _environment(options: Mapping[str, str]) -> tuple[dict[str, str], Settings]:
    """Return the command's environment and the checked settings in it.

    Raises:
        SettingsError: an option or a variable of the environment has an invalid value.
    """
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    environment = {**os.environ, **options, "SWTRACE": "1", "SWTRACE_RUN_ID": run_id}
    settings = Settings.from_environment(environment)
    environment["SWTRACE_DIR"] = str(make_folder(settings.ring_directory()))
    return environment, settings


def _why_no_summary(directory: Path, since_ns: int, *, traced: bool) -> str:
    """Return why there is no summary: no rank wrote a ring, or the ranks used another run id."""
    from swtrace.trace.tail import Tail

    tail = Tail(directory)
    with closing(tail):
        found = [reader.identity for reader in tail.poll(1).joined]
    others = sorted({identity.run_id for identity in found if identity.start_time_ns >= since_ns})
    if others:
        return (
            f"the command's ranks used another run id, {', '.join(others)}, because SWTRACE_RUN_ID was changed before "
            f"they started. Show it with: swtrace top --once --run {others[-1]}"
        )
    if not traced:
        return "no rank of this run wrote a ring because SWTRACE_TRACE=0."
    return (
        "no rank of this run wrote a ring. `swtrace doctor` may show why; a rank that could not create its ring says "
        "why in its log."
    )


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return found
    if Path(name).exists():
        raise CommandError(f"{name} cannot be executed", ExitCode.NOT_EXECUTABLE)
    raise CommandError(f"command {name!r} not found", ExitCode.NOT_FOUND)


def _free_listen(console: Console) -> str:
    """Return the address from the environment or the default, or any free port if it cannot be used."""
    listen = listen_address(os.environ)
    why = listen.problem()
    if why is None:
        return str(listen)
    console.print(
        f"swtrace: cannot serve on {listen} ({why}); the daemon uses a free port.", soft_wrap=True, markup=False
    )
    return ANY_PORT


def _start(program: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, executable=program, env=environment)
    except OSError as error:
        raise CommandError(f"{program}: {error.strerror}", ExitCode.NOT_EXECUTABLE) from error


def _forward_until_exit(
    process: subprocess.Popen[bytes],
    signals: SignalForwarder,
    reader: Reader,
    daemon: DaemonProcess | None,
    console: Console,
) -> None:
    """Wait for the command, pass signals on, and report the daemon's URL or its early end."""
    lost = False
    while process.poll() is None:
        signals.wait(_POLL_S)
        reader.poll()
        if daemon is None:
            continue
        if daemon.poll():
            for line in daemon.warnings():
                console.print(line, soft_wrap=True, markup=False)
            console.print(f"swtrace: daemon at {daemon.url}/metrics", soft_wrap=True, markup=False)
        if not daemon.alive and not daemon.child.readable and not lost:
            lost = True
            console.print("swtrace: the daemon ended early. Its output:", *daemon.said, sep="\n  ", markup=False)
