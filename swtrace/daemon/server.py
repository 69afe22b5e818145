"""The daemon's life cycle: bind, observe, serve until stopped, then drain and export what remains.

The port is bound before anything else is opened, so a second daemon on it fails at once without touching
anything. On SIGTERM or SIGINT the daemon stops serving, drains once more, exports spans and closes the rings, in that
order. It never writes to the rings. Killing it loses only what it had not yet sent. The next daemon reads again what
the rings still hold, but counts and exports only what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import time
from typing import TYPE_CHECKING

import uvicorn

from swtrace.daemon.access import CurrentTls, Gate
from swtrace.daemon.api import QueryError
from swtrace.daemon.clock_endpoint import TimedProtocol
from swtrace.daemon.collector import SnapshotCollector
from swtrace.daemon.daemon_settings import Listen, Watched
from swtrace.daemon.event_stream import StreamQuery
from swtrace.daemon.heaps import share_heaps
from swtrace.daemon.http_app import make_app
from swtrace.daemon.metric_export import make_metric_export
from swtrace.daemon.observer import Observer
from swtrace.daemon.snapshot import ExportOutcome
from swtrace.daemon.web_config import WebConfigFile
from swtrace.errors import ListenError
from swtrace.observing import HostRings, Origin
from swtrace.recording.watched import WatchedDaemons
from swtrace.spans.delivery import make_span_sink
from swtrace.trace.tail import allow_open_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from starlette.applications import Starlette

    from swtrace.daemon.daemon_settings import DaemonSettings

_log = logging.getLogger(__name__)

REQUESTS_END_S = 2
DRAIN_END_S = 3.0
EXPORT_END_S = 4.0
"""Together the three use most of the ten seconds that container runtimes allow between SIGTERM and SIGKILL."""


def serve(settings: DaemonSettings, announce: Callable[[str], None]) -> None:
    """Run a daemon in the main thread until SIGTERM or SIGINT. Call ``announce`` with its URL before serving.

    Raises:
        ListenError: The address cannot be bound.
        SettingsError: An OpenTelemetry setting or the web configuration file cannot be used.
    """
    allow_open_files()
    share_heaps()
    access = None if settings.web_config is None else WebConfigFile(settings.web_config)
    with bind(settings.listen) as listener:
        spans = make_span_sink(settings.spans)
        started_ns = time.time_ns()
        origin = _observed(settings, started_ns)
        observer = Observer(origin, spans, watched=settings.source if isinstance(settings.source, Watched) else None)
        outcomes = dict.fromkeys(ExportOutcome, 0)
        collector = SnapshotCollector(observer.snapshot, observer.health, outcomes.copy)
        port = listener.getsockname()[1]
        metrics = make_metric_export(settings.metrics, collector.rows, outcomes, port=port, started_ns=started_ns)
        server = _Server(server_config(make_app(observer, collector, streams(settings.source)), access))
        with _stopped_by_signals(server, observer.end_streams):
            observer.start()
            if (exposed := _exposed(listener, access)) is not None:
                _log.warning("%s", exposed)
            announce(url(listener, tls=access is not None and access.tls))
            asyncio.run(server.serve(sockets=[listener]))
            _log.info("stopping: draining the rings and exporting the remaining spans and the last metrics")
            drained = observer.stop(DRAIN_END_S)
            exports_end_s = time.monotonic() + EXPORT_END_S
            if metrics is not None:
                metrics.finish()
            spans.close(EXPORT_END_S)
            if metrics is not None:
                metrics.close(max(0.0, exports_end_s - time.monotonic()))
            if drained:  # Otherwise the thread still reads it; it is closed when the process exits.
                origin.close()


def _observed(settings: DaemonSettings, started_ns: int) -> Origin:
    """Return what the daemon itself reads."""
    source = settings.source
    if isinstance(source, Watched):
        # Of what was written before, which must not be counted again at each connection, only about one step.
        return watched_daemons(source, StreamQuery(settings.run_id, source.every, source.every))
    return HostRings(source, run_id=settings.run_id, counted_since_ns=started_ns)


def watched_daemons(watched: Watched, wanted: StreamQuery) -> WatchedDaemons:
    """Return an origin that reads the watched daemons."""
    return WatchedDaemons(
        watched.addresses,
        credentials=watched.credentials,
        run_id=wanted.run_id,
        newest_steps=wanted.newest_steps,
        every=wanted.every,
    )


def streams(source: Path | Watched) -> Callable[[StreamQuery], Origin]:
    """Return a function that opens the origin of a client of the stream.

    It raises a :class:`~swtrace.daemon.api.QueryError` if the client may not have it.
    """

    def opened(wanted: StreamQuery) -> Origin:
        if isinstance(source, Watched):
            if wanted.watching:
                raise QueryError(
                    "this daemon watches other daemons, and cannot be watched by one; "
                    f"watch these instead: {', '.join(source.addresses)}"
                )
            return watched_daemons(source, wanted)
        return HostRings(source, run_id=wanted.run_id, newest_steps=wanted.newest_steps, every=wanted.every)

    return opened


def server_config(app: Starlette, access: WebConfigFile | None = None) -> uvicorn.Config:
    """Return the server's configuration: no access log, and at most ``REQUESTS_END_S`` for requests at shutdown.

    With a web configuration file, only those whom it admits reach the application.
    """
    config = uvicorn.Config(
        app if access is None else Gate(app, access),
        http=TimedProtocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=REQUESTS_END_S,
    )
    config.load()
    config.ssl = CurrentTls.of(access) if access is not None and access.tls else None
    return config


def bind(listen: Listen) -> socket.socket:
    """Return a listening socket.

    Raises:
        ListenError: The address is taken, unknown, or not allowed.
    """
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(
            listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: the host name is malformed
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise ListenError(
            f"cannot listen on {listen}: {getattr(error, 'strerror', None) or error}. "
            f"{'Is another daemon running? ' if taken else ''}Choose another address with --listen or SWTRACE_LISTEN."
        ) from error
    return listener


def url(listener: socket.socket, *, tls: bool = False) -> str:
    """Return the URL at which this host reaches a listening socket."""
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 (read, not bound)
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _exposed(listener: socket.socket, access: WebConfigFile | None) -> str | None:
    """Return a warning if strangers on the network could read what the daemon serves, or a password."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return None
    where = f"{Listen(host, port)}{' (every interface)' if address.is_unspecified else ''}"
    if access is None:
        return (
            f"{where} is open to other hosts, without TLS and passwords; "
            "name a web configuration file with --web-config or SWTRACE_WEB_CONFIG, or listen on 127.0.0.1"
        )
    if access.passwords and not access.tls:
        return f"{where} takes passwords over the network without TLS; add tls_server_config to its --web-config"
    return None


class _Server(uvicorn.Server):
    """A server that does not handle signals, because uvicorn's handling raises them again after its shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _stopped_by_signals(server: uvicorn.Server, stopping: Callable[[], None]) -> Iterator[None]:
    """Stop the server on SIGTERM and SIGINT, after calling ``stopping``. The server checks ten times a second."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping()
        server.force_exit = server.should_exit
        server.should_exit = True

    # Shells ignore SIGINT in background jobs; leave it ignored there.
    handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
