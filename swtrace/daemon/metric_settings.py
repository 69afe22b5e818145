"""Settings of the metric export, from OpenTelemetry's standard variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swtrace.errors import SettingsError
from swtrace.otel_variables import (
    DEFAULT_TIMEOUT_S,
    Signal,
    check_detectors,
    check_otlp,
    milliseconds,
    otlp_protocol,
    otlp_variable,
    requested_exporters,
)

_SERVED = "prometheus"
"""The exporter that is always there: ``/metrics``."""
_ONLY_VALUES = {
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": (
        "cumulative",
        "; a collector can convert it (cumulativetodelta)",
    ),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": ("explicit_bucket_histogram", ""),
}
"""Variables of which swtrace implements one value, and what to do instead of another."""


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """Whether metrics are exported, and how."""

    exporters: tuple[str, ...] = ()
    """``otlp``, ``console`` or both. Empty: metrics are only served at ``/metrics``."""
    protocol: str = "http/protobuf"
    interval_s: float = 60.0
    timeout_s: float = DEFAULT_TIMEOUT_S
    """How long an export may take, in seconds."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> MetricSettings:
        """Read OpenTelemetry's variables. Endpoint, headers, certificates and compression are only checked.

        Raises:
            SettingsError: a variable of an active export has a value that cannot be used.
        """
        exporters = _exporters(environ)
        if not exporters:
            return cls()
        check_detectors(environ)
        protocol = otlp_protocol(environ, Signal.METRICS)
        timeout_s = milliseconds(environ, "OTEL_METRIC_EXPORT_TIMEOUT", 30_000.0, least=1)
        if "otlp" in exporters:
            check_otlp(environ, protocol, Signal.METRICS)
            timeout_s = min(timeout_s, float(otlp_variable(environ, "TIMEOUT", Signal.METRICS)[1] or DEFAULT_TIMEOUT_S))
            for name, (only, instead) in _ONLY_VALUES.items():
                text = environ.get(name, "").strip()
                if text and text.lower() != only:
                    raise SettingsError(f"{name}={text!r}: must be {only}{instead}")
        interval_s = milliseconds(environ, "OTEL_METRIC_EXPORT_INTERVAL", 60_000.0, least=1)
        return cls(exporters, protocol, interval_s, timeout_s)


def _exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the requested exporters. By default, export only if the environment names a collector of metrics.

    An endpoint for all signals is not enough: it is often a store of traces, and ``/metrics`` has the same metrics.
    """
    asked = requested_exporters(environ, Signal.METRICS, ("otlp", "console", _SERVED, "none"))
    if asked is None:
        asked = ("otlp",) if environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "").strip() else ()
    return tuple(name for name in asked if name not in {_SERVED, "none"})
