"""``swtrace daemon``: watch this host's rings; serve metrics and a live API, export spans.

What it says on stderr while something lasts, it says once a minute, not once per attempt.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace.cli.arguments import run_option
from swtrace.cli.ring_folder import FolderOption, folder_to_read

if TYPE_CHECKING:
    from collections.abc import Callable

REPEAT_S = 60.0
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
    run_id: Annotated[str | None, run_option("Watch this run only. Default: every run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Announce URL, pid and folder as one line of JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on stderr.")] = False,
) -> None:
    """Watch this host's ranks; serve /metrics, /healthz and /api/v1, export spans as OTEL_* says.

    Prints its URL on stdout once it serves. SIGTERM and Ctrl-C end it after it has exported what it has.
    """
    from swtrace.daemon.daemon_settings import DaemonSettings
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


class Seldom(logging.Filter):
    """Lets each message of a library through once a minute, whatever its arguments, and says how many it held back.

    An exporter whose collector is away would write a line per attempt, for hours.
    """

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Apply to the loggers of ``library`` and leave all others alone."""
        super().__init__()
        self._library = library
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}
        """By message template: when it was last said, and how often it was held back since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is said."""
        if record.name != self._library and not record.name.startswith(f"{self._library}."):
            return True
        now, template = self._clock(), str(record.msg)
        said, held_back = self._said.get(template, (-REPEAT_S, 0))
        if now - said < REPEAT_S:
            self._said[template] = (said, held_back + 1)
            return False
        if held_back:
            record.msg, record.args = f"{record.getMessage()} [{held_back} more like this in the last minute]", ()
        self._said[template] = (now, 0)
        return True
