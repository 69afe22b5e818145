"""OpenTelemetry's standard variables, for both signals that the daemon exports, and what its exporters share.

Every value is checked here once, before anything is opened. An unusable value raises a
:class:`~swtrace.errors.SettingsError` that names the variable. As OpenTelemetry specifies, an empty variable counts
as unset, and a variable for one signal wins over the one for all. Settings of an export that is off are not checked.
"""

from __future__ import annotations

import math
import os
import re
import urllib.parse
from collections.abc import Mapping, MutableMapping
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from swtrace.errors import SettingsError
from swtrace.settings import MAX_TIMEOUT_S, MIN_TIMEOUT_S

if TYPE_CHECKING:
    import requests

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
DEFAULT_TIMEOUT_S = 10.0
"""How long a request may take, in seconds."""


class Signal(StrEnum):
    """A kind of data that OpenTelemetry exports, as it occurs in the names of its variables."""

    TRACES = "traces"
    METRICS = "metrics"


def remove_unusable_variables(environ: MutableMapping[str, str]) -> None:
    """Remove variables from the environment that OpenTelemetry's code fails on, before any of it is imported.

    These are empty variables, some of which it reads as values, and variables that it reads on import even if no spans
    are exported, but that do not apply to the spans made here: limits, and how an application's context travels.
    """
    for name, text in tuple(environ.items()):
        if name.startswith("OTEL_") and (not text.strip() or name.endswith(("_LIMIT", "_CONTEXT", "_PROPAGATORS"))):
            del environ[name]


def requested_exporters(environ: Mapping[str, str], signal: Signal, known: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the exporters that the environment names; none if the SDK is disabled, None if it names none.

    Raises:
        SettingsError: one of them is not ``known``.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    asked = environ.get(variable, "").strip()
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise SettingsError(f"{variable}={asked!r}: must be one of: {', '.join(known)}")
    return names or None


def otlp_protocol(environ: Mapping[str, str], signal: Signal) -> str:
    """Return the protocol to export with: ``grpc`` or ``http/protobuf``.

    Raises:
        SettingsError: another one is asked for.
    """
    name, protocol = otlp_variable(environ, "PROTOCOL", signal)
    if protocol and protocol not in _PROTOCOLS:
        raise SettingsError(f"{name}={protocol!r}: must be one of: {', '.join(_PROTOCOLS)}")
    return protocol or "http/protobuf"


def check_otlp(environ: Mapping[str, str], protocol: str, signal: Signal) -> None:
    """Check the variables that OpenTelemetry reads directly to export to a collector.

    Raises:
        SettingsError: one of them has a value that cannot be used.
    """
    name, text = otlp_variable(environ, "ENDPOINT", signal)
    if text:
        check_endpoint(name, text, protocol)
    name, text = otlp_variable(environ, "TIMEOUT", signal)
    if text and not _is_timeout(text):
        raise SettingsError(
            f"{name}={text!r}: must be a number of seconds from {MIN_TIMEOUT_S} to {MAX_TIMEOUT_S}, without a unit"
        )
    name, text = otlp_variable(environ, "HEADERS", signal)
    for header in filter(None, map(str.strip, text.split(","))):
        if not _is_header(header, protocol):
            given = re.split(r"[\s:=]", header)[0]  # the name only: values are often credentials
            shown = given if given == header else f"{given}..."
            raise SettingsError(
                f"{name}={shown!r}: must be NAME=VALUE,... with percent-encoded values of printable text"
            )
    name, text = otlp_variable(environ, "COMPRESSION", signal)
    if text and text.lower() not in _COMPRESSIONS[protocol]:
        raise SettingsError(f"{name}={text!r}: must be one of: {', '.join(_COMPRESSIONS[protocol])} (with {protocol})")
    for file in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
        name, text = otlp_variable(environ, file, signal)
        if text and not os.access(text, os.R_OK):
            raise SettingsError(f"{name}={text!r}: must be a readable file")


def check_endpoint(name: str, text: str, protocol: str) -> None:
    """Check the address of a collector, given in the setting ``name``.

    Raises:
        SettingsError: it is not valid.
    """
    if not _is_endpoint(text, protocol):
        example = "http://127.0.0.1:4317" if protocol == "grpc" else "http://127.0.0.1:4318"
        raise SettingsError(f"{name}={text!r}: must be the URL of a collector, such as {example}")


def otlp_variable(environ: Mapping[str, str], name: str, signal: Signal) -> tuple[str, str]:
    """Return name and text of a variable of the OTLP exporter: the one for the signal if set, else that for all."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
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


def check_detectors(environ: Mapping[str, str]) -> None:
    """Check the detectors of resources, which every exporter runs.

    Raises:
        SettingsError: one of them is not installed.
    """
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


def number(environ: Mapping[str, str], name: str, default: float) -> float:
    """Return the number, at least 0, in a variable.

    Raises:
        SettingsError: its value is not such a number.
    """
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise SettingsError(f"{name}={text!r}: must be a number, at least 0")
    return value


def milliseconds(environ: Mapping[str, str], name: str, default: float, least: int) -> float:
    """Return the time in a variable, which counts in milliseconds, in seconds.

    Raises:
        SettingsError: it is not a number from ``least`` to a week.
    """
    most = MAX_TIMEOUT_S * 1000
    try:
        value = number(environ, name, default)
    except SettingsError:
        value = math.inf
    if not least <= value <= most:
        raise SettingsError(
            f"{name}={environ[name].strip()!r}: must be a number of milliseconds from {least} to {most} (a week)"
        )
    return value / 1e3


def exporter_arguments(signal: Signal, protocol: str) -> dict[str, Any]:
    """Return what a signal's exporter takes besides endpoint and timeout. It reads the rest from the environment."""
    if protocol == "grpc":
        from grpc import Compression

        # Read here, because the exporter does not know the standard value "none".
        zipped = otlp_variable(os.environ, "COMPRESSION", signal)[1].lower() == "gzip"
        return {"compression": Compression.Gzip if zipped else Compression.NoCompression}
    provider = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
    if any(os.environ.get(provider.format(part)) for part in (f"{signal.upper()}_", "")):
        return {}  # It takes its session from the credential provider.
    import requests

    session = requests.Session()
    session.hooks["response"].append(_refuse_redirect)
    return {"session": session}


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
            "URL that accepts OTLP"
        )
