"""OpenTelemetry's exporters, which send the spans. They read their settings from the environment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter

from swtrace.errors import SettingsError
from swtrace.otel_variables import Signal, exporter_arguments
from swtrace.spans.encoding import EncodedRequest, SpanBatch


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
        arguments = exporter_arguments(Signal.TRACES, protocol)
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

            _encodes_batches(
                "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", ExportTraceServiceRequest.FromString
            )
            return Grpc(endpoint=endpoint, **arguments)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        _encodes_batches("opentelemetry.exporter.otlp.proto.http.trace_exporter", EncodedRequest)
        return Http(endpoint=None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces", **arguments)
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
