"""Receivers of OTLP over HTTP in the test's process, one for spans, and a real collector in front of them."""

from __future__ import annotations

import gzip
import importlib.util
import socket
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.patience import eventually, patience


@dataclass(frozen=True)
class ReceivedSpan:
    """A received span with the resource of its process."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    start_ns: int
    end_ns: int
    attributes: dict[str, object]
    resource: dict[str, object]
    links: tuple[bytes, ...]
    error: bool


class Receiver(ABC):
    """Listens for OTLP/HTTP requests, and keeps their paths and headers."""

    def __init__(self, status: int = 200, location: str | None = None) -> None:
        """Listen on a free port; answer every request with ``status``, and redirect it to ``location``."""
        self.status = status
        self._location = location
        self._lock = threading.Lock()
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Return the base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @abstractmethod
    def take(self, body: bytes) -> None:
        """Keep the content of a request."""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with receiver._lock:
                    receiver.paths.append(self.path)
                    receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                    receiver.take(body)
                self.send_response(receiver.status)
                if receiver._location is not None:
                    self.send_header("Location", receiver._location)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        return Handler


class SpanReceiver(Receiver):
    """Collects the spans of every request."""

    def __init__(self, status: int = 200, location: str | None = None) -> None:
        """Listen as a :class:`Receiver`."""
        self._spans: list[ReceivedSpan] = []
        super().__init__(status, location)

    def take(self, body: bytes) -> None:
        """Keep the spans of a request."""
        self._spans += _received(ExportTraceServiceRequest.FromString(body))

    def spans(self) -> tuple[ReceivedSpan, ...]:
        """Return what has arrived so far."""
        with self._lock:
            return tuple(self._spans)

    def wait_for(self, count: int) -> tuple[ReceivedSpan, ...]:
        """Return the spans once at least ``count`` have arrived."""
        eventually(lambda: len(self.spans()) >= count, f"{count} spans")
        return self.spans()


def _received(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = attributes_of(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _span(span, resource)


def _span(span: Span, resource: dict[str, object]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=attributes_of(span.attributes),
        resource=resource,
        links=tuple(link.span_id for link in span.links),
        error=span.status.code == 2,
    )


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, object]:
    """Return OTLP's attributes as a dict."""
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


def free_port() -> int:
    """Return a port of 127.0.0.1 that is currently unused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def collector(directory: Path, receiver: Receiver) -> Iterator[tuple[str, str]]:
    """Run a real OpenTelemetry collector that forwards to ``receiver``. Yield its gRPC and HTTP endpoints."""
    package = importlib.util.find_spec("rotel")
    assert package is not None, "the collector is missing: install the test dependencies (rotel)"
    assert package.origin is not None
    grpc, http = free_port(), free_port()
    command = [
        str(Path(package.origin).parent / "rotel-agent"),
        "start",
        *("--pid-file", str(directory / "collector.pid")),
        *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"),
        *("--otlp-http-endpoint", f"127.0.0.1:{http}"),
        *("--exporter", "otlp"),
        *("--otlp-exporter-protocol", "http"),
        *("--otlp-exporter-endpoint", receiver.endpoint),
        *("--otlp-exporter-compression", "none"),
        *("--batch-timeout", "100ms"),
    ]
    with (directory / "collector.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            eventually(lambda: _listens(grpc) and _listens(http), "the collector to listen")
            yield f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}"
        finally:
            process.terminate()
            process.wait(patience())


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
