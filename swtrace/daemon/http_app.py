"""The daemon's HTTP endpoints. Handlers run in threads and only read snapshots."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import re
import threading
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from swtrace.daemon import api
from swtrace.daemon.clock_endpoint import ClockEndpoint
from swtrace.daemon.diagnoses import Diagnoses, diagnosed
from swtrace.daemon.event_stream import MEDIA_TYPE, StreamQuery, stream
from swtrace.daemon.exposition import Exposition
from swtrace.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from prometheus_client.registry import Collector
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from swtrace.daemon.collector import SnapshotCollector
    from swtrace.daemon.observer import Observer
    from swtrace.daemon.snapshot import Snapshot
    from swtrace.observing import Origin

_log = logging.getLogger(__name__)
_REFUSED = re.compile(rb";\s*q\s*=\s*0(\.0*)?\s*(;|$)", re.IGNORECASE)

STALLED_S = 600.0
"""How long a client of the stream may take nothing. A suspended recorder has lost records long before."""
KEPT_EXPOSITIONS = 2
"""How many formats keep their rendered lines."""

DOCUMENTS: dict[str, tuple[str, Callable[[Snapshot, api.Query], api.Document]]] = {
    "snapshot": ("all documents below but windows, from one snapshot", api.everything),
    "ranks": ("ranks, their rings, series tables and windows", api.ranks),
    "series": ("series: totals, sums over recent steps, stragglers", api.series),
    "windows": ("windows by state, with the layers they hold", api.windows),
    "steps": ("recent steps with all instants", api.steps),
    "diagnosis": ("what is wrong, who, since when, what to do, what it would save", diagnosed),
    "health": ("files that cannot be read, odd records, spans", lambda snapshot, _query: api.health(snapshot)),
}


def make_app(
    observer: Observer, collector: SnapshotCollector, open_origin: Callable[[StreamQuery], Origin]
) -> Starlette:
    """Return the application that serves the observer's snapshots, and the metrics that are collected from them.

    ``open_origin`` makes what a client of the stream reads.
    """
    handlers = _Handlers(observer, collector, open_origin)
    return Starlette(
        routes=[
            Route("/", handlers.index),
            Route("/metrics", handlers.metrics),
            Route("/healthz", handlers.healthz),
            Route("/api/v1", handlers.contents),
            Route("/api/v1/recording", handlers.recording),
            Route("/api/v1/{name}", handlers.document),
        ],
        exception_handlers={api.QueryError: _refusing(400), api.UnknownError: _refusing(404)},
        middleware=[
            Middleware(ClockEndpoint),
            Middleware(_Refusals),
            Middleware(GZipMiddleware, minimum_size=1024, compresslevel=1),
        ],
    )


class _Handlers:
    def __init__(
        self, observer: Observer, collector: SnapshotCollector, open_origin: Callable[[StreamQuery], Origin]
    ) -> None:
        self._observer = observer
        self._open_origin = open_origin
        self._collector = collector
        self._diagnoses = Diagnoses()
        self._expositions: dict[str, Exposition] = {}
        # Rendering is pure Python, so concurrent scrapes would only compete for the GIL.
        self._rendering = threading.Lock()

    def index(self, _request: Request) -> Response:
        rows = [("/metrics", "Prometheus metrics"), ("/healthz", "ok, or the reason why rings cannot be read")]
        rows += [(f"/api/v1/{name}", about) for name, (about, _make) in DOCUMENTS.items()]
        links = "".join(f'<li><a href="{path}">{path}</a> {html.escape(about)}</li>' for path, about in rows)
        links += '<li><a href="/api/v1/clock">/api/v1/clock</a> the clock of this host\'s instants</li>'
        links += "<li>/api/v1/recording every record, as an endless stream (swtrace record --connect)</li>"
        return HTMLResponse(
            "<!doctype html><html lang=en><meta charset=utf-8><title>swtrace</title>"
            f"<h1>swtrace {__version__}</h1><ul>{links}</ul></html>\n"
        )

    def metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        with self._rendering:
            body = self._exposition(encode, content_type).render(self._collector.rows())
        return Response(body, headers={"content-type": content_type})

    def _exposition(self, encode: Callable[[Collector], bytes], content_type: str) -> Exposition:
        """Return the renderer of this type. Only the most recent ones are kept: each holds a whole exposition."""
        exposition = self._expositions.pop(content_type, None)
        if exposition is None:
            exposition = Exposition(encode, exemplars=content_type.startswith("application/openmetrics-text"))
        self._expositions[content_type] = exposition
        if len(self._expositions) > KEPT_EXPOSITIONS:
            del self._expositions[next(iter(self._expositions))]
        return exposition

    def healthz(self, _request: Request) -> Response:
        trouble = self._observer.health().trouble
        return PlainTextResponse(f"{trouble or 'ok'}\n", status_code=503 if trouble else 200)

    def contents(self, _request: Request) -> Response:
        return _json(
            {"api": api.VERSION, "documents": {f"/api/v1/{name}": about for name, (about, _) in DOCUMENTS.items()}}
        )

    def recording(self, request: Request) -> Response:
        observer = self._observer
        wanted = StreamQuery.parse(request.query_params)
        frames = stream(self._open_origin(wanted), wanted, lambda: observer.streaming)
        return _Stream(frames, media_type=MEDIA_TYPE, headers={"content-encoding": "identity"})

    def document(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in DOCUMENTS:
            return _json(
                {"error": f"unknown document {name!r}; must be one of: {', '.join(DOCUMENTS)}"}, status_code=404
            )
        query = api.Query.parse(request.query_params)
        snapshot = self._observer.snapshot()
        if snapshot is None:
            return _json(
                {"error": self._observer.health().trouble or "reading the rings takes too long"}, status_code=503
            )
        query.check(snapshot)
        _about, make = DOCUMENTS[name]
        document = self._diagnoses.of(snapshot, query) if make is diagnosed else make(snapshot, query)
        return _json({**api.moment(snapshot), **document})


class _Stream(StreamingResponse):
    """A stream that ends once its client has taken nothing for long. It would keep open every ring that is removed."""

    def __init__(self, frames: Generator[bytes], **options: Any) -> None:
        super().__init__(frames, **options)
        self._frames = frames

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALLED_S):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            _log.warning("a client of /api/v1/recording took nothing for %.0f s, so its stream ends", STALLED_S)
        finally:
            # Otherwise its files and connections stay open until some thread collects the garbage.
            asyncio.get_running_loop().run_in_executor(None, self._frames.close)


class _Refusals:
    """Removes refused choices (``q=0``) from the Accept headers, because the handlers look at names only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [
                (name, _accepted(value) if name in {b"accept", b"accept-encoding"} else value)
                for name, value in scope["headers"]
            ]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def _accepted(header: bytes) -> bytes:
    return b",".join(choice for choice in header.split(b",") if not _REFUSED.search(choice))


def _refusing(status_code: int) -> Callable[[Request, Exception], Response]:
    """Return an exception handler that answers with the error and this status code."""
    return lambda _request, error: _json({"error": str(error)}, status_code)


def _json(document: api.Document, status_code: int = 200) -> Response:
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Response(text, status_code=status_code, media_type="application/json", headers={"cache-control": "no-store"})
