"""Settings of the span export, from OpenTelemetry's standard variables and two of swtrace.

Every value is checked here once, before anything is opened. An unusable value raises a
:class:`~swtrace.errors.SettingsError` that names the variable. As OpenTelemetry specifies, an empty variable counts
as unset. Settings of an export that is off are not checked.
"""

from __future__ import annotations

import math
import os
import re
import urllib.parse
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from swtrace.errors import SettingsError
from swtrace.settings import MAX_TIMEOUT_S, MIN_TIMEOUT_S

DEFAULT_MAX_QUEUE = 1 << 16
"""Spans. OpenTelemetry's default of 2048 is two steps of a 61-layer model on eight ranks."""
DEFAULT_MAX_BATCH = 2048
"""Spans per request: about 1 MiB, below the 4 MiB that gRPC receivers accept by default."""

_DURATION = re.compile(r"(?P<number>[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(?P<unit>ns|us|ms|s|m)?", re.IGNORECASE)
_UNIT_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_EXPORTERS = ("otlp", "console", "none")
_PROTOCOLS = ("grpc", "http/protobuf")
_COMPRESSIONS = {"grpc": ("none", "gzip"), "http/protobuf": ("none", "gzip", "deflate")}
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:")
_HOST = re.compile(r"[\w:%-]+(?:\.[\w:%-]+)*\.?")
_HEADER = re.compile(r"(?P<name>[!#$%&'*+.^`|~\w-]+)[ \t]*=[ \t]*(?P<value>[ !#-+\--:<-\[\]-~]*)", re.ASCII)
"""One ``NAME=VALUE`` of the headers, as OpenTelemetry's parser accepts it."""
_SENT_NAMES = {"grpc": re.compile(r"[0-9a-z_.-]+"), "http/protobuf": re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)}
_SENT_VALUES = {"grpc": re.compile(r"[ -~]*"), "http/protobuf": re.compile(r"[\t -~\x80-\xff]*")}
"""What each protocol can send, after percent-decoding."""
_DETECTORS = "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"
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
        protocol = _protocol(environ)
        if "otlp" in exporters:
            check_otlp(environ, protocol)
        else:
            _check_detectors(environ)
        slow_step = environ.get("SWTRACE_SLOW_STEP", "").strip()
        sample = _number(environ, "SWTRACE_TRACE_SAMPLE", 1.0)
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
            delay_s=_delay_s(environ),
        )


def remove_unusable_variables(environ: MutableMapping[str, str]) -> None:
    """Remove variables from the environment that OpenTelemetry's code fails on, before any of it is imported.

    These are empty variables, some of which it reads as values, and limits. It reads limits on import even if no spans
    are exported, and they do not apply to the spans made here.
    """
    for name, text in tuple(environ.items()):
        if name.startswith("OTEL_") and (not text.strip() or name.endswith("_LIMIT")):
            del environ[name]


def check_otlp(environ: Mapping[str, str], protocol: str) -> None:
    """Check the variables that OpenTelemetry reads directly to export to a collector.

    Raises:
        SettingsError: one of them has a value that cannot be used.
    """
    name, text = otlp_variable(environ, "ENDPOINT")
    if text:
        check_endpoint(name, text, protocol)
    name, text = otlp_variable(environ, "TIMEOUT")
    if text and not _is_timeout(text):
        raise SettingsError(
            f"{name}={text!r}: must be a number of seconds from {MIN_TIMEOUT_S} to {MAX_TIMEOUT_S}, without a unit"
        )
    name, text = otlp_variable(environ, "HEADERS")
    for header in filter(None, map(str.strip, text.split(","))):
        if not _is_header(header, protocol):
            given = re.split(r"[\s:=]", header)[0]  # the name only: values are often credentials
            shown = given if given == header else f"{given}..."
            raise SettingsError(
                f"{name}={shown!r}: must be NAME=VALUE,... with percent-encoded values of printable text"
            )
    name, text = otlp_variable(environ, "COMPRESSION")
    if text and text.lower() not in _COMPRESSIONS[protocol]:
        raise SettingsError(f"{name}={text!r}: must be one of: {', '.join(_COMPRESSIONS[protocol])} (with {protocol})")
    for file in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
        name, text = otlp_variable(environ, file)
        if text and not os.access(text, os.R_OK):
            raise SettingsError(f"{name}={text!r}: must be a readable file")
    _check_detectors(environ)


def check_endpoint(name: str, text: str, protocol: str) -> None:
    """Check the address of a collector, given in the setting ``name``.

    Raises:
        SettingsError: it is not valid.
    """
    if not _is_endpoint(text, protocol):
        example = "http://127.0.0.1:4317" if protocol == "grpc" else "http://127.0.0.1:4318"
        raise SettingsError(f"{name}={text!r}: must be the URL of a collector, such as {example}")


def otlp_variable(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return name and text of a variable of the OTLP exporter: the one for traces if set, else that for all signals."""
    for variable in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        if text := environ.get(variable, "").strip():
            return variable, text
    return f"OTEL_EXPORTER_OTLP_{name}", ""


def _is_endpoint(text: str, protocol: str) -> bool:
    if protocol == "grpc" and text.startswith(_GRPC_SCHEMES):
        return True
    try:
        url = urllib.parse.urlsplit(text if "://" in text or protocol != "grpc" else f"http://{text}")
        return url.scheme in {"http", "https"} and bool(_HOST.fullmatch(url.hostname or "")) and url.port != 0
    except ValueError:
        return False


def _is_timeout(text: str) -> bool:
    try:
        return MIN_TIMEOUT_S <= float(text) <= MAX_TIMEOUT_S
    except ValueError:
        return False


def _is_header(text: str, protocol: str) -> bool:
    match = _HEADER.fullmatch(text)
    if match is None:
        return False
    name, value = urllib.parse.unquote(match["name"]).strip().lower(), match["value"].strip()
    if " " not in value:  # OpenTelemetry sends a value with spaces as it is
        value = urllib.parse.unquote(value).strip()
    return bool(_SENT_NAMES[protocol].fullmatch(name) and _SENT_VALUES[protocol].fullmatch(value))


def _check_detectors(environ: Mapping[str, str]) -> None:
    text = environ.get(_DETECTORS, "").strip()
    if not text:
        return
    from importlib.metadata import entry_points  # rarely needed

    installed = entry_points(group="opentelemetry_resource_detector").names
    for name in filter(None, map(str.strip, text.split(","))):
        if name != "*" and name not in installed:
            raise SettingsError(
                f"{_DETECTORS}={text!r}: must be * or a comma-separated list of: {', '.join(sorted(installed))}"
            )


def _exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the requested exporters. By default, export only if the environment names a collector."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    asked = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not asked:
        return ("otlp",) if otlp_variable(environ, "ENDPOINT")[1] else ()
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names:
        if name not in _EXPORTERS:
            raise SettingsError(f"OTEL_TRACES_EXPORTER={asked!r}: must be one of: {', '.join(_EXPORTERS)}")
    return tuple(name for name in names if name != "none")


def _protocol(environ: Mapping[str, str]) -> str:
    name, protocol = otlp_variable(environ, "PROTOCOL")
    if protocol and protocol not in _PROTOCOLS:
        raise SettingsError(f"{name}={protocol!r}: must be one of: {', '.join(_PROTOCOLS)}")
    return protocol or "http/protobuf"


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise SettingsError(f"{name}={text!r}: must be a number, at least 0")
    return number


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    number = _number(environ, name, default)
    if number < 1 or number != int(number):
        raise SettingsError(f"{name}={environ[name]!r}: must be a whole number, at least 1")
    return int(number)


def _delay_s(environ: Mapping[str, str]) -> float:
    name = "OTEL_BSP_SCHEDULE_DELAY"
    delay_s = _number(environ, name, 1000.0) / 1e3
    if delay_s > MAX_TIMEOUT_S:
        raise SettingsError(
            f"{name}={environ[name]!r}: must be a number of milliseconds from 0 to {MAX_TIMEOUT_S * 1000} (a week)"
        )
    return delay_s


def _duration_ns(name: str, text: str) -> int:
    """Read a duration such as ``0.1 s``, ``100ms`` or ``0.1`` (seconds)."""
    match = _DURATION.fullmatch(text)
    duration = math.inf if match is None else float(match["number"]) * _UNIT_NS[(match["unit"] or "s").lower()]
    if not duration < _MAX_NS:
        raise SettingsError(f"{name}={text!r}: must be a duration, such as 0.1 (seconds), 100 ms or 2 s")
    return round(duration)
