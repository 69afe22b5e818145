"""What the daemon is told: its own settings, and OpenTelemetry's standard variables for the spans.

Every value is checked here, once, before anything is opened; what cannot be used is a
:class:`~swtrace.errors.SettingsError` that names the variable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from swtrace.errors import SettingsError

DEFAULT_LISTEN = "127.0.0.1:9465"
DEFAULT_MAX_QUEUE = 1 << 16
"""Spans. OpenTelemetry's own default of 2048 is two steps of a 61-layer model on eight ranks."""
DEFAULT_MAX_BATCH = 2048
"""Spans per request: about 1 MiB, below the 4 MiB that gRPC receivers accept unless told otherwise."""

_DURATION = re.compile(r"(?P<number>[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(?P<unit>ns|us|ms|s|m)?", re.IGNORECASE)
_UNIT_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_EXPORTERS = ("otlp", "console", "none")
_PROTOCOLS = ("grpc", "http/protobuf")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Listen:
    """The address to serve on. Port 0 lets the system choose one; an empty host means every interface."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read ``host:port``, ``[v6 address]:port`` or ``:port``."""
        host, colon, port = text.strip().rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT or (":" in host) != bracketed:
            raise SettingsError(f"SWTRACE_LISTEN={text!r} is not HOST:PORT, for example {DEFAULT_LISTEN}")
        return cls(host[1:-1] if bracketed else host, int(port))

    def __str__(self) -> str:
        """Return the address as it is written."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SpanSettings:
    """Which spans are exported, and where to."""

    exporters: tuple[str, ...] = ()
    """Of ``otlp`` and ``console``; empty: no spans are made at all."""
    protocol: str = "http/protobuf"
    sample: float = 1.0
    """Share of steps whose spans are exported."""
    slow_step_ns: int | None = None
    """Steps at least this long are exported whatever the sample says."""
    max_queue: int = DEFAULT_MAX_QUEUE
    max_batch: int = DEFAULT_MAX_BATCH
    delay_s: float = 1.0
    """How long spans may wait for a batch to fill."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> SpanSettings:
        """Read ``SWTRACE_TRACE_SAMPLE``, ``SWTRACE_SLOW_STEP`` and OpenTelemetry's variables.

        Endpoint, headers, certificates, compression and time-outs are left to the OpenTelemetry exporters,
        which read them from the same environment.
        """
        slow_step = environ.get("SWTRACE_SLOW_STEP", "").strip()
        sample = _number(environ, "SWTRACE_TRACE_SAMPLE", 1.0)
        if not 0 <= sample <= 1:
            raise SettingsError(f"SWTRACE_TRACE_SAMPLE={sample} is not between 0 (no step) and 1 (every step)")
        max_queue = _count(environ, "OTEL_BSP_MAX_QUEUE_SIZE", DEFAULT_MAX_QUEUE)
        return cls(
            exporters=_exporters(environ),
            protocol=_protocol(environ),
            sample=sample,
            slow_step_ns=_duration_ns("SWTRACE_SLOW_STEP", slow_step) if slow_step else None,
            max_queue=max_queue,
            max_batch=min(max_queue, _count(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", DEFAULT_MAX_BATCH)),
            delay_s=_number(environ, "OTEL_BSP_SCHEDULE_DELAY", 1000.0) / 1e3,
        )


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """Everything the daemon is told."""

    directory: Path
    """Where the rings are."""
    listen: Listen
    spans: SpanSettings
    run_id: str | None = None
    """Watch this run only; None: every run in the directory."""

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        *,
        directory: Path,
        listen: str | None = None,
        run_id: str | None = None,
    ) -> DaemonSettings:
        """Read the environment; what is given here wins over it."""
        return cls(
            directory=directory,
            listen=Listen.parse(listen or environ.get("SWTRACE_LISTEN") or DEFAULT_LISTEN),
            spans=SpanSettings.from_environment(environ),
            run_id=run_id,
        )


def _exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the exporters asked for. A collector is only ever contacted when the environment names one."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    asked = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not asked:
        endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        return ("otlp",) if endpoint else ()
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names:
        if name not in _EXPORTERS:
            raise SettingsError(f"OTEL_TRACES_EXPORTER={asked!r}: {name!r} is none of {', '.join(_EXPORTERS)}")
    return tuple(name for name in names if name != "none")


def _protocol(environ: Mapping[str, str]) -> str:
    name = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    if not environ.get(name):
        name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = environ.get(name, "").strip() or "http/protobuf"
    if protocol not in _PROTOCOLS:
        raise SettingsError(f"{name}={protocol!r} is none of {', '.join(_PROTOCOLS)}")
    return protocol


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise SettingsError(f"{name}={text!r} is not a number of at least 0")
    return number


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    number = _number(environ, name, default)
    if number < 1 or number != int(number):
        raise SettingsError(f"{name}={number} is not a whole number of at least 1")
    return int(number)


def _duration_ns(name: str, text: str) -> int:
    """Read a duration such as ``0.1 s``, ``100ms`` or ``0.1`` (seconds)."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise SettingsError(f"{name}={text!r} is not a duration such as 0.1 (seconds), 100 ms or 2 s")
    return round(float(match["number"]) * _UNIT_NS[(match["unit"] or "s").lower()])
