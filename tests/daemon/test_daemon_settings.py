"""Settings of the daemon: what the environment says, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtrace.daemon.settings import DaemonSettings, Listen, SpanSettings
from swtrace.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9465", "127.0.0.1", 9465),
        ("localhost:0", "localhost", 0),
        ("[::1]:9465", "::1", 9465),
        (":9465", "", 9465),
    ],
)
def test_listen_is_read(text: str, host: str, port: int) -> None:
    """An address is a host and a port, an IPv6 one in brackets, and is written as it was read."""
    listen = Listen.parse(text)
    assert (listen.host, listen.port) == (host, port)
    assert str(listen) == text


@pytest.mark.parametrize("text", ["", "9465", "localhost", "localhost:", "localhost:x", "::1:9465", "a:65536", "a:-1"])
def test_unusable_listen_is_refused(text: str) -> None:
    """What is no address is refused with the name of the setting."""
    with pytest.raises(SettingsError, match="SWTRACE_LISTEN"):
        Listen.parse(text)


def test_defaults() -> None:
    """Without settings the daemon binds to loopback and contacts nobody."""
    settings = DaemonSettings.from_environment({}, directory=Path("/rings"))
    assert str(settings.listen) == "127.0.0.1:9465"
    assert settings.spans.exporters == ()


def test_argument_wins_over_environment() -> None:
    """An address on the command line wins over the environment's."""
    environ = {"SWTRACE_LISTEN": "127.0.0.1:1"}
    settings = DaemonSettings.from_environment(environ, directory=Path("/rings"), listen="127.0.0.1:2")
    assert settings.listen.port == 2


@pytest.mark.parametrize(
    ("environ", "exporters"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp",)),
        ({"OTEL_TRACES_EXPORTER": "console"}, ("console",)),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, ("otlp", "console")),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ()),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ()),
    ],
)
def test_exporting_is_asked_for(environ: dict[str, str], exporters: tuple[str, ...]) -> None:
    """Spans are exported only where an endpoint or an exporter is named, and never where the SDK is disabled."""
    assert SpanSettings.from_environment(environ).exporters == exporters


def test_traces_protocol_wins_over_the_general_one() -> None:
    """The signal's own variable wins, and the default is OpenTelemetry's: http/protobuf."""
    assert SpanSettings.from_environment({}).protocol == "http/protobuf"
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}
    assert SpanSettings.from_environment(environ).protocol == "grpc"


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("0.1 s", 100_000_000),
        ("100ms", 100_000_000),
        ("250 us", 250_000),
        ("2", 2_000_000_000),
        ("1e-3", 1_000_000),
        (".5s", 500_000_000),
    ],
)
def test_slow_step_is_a_duration(text: str, expected_ns: int) -> None:
    """A slow step is given in seconds or with a unit."""
    assert SpanSettings.from_environment({"SWTRACE_SLOW_STEP": text}).slow_step_ns == expected_ns


@pytest.mark.parametrize(
    "environ",
    [
        {"SWTRACE_TRACE_SAMPLE": "1.5"},
        {"SWTRACE_TRACE_SAMPLE": "-0.1"},
        {"SWTRACE_TRACE_SAMPLE": "nan"},
        {"SWTRACE_TRACE_SAMPLE": "all"},
        {"SWTRACE_SLOW_STEP": "fast"},
        {"SWTRACE_SLOW_STEP": "-1 s"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "0"},
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1.5"},
    ],
)
def test_unusable_value_is_refused(environ: dict[str, str]) -> None:
    """A value that cannot be used is refused with the name of its variable."""
    (name,) = environ
    with pytest.raises(SettingsError, match=name):
        SpanSettings.from_environment(environ)
