"""``swtrace daemon``: watch this host's rings; serve metrics and a live API, export spans and metrics."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from swtrace import __version__
from swtrace.cli.arguments import file_option, run_option
from swtrace.cli.console import narration
from swtrace.cli.logs import logging_to_stderr
from swtrace.cli.ring_folder import FolderOption, folder_to_read
from swtrace.units import counted


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
    run_id: Annotated[str | None, run_option("Watch only this run. Default: every run.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print URL, version, pid, ring folder and ranks as one line of JSON.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more on stderr.")] = False,
) -> None:
    """Watch this host's ranks: serve /metrics, /healthz and /api/v1, and export over OTLP as set by OTEL_*.

    Prints its URL on stdout once it serves, and on stderr its version, the ring folder and the ranks found there. On
    SIGTERM or Ctrl-C it exports what it has read and exits.
    """
    from swtrace.daemon.daemon_settings import DaemonSettings
    from swtrace.otel_variables import remove_unusable_variables

    with logging_to_stderr(verbose=verbose):
        rings = folder_to_read(directory)
        settings = DaemonSettings.from_environment(
            os.environ, directory=rings, listen=listen, run_id=run_id, web_config=web_config
        )
        remove_unusable_variables(os.environ)
        from swtrace.daemon.server import serve

        def announce(url: str) -> None:
            alive, ended = _ranks(rings, run_id)
            found = f"{counted(alive, 'rank')} alive, {ended} ended" if alive or ended else "no rank yet"
            narration().print(
                f"swtrace {__version__} watches {rings} ({found}) and serves {url}", soft_wrap=True, markup=False
            )
            about = {
                "url": url,
                "version": __version__,
                "pid": os.getpid(),
                "directory": str(rings),
                "ranks": {"alive": alive, "ended": ended},
            }
            sys.stdout.write(f"{json.dumps(about) if as_json else url}\n")
            sys.stdout.flush()

        serve(settings, announce)


def _ranks(directory: Path, run_id: str | None) -> tuple[int, int]:
    """Return how many ranks with rings in the folder are alive, and how many have ended."""
    from swtrace.trace.tail import Tail

    with closing(Tail(directory, run_id=run_id)) as tail:
        alive = [reader.alive() for reader in tail.rescan()]
    return sum(alive), len(alive) - sum(alive)
