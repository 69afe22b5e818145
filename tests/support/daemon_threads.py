"""A daemon inside the test process: the real observer, application and HTTP server, in threads."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from swtrace.daemon.collector import SnapshotCollector
from swtrace.daemon.daemon_settings import Listen, Watched
from swtrace.daemon.event_stream import StreamQuery
from swtrace.daemon.http_app import make_app
from swtrace.daemon.observer import Observer
from swtrace.daemon.server import bind, server_config, streams, url, watched_daemons
from swtrace.daemon.web_config import WebConfigFile
from swtrace.observing import HostRings, Origin
from swtrace.spans.delivery import NoSpans, SpanSink
from tests.support.daemon_command import LIMITS
from tests.support.patience import patience
from tests.support.web_files import WebFiles


@contextmanager
def serving(
    source: Path | Watched,
    *,
    down_shown_s: float = 300.0,
    spans: SpanSink | None = None,
    port: int = 0,
    web: WebFiles | None = None,
) -> Iterator[httpx.Client]:
    """Serve a folder of rings, or what other daemons serve, on a free port unless one is given, and yield a client.

    With ``web``, serve as its web configuration file says. The client then trusts its CA, but shows no credentials.
    """
    access = None if web is None else WebConfigFile(web.config)
    verify: ssl.SSLContext | bool = True if web is None else web.trust()
    watched = source if isinstance(source, Watched) else None
    origin: Origin = (
        HostRings(source, rescan_s=0, counted_since_ns=time.time_ns())
        if isinstance(source, Path)
        else watched_daemons(source, StreamQuery(newest_steps=source.every, every=source.every))
    )
    observer = Observer(origin, spans or NoSpans(), watched=watched, down_shown_s=down_shown_s)
    listener = bind(Listen("127.0.0.1", port))
    app = make_app(observer, SnapshotCollector(observer.snapshot, observer.health), streams(source))
    server = uvicorn.Server(server_config(app, access))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    base_url = url(listener, tls=access is not None and access.tls)
    observer.start()
    thread.start()
    try:
        with httpx.Client(base_url=base_url, timeout=patience(), limits=LIMITS, verify=verify) as client:
            yield client
    finally:
        observer.end_streams()
        server.should_exit = True
        thread.join(patience())
        listener.close()
        observer.stop(30)
        origin.close()
