"""``swtrace daemon``: watch this host's rings, or daemons; serve metrics and a live API, export spans and metrics."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from swtrace import __version__
from swtrace.cli.arguments import (
    CaOption,
    CertOption,
    KeyOption,
    PasswordFileOption,
    UserOption,
    credentials,
    exclusive,
    file_option,
    run_option,
    whole_number,
)
from swtrace.cli.console import narration
from swtrace.cli.exit_codes import CommandError, ExitCode
from swtrace.cli.logs import logging_to_stderr
from swtrace.cli.ring_folder import FolderOption, folder_to_read
from swtrace.units import counted

_NAMED = 4


def daemon(
    *,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address to serve on; port 0 picks a free port. Default: `SWTRACE_LISTEN`, else 127.0.0.1:9465.",
        ),
    ] = None,
    web_config: Annotated[
        Path | None,
        file_option(
            "--web-config",
            text="Serve with TLS, passwords or both, as this file says. Default: `SWTRACE_WEB_CONFIG`, else neither.",
        ),
    ] = None,
    directory: FolderOption = None,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,...",
            help="Watch these daemons, one per host, instead of local rings; dns+HOST:PORT stands for those at all"
            " addresses of the name. Default: `SWTRACE_WATCH`, else none.",
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--watch-every",
            metavar="N",
            help="With --watch: read one step in N, in runs of four. Default: `SWTRACE_WATCH_EVERY`, else 16.",
            parser=whole_number("--watch-every", 1, 1 << 20),
        ),
    ] = None,
    ca: CaOption = None,
    user: UserOption = None,
    password_file: PasswordFileOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    run_id: Annotated[str | None, run_option("Watch only this run. Default: every run.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print URL, version, pid and what is watched as one line of JSON.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more on stderr.")] = False,
) -> None:
    """Watch this host's ranks: serve /metrics, /healthz and /api/v1, and export over OTLP as set by OTEL_*.

    With --watch, watch the ranks of several hosts through their daemons, and serve the same about all of them.

    Prints its URL on stdout once it serves, and on stderr its version, the ring folder and the ranks found there, or
    the daemons. On SIGTERM or Ctrl-C it exports what it has read and exits.
    """
    from swtrace.daemon.daemon_settings import DaemonSettings, Watched, watch_every, watch_list
    from swtrace.otel_variables import remove_unusable_variables

    exclusive({"--dir": directory, "--watch": watch})
    with logging_to_stderr(verbose=verbose):
        daemons = () if directory is not None else watch_list(os.environ, watch)
        options = {"ca": ca, "user": user, "password_file": password_file, "cert": cert, "key": key}
        shown = credentials(daemons or None, "--watch", **options)
        if every is not None and not daemons:
            raise CommandError("--watch-every needs --watch", ExitCode.USAGE)
        source = (
            Watched(daemons, watch_every(os.environ) if every is None else every, shown)
            if daemons
            else folder_to_read(directory)
        )
        settings = DaemonSettings.from_environment(
            os.environ, source=source, listen=listen, run_id=run_id, web_config=web_config
        )
        remove_unusable_variables(os.environ)
        from swtrace.daemon.server import serve

        def announce(url: str) -> None:
            about = {"url": url, "version": __version__, "pid": os.getpid()}
            if isinstance(source, Watched):
                more = len(source.addresses) - _NAMED
                named = ", ".join(source.addresses[:_NAMED]) + (f" and {more} more" if more > 0 else "")
                watches = f"{named} ({_steps(source.every)})"
                about |= {"watch": list(source.addresses), "every": source.every}
            else:
                alive, ended = _ranks(source, run_id)
                found = f"{counted(alive, 'rank')} alive, {ended} ended" if alive or ended else "no rank yet"
                watches = f"{source} ({found})"
                about |= {"directory": str(source), "ranks": {"alive": alive, "ended": ended}}
            narration().print(f"swtrace {__version__} watches {watches} and serves {url}", soft_wrap=True, markup=False)
            sys.stdout.write(f"{json.dumps(about) if as_json else url}\n")
            sys.stdout.flush()

        serve(settings, announce)


def _steps(every: int) -> str:
    return "every step" if every == 1 else f"one step in {every}"


def _ranks(directory: Path, run_id: str | None) -> tuple[int, int]:
    """Return how many ranks with rings in the folder are alive, and how many have ended."""
    from swtrace.trace.tail import Tail

    with closing(Tail(directory, run_id=run_id)) as tail:
        alive = [reader.alive() for reader in tail.rescan()]
    return sum(alive), len(alive) - sum(alive)
