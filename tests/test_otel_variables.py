"""OpenTelemetry's variables: how each signal reads its own and the general ones, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from swtrace.daemon.metric_settings import MetricSettings
from swtrace.errors import SettingsError
from swtrace.otel_variables import remove_unusable_variables
from swtrace.spans.environment import SpanSettings

SIGNALS: dict[str, Callable[[Mapping[str, str]], SpanSettings | MetricSettings]] = {
    "TRACES": SpanSettings.from_environment,
    "METRICS": MetricSettings.from_environment,
}
BOTH = pytest.mark.parametrize("signal", SIGNALS)


def read(signal: str, **environ: str) -> SpanSettings | MetricSettings:
    """Read the settings of a signal that is exported over OTLP unless ``environ`` says otherwise."""
    return SIGNALS[signal]({f"OTEL_{signal}_EXPORTER": "otlp", **environ})


@BOTH
def test_the_variable_of_the_signal_wins_over_the_general_one(signal: str) -> None:
    """The protocol for a signal has priority, and the default is OpenTelemetry's: http/protobuf."""
    assert read(signal).protocol == "http/protobuf"
    general = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    assert read(signal, **general, **{f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL": "grpc"}).protocol == "grpc"
    assert read(signal, OTEL_EXPORTER_OTLP_PROTOCOL="grpc").protocol == "grpc"


@pytest.mark.parametrize(("signal", "other"), [("TRACES", "METRICS"), ("METRICS", "TRACES")])
def test_variables_of_the_other_signal_do_not_matter(signal: str, other: str) -> None:
    """A bad value of a variable for the other signal is not read."""
    environ = {f"OTEL_EXPORTER_OTLP_{other}_{name}": texts[0] for name, texts in UNUSABLE.items()}
    assert read(signal, **environ) == read(signal)


UNUSABLE = {
    "PROTOCOL": ("http/json",),
    "TIMEOUT": ("10s", "soon", "0", "-1", "nan", "1e10", "1e300", "1e-300", "604801"),
    "HEADERS": ("garbage", "a=x%0d%0ab", "a%0ab=c", "a=%E2%82%AC", "a=1,b", "a b=1", "=1", 'a="1"'),
    "COMPRESSION": ("zstd", "br"),
    "CERTIFICATE": ("/nowhere/ca.pem",),
    "ENDPOINT": (
        "collector:4318",
        "http://",
        "http://c:port",
        "ftp://c",
        "http://host name:1",
        "http://$(HOST_IP):4318",
        "http://c..svc:4318",
    ),
}
"""By the end of a variable's name: texts that the daemon cannot use."""
CASES = [(name, text) for name, texts in UNUSABLE.items() for text in texts]


@BOTH
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("name", "text"), CASES)
def test_unusable_value_is_refused(signal: str, name: str, text: str, *, own: bool) -> None:
    """A value that cannot be used is refused with the name of its variable and what it must be."""
    variable = f"OTEL_EXPORTER_OTLP_{signal}_{name}" if own else f"OTEL_EXPORTER_OTLP_{name}"
    with pytest.raises(SettingsError, match=rf"^{variable}='.*': must be "):
        read(signal, **{variable: text})


@BOTH
@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("name", UNUSABLE)
def test_an_empty_variable_counts_as_unset(signal: str, name: str, text: str) -> None:
    """Empty variables count as unset, as OpenTelemetry specifies, because orchestrators set many to nothing."""
    environ = {f"OTEL_EXPORTER_OTLP_{signal}_{name}": text, f"OTEL_EXPORTER_OTLP_{name}": text}
    assert read(signal, **environ) == read(signal)


@BOTH
@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "TRUE"}, {"OTEL_{}_EXPORTER": "none"}])
def test_settings_of_an_export_that_is_off_do_not_matter(signal: str, off: dict[str, str]) -> None:
    """Without an export, a bad value of a variable that only an export reads does not end the daemon."""
    unusable = {f"OTEL_EXPORTER_OTLP_{name}": texts[0] for name, texts in UNUSABLE.items()}
    switch = {name.format(signal): text for name, text in off.items()}
    unusable["OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"] = "nope"
    assert read(signal, **unusable, **switch) == SIGNALS[signal]({})
    assert read(signal, **switch).exporters == ()


@BOTH
def test_an_unknown_exporter_is_refused(signal: str) -> None:
    """An error about an unknown exporter names it and those that exist."""
    with pytest.raises(SettingsError, match=rf"OTEL_{signal}_EXPORTER='zipkin': must be one of: otlp, console, .*none"):
        read(signal, **{f"OTEL_{signal}_EXPORTER": "zipkin"})


@BOTH
@pytest.mark.parametrize("header", ["a=%C3%A9", "a!=1"])
def test_grpc_sends_fewer_headers_than_http(signal: str, header: str) -> None:
    """A header that only HTTP can send is refused with gRPC."""
    assert read(signal, OTEL_EXPORTER_OTLP_HEADERS=header).exporters == ("otlp",)
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_HEADERS="):
        read(signal, OTEL_EXPORTER_OTLP_HEADERS=header, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")


@pytest.mark.parametrize("header", ["Authorization=secret%0ab", "Authorization: Bearer secret=="])
def test_the_value_of_a_header_is_not_printed(header: str) -> None:
    """A header's value is often a credential, so the error shows only its name."""
    with pytest.raises(SettingsError, match=r"_HEADERS='Authorization\.\.\.': must be NAME=VALUE,") as caught:
        read("TRACES", OTEL_EXPORTER_OTLP_HEADERS=f"token=hidden,{header}")
    assert "hidden" not in str(caught.value)
    assert "secret" not in str(caught.value)


@BOTH
@pytest.mark.parametrize("exporter", ["otlp", "console"])
def test_an_unknown_resource_detector_is_refused_with_every_exporter(signal: str, exporter: str) -> None:
    """Every exporter sends resources, so the detectors are checked for each."""
    with pytest.raises(
        SettingsError, match=r"RESOURCE_DETECTORS='nope': must be \* or a comma-separated list of: .*otel"
    ):
        read(signal, **{f"OTEL_{signal}_EXPORTER": exporter}, OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="nope")


@pytest.mark.parametrize("text", ["*", "otel, process", "host,*,"])
def test_installed_resource_detectors_are_taken(text: str) -> None:
    """Detectors that OpenTelemetry can load are allowed, and so is its name for all of them."""
    assert read("TRACES", OTEL_EXPERIMENTAL_RESOURCE_DETECTORS=text).exporters == ("otlp",)


@BOTH
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
def test_the_standards_values_are_taken(signal: str, protocol: str, name: str, text: str) -> None:
    """Everything that OpenTelemetry's standard allows is accepted with either protocol."""
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, f"OTEL_EXPORTER_OTLP_{name}": text}
    assert read(signal, **environ).protocol == protocol


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
