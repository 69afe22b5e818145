"""``swtrace daemon``: watch this host's rings; serve metrics and a live API, export spans."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def daemon(
    *,
    listen: Annotated[
        str | None,
        typer.Option(
            envvar="SWTRACE_LISTEN",
            metavar="HOST:PORT",
            help="Address to serve on; port 0 lets the system choose. Default: 127.0.0.1:9465.",
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", envvar="SWTRACE_DIR", help="Folder of the rings. Default: the per-user one on tmpfs."),
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="Watch this run only. Default: every run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Announce URL, pid and folder as one line of JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on stderr.")] = False,
) -> None:
    """Watch this host's ranks; serve /metrics, /healthz and /api/v1, export spans as OTEL_* says.

    Prints its URL on stdout once it serves. SIGTERM and Ctrl-C end it after it has exported what it has.
    """
    from swtrace.daemon.narration import Seldom
    from swtrace.daemon.server import serve
    from swtrace.daemon.settings import DaemonSettings
    from swtrace.trace.directory import default_directory

    handler = logging.StreamHandler(sys.stderr)
    for library in ("opentelemetry", "uvicorn", "asyncio"):
        handler.addFilter(Seldom(library))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING, format=_LOG_FORMAT)
    rings = directory or default_directory()
    settings = DaemonSettings.from_environment(os.environ, directory=rings, listen=listen, run_id=run_id)

    def announce(url: str) -> None:
        about = {"url": url, "pid": os.getpid(), "directory": str(rings)}
        sys.stdout.write(f"{json.dumps(about) if as_json else url}\n")
        sys.stdout.flush()

    serve(settings, announce)
