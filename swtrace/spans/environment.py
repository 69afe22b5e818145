"""Settings of the span export, from OpenTelemetry's standard variables and two of swtrace."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from swtrace.errors import SettingsError
from swtrace.otel_variables import (
    Signal,
    check_detectors,
    check_otlp,
    milliseconds,
    number,
    otlp_protocol,
    otlp_variable,
    requested_exporters,
)

DEFAULT_MAX_QUEUE = 1 << 16
"""Spans. OpenTelemetry's default of 2048 is two steps of a 61-layer model on eight ranks."""
DEFAULT_MAX_BATCH = 2048
"""Spans per request: about 1 MiB, below the 4 MiB that gRPC receivers accept by default."""

_DURATION = re.compile(r"(?P<number>[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(?P<unit>ns|us|ms|s|m)?", re.IGNORECASE)
_UNIT_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_MAX_NS = 1 << 63


@dataclass(frozen=True, slots=True)
class SpanSettings:
    """Which spans are exported, and to where."""

    exporters: tuple[str, ...] = ()
    """``otlp``, ``console`` or both. Empty: no spans are made."""
    protocol: str = "http/protobuf"
    sample: float = 1.0
    """Share of steps whose spans are exported."""
    slow_step_ns: int | None = None
    """Steps at least this long are exported even if they are not sampled."""
    max_queue: int = DEFAULT_MAX_QUEUE
    max_batch: int = DEFAULT_MAX_BATCH
    delay_s: float = 1.0
    """How long spans may wait for their batch to fill, in seconds."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> SpanSettings:
        """Read ``SWTRACE_TRACE_SAMPLE``, ``SWTRACE_SLOW_STEP`` and OpenTelemetry's variables.

        The OpenTelemetry exporters read endpoint, headers, certificates, compression and timeouts from the same
        environment. This method only checks that they can be used.

        Raises:
            SettingsError: a variable of an active export has a value that cannot be used.
        """
        exporters = _exporters(environ)
        if not exporters:
            return cls()
        check_detectors(environ)
        protocol = otlp_protocol(environ, Signal.TRACES)
        if "otlp" in exporters:
            check_otlp(environ, protocol, Signal.TRACES)
        slow_step = environ.get("SWTRACE_SLOW_STEP", "").strip()
        sample = number(environ, "SWTRACE_TRACE_SAMPLE", 1.0)
        if sample > 1:
            raise SettingsError(
                f"SWTRACE_TRACE_SAMPLE={environ['SWTRACE_TRACE_SAMPLE']!r}: must be from 0 (no step) to 1 (every step)"
            )
        max_queue = _count(environ, "OTEL_BSP_MAX_QUEUE_SIZE", DEFAULT_MAX_QUEUE)
        return cls(
            exporters=exporters,
            protocol=protocol,
            sample=sample,
            slow_step_ns=_duration_ns("SWTRACE_SLOW_STEP", slow_step) if slow_step else None,
            max_queue=max_queue,
            max_batch=min(max_queue, _count(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", DEFAULT_MAX_BATCH)),
            delay_s=milliseconds(environ, "OTEL_BSP_SCHEDULE_DELAY", 1000.0, least=0),
        )


def _exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the requested exporters. By default, export only if the environment names a collector."""
    asked = requested_exporters(environ, Signal.TRACES, ("otlp", "console", "none"))
    if asked is None:
        asked = ("otlp",) if otlp_variable(environ, "ENDPOINT", Signal.TRACES)[1] else ()
    return tuple(name for name in asked if name != "none")


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    count = number(environ, name, default)
    if count < 1 or count != int(count):
        raise SettingsError(f"{name}={environ[name]!r}: must be a whole number, at least 1")
    return int(count)


def _duration_ns(name: str, text: str) -> int:
    """Read a duration such as ``0.1 s``, ``100ms`` or ``0.1`` (seconds)."""
    match = _DURATION.fullmatch(text)
    duration = math.inf if match is None else float(match["number"]) * _UNIT_NS[(match["unit"] or "s").lower()]
    if not duration < _MAX_NS:
        raise SettingsError(f"{name}={text!r}: must be a duration, such as 0.1 (seconds), 100 ms or 2 s")
    return round(duration)
