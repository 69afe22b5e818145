"""Settings of the span export: how the environment is read, and what is refused."""

from __future__ import annotations

import pytest

from swtrace.errors import SettingsError
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
    "OTEL_BSP_MAX_QUEUE_SIZE": ("0", "many"),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": ("1.5",),
    "OTEL_BSP_SCHEDULE_DELAY": ("1s", "inf", "604800001", "1e13", "1e300"),
}
"""By variable: texts that the daemon cannot use."""
CASES = [(name, text) for name, texts in UNUSABLE.items() for text in texts]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_unusable_value_is_refused(name: str, text: str) -> None:
    """A value that cannot be used is refused with the name of its variable and what it must be."""
    with pytest.raises(SettingsError, match=rf"^{name}='.*': must be "):
        SpanSettings.from_environment({**ON, name: text})


@pytest.mark.parametrize("off", [{}, {**ON, "OTEL_TRACES_EXPORTER": "none"}, {**ON, "OTEL_SDK_DISABLED": "TRUE"}])
def test_settings_of_an_export_that_is_off_do_not_matter(off: dict[str, str]) -> None:
    """Without an export, a bad value of a variable that only an export reads does not end the daemon."""
    unusable = {name: texts[0] for name, texts in UNUSABLE.items()}
    assert SpanSettings.from_environment({**unusable, **off}) == SpanSettings()


@pytest.mark.parametrize("name", sorted(UNUSABLE))
@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_counts_as_unset(name: str, text: str) -> None:
    """Empty variables count as unset, as OpenTelemetry specifies, because orchestrators set many to nothing."""
    environ = {"OTEL_TRACES_EXPORTER": "otlp"}
    assert SpanSettings.from_environment({**environ, name: text}) == SpanSettings.from_environment(environ)
