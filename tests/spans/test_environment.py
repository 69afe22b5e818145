"""Settings of the span export: how the environment is read, and what is refused."""

from __future__ import annotations

import pytest

from swtrace.errors import SettingsError
from swtrace.otel_variables import remove_unusable_variables
from swtrace.spans.environment import SpanSettings

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
"""An environment in which spans are exported."""


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
    """Spans are exported only if an endpoint or an exporter is named, and never if the SDK is disabled."""
    assert SpanSettings.from_environment(environ).exporters == exporters


def test_traces_protocol_wins_over_the_general_one() -> None:
    """The variable for traces has priority, and the default is OpenTelemetry's: http/protobuf."""
    assert SpanSettings.from_environment(ON).protocol == "http/protobuf"
    environ = {**ON, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}
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
    assert SpanSettings.from_environment({**ON, "SWTRACE_SLOW_STEP": text}).slow_step_ns == expected_ns


UNUSABLE = {
    "SWTRACE_TRACE_SAMPLE": ("1.5", "-0.1", "nan", "all", "1e309"),
    "SWTRACE_SLOW_STEP": ("fast", "-1 s", "1e309s", "1e300", "nan"),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("http/json",),
    "OTEL_BSP_MAX_QUEUE_SIZE": ("0", "many"),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": ("1.5",),
    "OTEL_BSP_SCHEDULE_DELAY": ("1s", "inf", "604800001", "1e13", "1e300"),
    "OTEL_EXPORTER_OTLP_TIMEOUT": ("10s", "0", "-1", "nan", "1e10", "1e300", "1e-300"),
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": ("soon", "604801"),
    "OTEL_EXPORTER_OTLP_HEADERS": ("garbage", "a=x%0d%0ab", "a=%E2%82%AC", "a=1,b", "a b=1", "=1", 'a="1"'),
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": ("garbage", "a%0ab=c"),
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": ("nope", "otel,nope"),
    "OTEL_EXPORTER_OTLP_COMPRESSION": ("zstd",),
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": ("br",),
    "OTEL_EXPORTER_OTLP_CERTIFICATE": ("/nowhere/ca.pem",),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("collector:4318", "http://", "http://c:port", "ftp://c", "http://host name:1"),
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ("http://$(HOST_IP):4318", "http://c..svc:4318"),
}
"""By variable: texts that the daemon cannot use."""
CASES = [(name, text) for name, texts in UNUSABLE.items() for text in texts]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_unusable_value_is_refused(name: str, text: str) -> None:
    """A value that cannot be used is refused with the name of its variable and what it must be."""
    with pytest.raises(SettingsError, match=rf"^{name}='.*': must be "):
        SpanSettings.from_environment({**ON, name: text})


@pytest.mark.parametrize("header", ["a=%C3%A9", "a!=1"])
def test_grpc_sends_fewer_headers_than_http(header: str) -> None:
    """A header that only HTTP can send is refused with gRPC."""
    environ = {**ON, "OTEL_EXPORTER_OTLP_HEADERS": header}
    assert SpanSettings.from_environment(environ).exporters == ("otlp",)
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_HEADERS="):
        SpanSettings.from_environment({**environ, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


@pytest.mark.parametrize("header", ["Authorization=secret%0ab", "Authorization: Bearer secret=="])
def test_the_value_of_a_header_is_not_printed(header: str) -> None:
    """A header's value is often a credential, so the error shows only its name."""
    with pytest.raises(SettingsError, match=r"_HEADERS='Authorization\.\.\.': must be NAME=VALUE,") as caught:
        SpanSettings.from_environment({**ON, "OTEL_EXPORTER_OTLP_HEADERS": f"token=hidden,{header}"})
    assert "hidden" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("exporter", ["otlp", "console"])
def test_an_unknown_resource_detector_is_refused_with_every_exporter(exporter: str) -> None:
    """Every exporter sends resources, so the detectors are checked for each."""
    environ = {"OTEL_TRACES_EXPORTER": exporter, "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "nope"}
    with pytest.raises(
        SettingsError, match=r"RESOURCE_DETECTORS='nope': must be \* or a comma-separated list of: .*otel"
    ):
        SpanSettings.from_environment(environ)


@pytest.mark.parametrize("text", ["*", "otel, process", "host,*,"])
def test_installed_resource_detectors_are_taken(text: str) -> None:
    """Detectors that OpenTelemetry can load are allowed, and so is its name for all of them."""
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": text}
    assert SpanSettings.from_environment(environ).exporters == ("console",)


def test_an_unknown_exporter_is_refused() -> None:
    """An error about an unknown exporter names it and those that exist."""
    with pytest.raises(SettingsError, match="OTEL_TRACES_EXPORTER='zipkin': must be one of: otlp, console, none"):
        SpanSettings.from_environment({"OTEL_TRACES_EXPORTER": "zipkin"})


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("COMPRESSION", "none"),
        ("COMPRESSION", "GZIP"),
        ("TIMEOUT", " 2.5 "),
        ("HEADERS", "authorization=Basic dXNlcg==, x-scope=a%2Cb,empty=,"),
        ("HEADERS", "Api-Key=key%20with%20spaces%0a"),
        ("ENDPOINT", "http://user:pass word@collector_1.svc.:4318/a b"),
        ("ENDPOINT", "http://[fe80::1%eth0]:4318"),
        ("ENDPOINT", "https://bücher.example"),
    ],
)
def test_the_standards_values_are_taken(protocol: str, name: str, text: str) -> None:
    """Everything that OpenTelemetry's standard allows is accepted with either protocol."""
    environ = {**ON, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, f"OTEL_EXPORTER_OTLP_{name}": text}
    assert SpanSettings.from_environment(environ).protocol == protocol


@pytest.mark.parametrize("off", [{}, {**ON, "OTEL_TRACES_EXPORTER": "none"}, {**ON, "OTEL_SDK_DISABLED": "TRUE"}])
def test_settings_of_an_export_that_is_off_do_not_matter(off: dict[str, str]) -> None:
    """Without an export, a bad value of a variable that only an export reads does not end the daemon."""
    unusable = {name: texts[0] for name, texts in UNUSABLE.items() if not name.endswith("_ENDPOINT")}
    assert SpanSettings.from_environment({**unusable, **off}) == SpanSettings()


@pytest.mark.parametrize("name", sorted(UNUSABLE))
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_counts_as_unset(name: str, text: str) -> None:
    """Empty variables count as unset, as OpenTelemetry specifies, because orchestrators set many to nothing."""
    environ = {"OTEL_TRACES_EXPORTER": "otlp"}
    assert SpanSettings.from_environment({**environ, name: text}) == SpanSettings.from_environment(environ)


def test_variables_that_opentelemetry_fails_on_are_removed() -> None:
    """Empty variables, and limits and contexts that its modules read on import, do not reach its code."""
    environ = {
        "OTEL_EXPORTER_OTLP_TIMEOUT": "",
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "x",
        "OTEL_PYTHON_CONTEXT": "nope",
        "OTEL_PROPAGATORS": "nope",
        "OTEL_SERVICE_NAME": "a",
        "A": "",
    }
    remove_unusable_variables(environ)
    assert environ == {"OTEL_SERVICE_NAME": "a", "A": ""}
