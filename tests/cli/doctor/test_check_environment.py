"""The doctor reads settings and versions as a rank would."""

from __future__ import annotations

import pytest

from swtrace.cli.doctor.check_environment import _numbers
from tests.cli.doctor.conftest import Doctor


def test_an_unusable_setting_is_broken(doctor: Doctor) -> None:
    """A setting that would stop a rank is found before the rank is started."""
    finding = doctor(broken=True, SWTRACE_PREFETCH_STEP="soon")["settings"]
    assert finding["state"] == "broken"
    assert "SWTRACE_PREFETCH_STEP='soon'" in finding["detail"]


def test_replicas_that_cannot_find_each_other_are_broken(doctor: Doctor) -> None:
    """Settings that lack another one stop a rank as well."""
    finding = doctor(broken=True, SWTRACE_REPLICAS="2")["settings"]
    assert finding["detail"] == "SWTRACE_REPLICAS is 2: number them with SWTRACE_REPLICA, from 0 to 1"


@pytest.mark.parametrize("name", ["OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"])
def test_an_unusable_setting_of_an_export_is_broken(doctor: Doctor, name: str) -> None:
    """A setting that would stop the daemon is found before the daemon is started."""
    finding = doctor(broken=True, **{name: "zipkin"})["settings"]
    assert f"{name}='zipkin'" in finding["detail"]


def test_sharing_without_tracing_is_told(doctor: Doctor) -> None:
    """With SWTRACE_TRACE=0 the doctor says why there will be no ring."""
    finding = doctor(SWTRACE_TRACE="0")["tracing"]
    assert finding["detail"] == "no rank writes a ring because SWTRACE_TRACE=0"


def test_variables_of_the_daemon_are_settings_too(doctor: Doctor) -> None:
    """Whoever set SWTRACE_LISTEN only is not told that no variable is set."""
    assert "SWTRACE_LISTEN" in doctor(SWTRACE_LISTEN="127.0.0.1:0")["settings"]["detail"]


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("0.32.0", (0, 32, 0)), ("0.33.0rc1", (0, 33, 0)), ("unknown", ())],
)
def test_versions_compare_by_their_numbers(version: str, numbers: tuple[int, ...]) -> None:
    """A local or pre-release suffix does not move a version out of its range."""
    assert _numbers(version) == numbers
