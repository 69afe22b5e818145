"""``swtrace daemon``: watch this host's rings; serve metrics and a live API, export spans."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Annotated

import typer

from swtrace.cli.arguments import not_empty
from swtrace.cli.ring_folder import FolderOption, folder_to_read

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def daemon(
    *,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address to serve on; port 0 lets the system choose. Default: `SWTRACE_LISTEN`, else 127.0.0.1:9465.",
        ),
    ] = None,
    directory: FolderOption = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run", help="Watch this run only. Default: every run.", metavar="ID", parser=not_empty("--run", str)
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Announce URL, pid and folder as one line of JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on stderr.")] = False,
) -> None:
    """Watch this host's ranks; serve /metrics, /healthz and /api/v1, export spans as OTEL_* says.

    Prints its URL on stdout once it serves. SIGTERM and Ctrl-C end it after it has exported what it has.
    """
    from swtrace.daemon.daemon_settings import DaemonSettings
    from swtrace.daemon.narration import Seldom
    from swtrace.spans.environment import tidy

    handler = logging.StreamHandler(sys.stderr)
    for library in ("opentelemetry", "uvicorn", "asyncio"):
        handler.addFilter(Seldom(library))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING, format=_LOG_FORMAT)
    rings = folder_to_read(directory)
    settings = DaemonSettings.from_environment(os.environ, directory=rings, listen=listen, run_id=run_id)
    tidy(os.environ)
    from swtrace.daemon.server import serve

    def announce(url: str) -> None:
        about = {"url": url, "pid": os.getpid(), "directory": str(rings)}
        sys.stdout.write(f"{json.dumps(about) if as_json else url}\n")
        sys.stdout.flush()

    serve(settings, announce)
