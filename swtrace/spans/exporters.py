"""OpenTelemetry's exporters, which send the spans. They read their settings from the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter

from swtrace.errors import SettingsError
from swtrace.spans.encoding import EncodedRequest, SpanBatch
from swtrace.spans.environment import otlp_variable

if TYPE_CHECKING:
    import requests

_CREDENTIAL_PROVIDERS = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
)


def otlp_exporter(endpoint: str | None, protocol: str) -> SpanExporter:
    """Return OpenTelemetry's OTLP exporter. It takes all other settings from its ``OTEL_*`` variables.

    Args:
        endpoint: URL of the collector, without a path. None: take it from the environment.
        protocol: ``grpc`` or ``http/protobuf``.

    Raises:
        SettingsError: the exporter cannot be made with these variables.
    """
    # Load only what is used: gRPC alone costs 0.1 s and 20 MB.
    try:
        if protocol == "grpc":
            from grpc import Compression
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

            _encodes_batches(
                "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", ExportTraceServiceRequest.FromString
            )
            # Read here, because the exporter does not know the standard value "none".
            zipped = otlp_variable(os.environ, "COMPRESSION")[1].lower() == "gzip"
            return Grpc(endpoint=endpoint, compression=Compression.Gzip if zipped else Compression.NoCompression)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        _encodes_batches("opentelemetry.exporter.otlp.proto.http.trace_exporter", EncodedRequest)
        target = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
        if any(os.environ.get(variable) for variable in _CREDENTIAL_PROVIDERS):
            return Http(endpoint=target)  # takes its session from the credential provider
        import requests

        session = requests.Session()
        session.hooks["response"].append(_refuse_redirect)
        return Http(endpoint=target, session=session)
    except Exception as error:  # (the exporters raise many kinds)
        raise SettingsError(f"the OTEL_EXPORTER_OTLP_* settings cannot be used: {error}") from error


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Replaces an exporter's encoder. It uses the bytes of a :class:`SpanBatch` and encodes other spans as before."""

    request: Callable[[EncodedRequest], EncodedRequest | ExportTraceServiceRequest]
    """Converts a request to what the exporter can send. gRPC sends only messages, so it parses the bytes."""
    others: Callable[[Sequence[ReadableSpan]], ExportTraceServiceRequest]

    def __call__(self, spans: Sequence[ReadableSpan]) -> EncodedRequest | ExportTraceServiceRequest:
        return self.request(spans.request()) if isinstance(spans, SpanBatch) else self.others(spans)


def _encodes_batches(
    name: str, request: Callable[[EncodedRequest], EncodedRequest | ExportTraceServiceRequest]
) -> None:
    """Make the exporters of a module send a :class:`~swtrace.spans.encoding.SpanBatch` as encoded by swtrace.

    The exporter still handles headers, compression, retries and limits. A release without such an encoder reads the
    batch as a sequence of spans, which is slower but gives the same result.
    """
    module: Any = sys.modules[name]
    encoder = getattr(module, "encode_spans", None)
    if encoder is not None and not isinstance(encoder, _Encoder):
        module.encode_spans = _Encoder(request, encoder)


def _refuse_redirect(response: requests.Response, *_: object, **__: object) -> None:
    """Fail an export that is redirected, because the exporter would treat the redirect as success.

    Raises:
        RequestException: the response is a redirect; the message names its target.
    """
    import requests

    if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
        target = response.headers.get("location", "nowhere")
        raise requests.RequestException(
            f"the collector redirects ({response.status_code}) to {target!r}: set OTEL_EXPORTER_OTLP_ENDPOINT to the "
            "URL that accepts spans"
        )
