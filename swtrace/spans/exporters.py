"""OpenTelemetry's own exporters, which do the sending: they read where to and how from the environment."""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SpanExporter

from swtrace.errors import SettingsError
from swtrace.spans.environment import otlp_variable

if TYPE_CHECKING:
    import requests

_CREDENTIAL_PROVIDERS = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
)


def otlp_exporter(endpoint: str | None, protocol: str) -> SpanExporter:
    """Return OpenTelemetry's own exporter; what is not said here it takes from its ``OTEL_*`` variables.

    Args:
        endpoint: URL of the collector, without path; None: the environment's.
        protocol: ``grpc`` or ``http/protobuf``.

    Raises:
        SettingsError: it cannot be made as its variables say.
    """
    # gRPC alone costs 0.1 s and 20 MB: load only what is used.
    try:
        if protocol == "grpc":
            from grpc import Compression
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

            # Read here, because it does not know the standard's "none".
            zipped = otlp_variable(os.environ, "COMPRESSION")[1].lower() == "gzip"
            return Grpc(endpoint=endpoint, compression=Compression.Gzip if zipped else Compression.NoCompression)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        target = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
        if any(os.environ.get(variable) for variable in _CREDENTIAL_PROVIDERS):
            return Http(endpoint=target)  # which takes its session from there
        import requests

        session = requests.Session()
        session.hooks["response"].append(_refuse_redirect)
        return Http(endpoint=target, session=session)
    except Exception as error:  # (it raises bare ones of many kinds)
        raise SettingsError(f"the OTEL_EXPORTER_OTLP_* settings cannot be used: {error}") from error


def _refuse_redirect(response: requests.Response, *_: object, **__: object) -> None:
    """Fail an export that is redirected: the exporter would take the redirect for a success.

    Raises:
        RequestException: It says where to.
    """
    import requests

    if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
        target = response.headers.get("location", "nowhere")
        raise requests.RequestException(
            f"the collector redirects ({response.status_code}) to {target!r}: set OTEL_EXPORTER_OTLP_ENDPOINT to where "
            "it takes spans"
        )
