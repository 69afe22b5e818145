"""Settings of the daemon: what it reads, where to serve, and what to export."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swtrace.credentials import ANONYMOUS, Credentials
from swtrace.daemon.metric_settings import MetricSettings
from swtrace.errors import SettingsError
from swtrace.http_client import DEFAULT_PORT, addresses
from swtrace.settings import absolute
from swtrace.spans.environment import SpanSettings

DEFAULT_LISTEN = f"127.0.0.1:{DEFAULT_PORT}"
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_PORT = 65535
_EVERY = re.compile(r"[0-9]{1,7}")
DEFAULT_WATCH_EVERY = 16
MOST_WATCH_EVERY = 1 << 20


@dataclass(frozen=True, slots=True)
class Listen:
    """The address to serve on. Port 0 lets the system choose one; an empty host means every interface."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, name: str = "SWTRACE_LISTEN") -> Listen:
        """Parse ``host:port``, ``[v6 address]:port`` or ``:port``. Errors quote it as the value of ``name``."""
        host, colon, port = text.strip().rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        is_port = _PORT.fullmatch(port) is not None and int(port) <= _MAX_PORT
        if not colon or not is_port or (":" in host) != bracketed:
            raise SettingsError.of(name, text, f"HOST:PORT with a port from 0 to {_MAX_PORT}, such as {DEFAULT_LISTEN}")
        return cls(host[1:-1] if bracketed else host, int(port))

    def __str__(self) -> str:
        """Return the address in the form that :meth:`parse` reads."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def problem(self) -> str | None:
        """Return why a daemon could not serve there now; None if it could."""
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except (OSError, UnicodeError) as error:  # UnicodeError: the host name is malformed
                return getattr(error, "strerror", None) or str(error)
        return None


@dataclass(frozen=True, slots=True)
class Watched:
    """The daemons that a daemon watches."""

    addresses: tuple[str, ...]
    """Each ``host:port`` or ``https://host:port``, or one of these behind :data:`~swtrace.http_client.LOOKED_UP`."""
    every: int
    """Only one step in so many."""
    credentials: Credentials = ANONYMOUS
    """What to show to the daemons, and to trust."""


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """All settings of the daemon."""

    source: Path | Watched
    """The folder of rings, or the daemons to watch instead."""
    listen: Listen
    spans: SpanSettings
    metrics: MetricSettings
    run_id: str | None = None
    """Watch only this run; None for every run."""
    web_config: Path | None = None
    """A file that asks for TLS and passwords; None to serve everyone who can connect."""

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        *,
        source: Path | Watched,
        listen: str | None = None,
        run_id: str | None = None,
        web_config: Path | None = None,
    ) -> DaemonSettings:
        """Read the environment. Options of the command, given as arguments, take precedence."""
        return cls(
            source=source,
            listen=listen_address(environ) if listen is None else Listen.parse(listen, "--listen"),
            spans=SpanSettings.from_environment(environ),
            metrics=MetricSettings.from_environment(environ),
            run_id=run_id,
            web_config=web_config_file(environ) if web_config is None else web_config,
        )


def listen_address(environ: Mapping[str, str]) -> Listen:
    """Return the address that ``SWTRACE_LISTEN`` names, or the default."""
    return Listen.parse(environ.get("SWTRACE_LISTEN", "").strip() or DEFAULT_LISTEN)


def web_config_file(environ: Mapping[str, str]) -> Path | None:
    """Return the file that ``SWTRACE_WEB_CONFIG`` names, if any."""
    named = environ.get("SWTRACE_WEB_CONFIG", "").strip()
    return absolute(named) if named else None


def watch_list(environ: Mapping[str, str], given: str | None = None) -> tuple[str, ...]:
    """Return the daemons to watch: those of ``--watch``, else of ``SWTRACE_WATCH``; none for the rings of this host.

    Raises:
        SettingsError: the list cannot be used.
    """
    if given is not None:
        return addresses(given, "--watch", names=True)
    named = environ.get("SWTRACE_WATCH", "").strip()
    return addresses(named, "SWTRACE_WATCH", names=True) if named else ()


def watch_every(environ: Mapping[str, str]) -> int:
    """Return ``SWTRACE_WATCH_EVERY``, or the default.

    Raises:
        SettingsError: it cannot be used.
    """
    text = environ.get("SWTRACE_WATCH_EVERY", "").strip() or str(DEFAULT_WATCH_EVERY)
    if not _EVERY.fullmatch(text) or not 1 <= int(text) <= MOST_WATCH_EVERY:
        raise SettingsError.of("SWTRACE_WATCH_EVERY", text, f"a whole number from 1 to {MOST_WATCH_EVERY}")
    return int(text)
