"""``swtrace daemon``: watch this host's rings; serve metrics and a live API, export spans and metrics.

Repeated messages of a library appear on stderr once a minute, not once per attempt.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swtrace import __version__
from swtrace.cli.arguments import file_option, run_option
from swtrace.cli.console import narration
from swtrace.cli.ring_folder import FolderOption, folder_to_read
from swtrace.units import counted

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

    handler = logging.StreamHandler(sys.stderr)
    for library in ("opentelemetry", "uvicorn", "asyncio"):
        handler.addFilter(RepeatFilter(library))
    logging.basicConfig(handlers=[handler], level=logging.INFO if verbose else logging.WARNING, format=_LOG_FORMAT)
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


class RepeatFilter(logging.Filter):
    """Logs each message template of a library at most once a minute, with the number of suppressed messages.

    An exporter that cannot reach its collector would otherwise log every attempt, for hours.
    """

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Filter only the loggers of ``library``."""
        super().__init__()
        self._library = library
        self._clock = clock
        self._logged: dict[str, tuple[float, int]] = {}
        """By message template: when it was last logged, and how often it was suppressed since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        if record.name != self._library and not record.name.startswith(f"{self._library}."):
            return True
        now, template = self._clock(), str(record.msg)
        logged, suppressed = self._logged.get(template, (-REPEAT_S, 0))
        if now - logged < REPEAT_S:
            self._logged[template] = (logged, suppressed + 1)
            return False
        if suppressed:
            record.msg, record.args = f"{record.getMessage()} [{suppressed} more like this in the last minute]", ()
        self._logged[template] = (now, 0)
        return True
