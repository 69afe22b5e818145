"""Settings of the metric export: when it is on, and what is refused."""

from __future__ import annotations

import pytest

from swtrace.daemon.metric_settings import MetricSettings
from swtrace.errors import SettingsError

ON = {"OTEL_METRICS_EXPORTER": "otlp"}
"""An environment in which metrics are exported."""


@pytest.mark.parametrize(
    ("environ", "exporters"),
    [
        ({}, ()),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, ("otlp",)),
        ({"OTEL_METRICS_EXPORTER": "otlp, prometheus,console"}, ("otlp", "console")),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, ()),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, ("otlp",)),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics", "OTEL_METRICS_EXPORTER": "none"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ()),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, ()),
    ],
)
def test_exporting_is_asked_for(environ: dict[str, str], exporters: tuple[str, ...]) -> None:
    """Metrics are exported only if an exporter or an endpoint for metrics is named, not with one for all signals."""
    assert MetricSettings.from_environment(environ).exporters == exporters


def test_interval_and_timeout_are_opentelemetrys() -> None:
    """An export runs every minute by default, and takes at most the shorter of the two timeouts."""
    settings = MetricSettings.from_environment(ON)
    assert (settings.interval_s, settings.timeout_s) == (60.0, 10.0)
    environ = {**ON, "OTEL_METRIC_EXPORT_INTERVAL": "5000", "OTEL_METRIC_EXPORT_TIMEOUT": "2500"}
    settings = MetricSettings.from_environment(environ)
    assert (settings.interval_s, settings.timeout_s) == (5.0, 2.5)
    assert MetricSettings.from_environment({**environ, "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "1"}).timeout_s == 1.0


TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
AGGREGATION = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (TEMPORALITY, "delta"),
        (TEMPORALITY, "lowmemory"),
        (AGGREGATION, "base2_exponential_bucket_histogram"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "60s"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "604800001"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "-1"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "nan"),
    ],
)
def test_unusable_value_is_refused(name: str, text: str) -> None:
    """A value that cannot be used is refused with the name of its variable and what it must be."""
    with pytest.raises(SettingsError, match=rf"^{name}='{text}': must be "):
        MetricSettings.from_environment({**ON, name: text})
    assert MetricSettings.from_environment({name: text}) == MetricSettings()


@pytest.mark.parametrize(("name", "text"), [(TEMPORALITY, " Cumulative "), (AGGREGATION, "EXPLICIT_BUCKET_HISTOGRAM")])
def test_the_values_that_swtrace_implements_are_taken(name: str, text: str) -> None:
    """The supported temporality and aggregation are accepted in any case, as OpenTelemetry specifies."""
    assert MetricSettings.from_environment({**ON, name: text}).exporters == ("otlp",)
