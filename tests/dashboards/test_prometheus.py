"""Prometheus' own tools accept its configuration, rules and alerts, and every alert says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from swtrace.diagnosis.rules import host_rules, rules
from tests.support.daemon_threads import serving
from tests.support.deployment import read, run
from tests.support.patience import eventually
from tests.support.prometheus_process import FILES, Prometheus, alerts, prometheus
from tests.support.web_files import WebFiles

FIRING = re.compile(r'^ALERTS\{alertname="(\w+)",alertstate="firing"')
GONE = re.compile(r"\bstale\b|_x\d+$")

every_alert = pytest.mark.parametrize("alert", [rule["alert"] for rule in alerts()])


@pytest.mark.prometheus
def test_promtool_accepts_configuration_and_rules() -> None:
    """Prometheus can read the configuration, the rules that it names, and the targets."""
    said = run("promtool", "check", "config", str(FILES / "prometheus.yml"))
    assert "swtrace.rules.yml" in said
    assert "swtrace.alerts.yml" in said


@pytest.mark.prometheus
def test_rules_do_what_their_tests_say() -> None:
    """Every recording rule has its value, and every alert fires when it should, and only then."""
    run("promtool", "test", "rules", *map(str, sorted((FILES / "tests").glob("*_test.yml"))))


@every_alert
def test_every_alert_fires_in_a_test(alert: str) -> None:
    """A case without flicker has the alert firing."""
    assert any(alert in _fired(case) for case in _cases("alerts_test.yml"))


@every_alert
def test_every_alert_fires_although_its_condition_flickers(alert: str) -> None:
    """A flapping case has input that goes up and down, or comes in bursts, and the alert firing at its end."""
    (case,) = _named("flapping_test.yml", alert)
    assert any(_flickers(series["values"]) for series in case["input_series"]), case["name"]
    assert _fired(case)[0] == ""
    assert _fired(case)[-1] == alert


@every_alert
def test_every_alert_follows_when_its_source_is_gone(alert: str) -> None:
    """A source-gone case has input that ends. The alert fires before and resolves after, but a missing daemon fires."""
    cases = [case for case in _named("source_gone_test.yml", alert) if alert in _fired(case)]
    ends = {_fired(case)[-1] for case in cases if any(GONE.search(str(s["values"])) for s in case["input_series"])}
    assert "" in ends
    assert (alert in ends) == (alert == "SwtraceDaemonDown")


def _cases(file: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = read(FILES / "tests" / file)["tests"]
    return cases


def _named(file: str, alert: str) -> list[dict[str, Any]]:
    return [case for case in _cases(file) if case["name"].startswith(f"{alert}: ")]


def _fired(case: dict[str, Any]) -> list[str]:
    """Return the alert that each expectation of a case has firing; "" for none."""
    found = []
    for test in case.get("promql_expr_test", ()):
        labels = " ".join(sample["labels"] for sample in test["exp_samples"] or ())
        match = FIRING.match(labels)
        found.append(match[1] if match else "")
    return found


def _flickers(values: str) -> bool:
    """Return whether a series' values, in promtool's notation, change more than three times."""
    parts = str(values).split()
    return sum(part != before for part, before in zip(parts[1:], parts, strict=False)) > 3


def test_every_alert_says_what_to_do() -> None:
    """An alert waits before it fires, has a severity, a summary with a number or a name in it, and a description."""
    for rule in alerts():
        assert rule["for"], rule["alert"]
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}, rule["alert"]
        assert "{{" in rule["annotations"]["summary"], rule["alert"]
        assert len(rule["annotations"]["description"]) > 80, rule["alert"]


def test_alerts_name_kinds_of_findings_that_exist() -> None:
    """A kind that a rule no longer has would leave its alert silent, or let a general one fire for it."""
    found = {kind for rule in rules() for kind in rule.kinds} | {kind for rule in host_rules() for kind in rule.kinds}
    named = [selector for rule in alerts() for selector in re.findall(r"swtrace_finding\{[^}]*\}", rule["expr"])]
    matched = {
        kind for each in named for kinds in re.findall(r'kind!?[=~]+"([^"]*)"', each) for kind in kinds.split("|")
    }
    assert {"hung", "diverged", "straggler", "stalled", "aborted"} <= matched <= found


@pytest.mark.prometheus
def test_prometheus_starts_with_the_very_files_and_flags(tmp_path: Path) -> None:
    """Prometheus starts with compose's command line and files, except targets, loads all rules and keeps exemplars."""
    with prometheus(tmp_path, ["127.0.0.1:1"]) as server:
        assert len(server.rules()) == 27
        assert server.get("status/flags")["enable-feature"] == "exemplar-storage"
        eventually(lambda: _looked_up(server), "the targets")


@pytest.mark.prometheus
def test_prometheus_scrapes_a_protected_daemon_as_its_configuration_shows(tmp_path: Path) -> None:
    """With the configuration's own lines for it, a scrape over TLS with a password succeeds; without them it fails."""
    web = WebFiles.make(tmp_path / "web")
    with serving(tmp_path / "rings", web=web) as client:
        target = f"127.0.0.1:{client.base_url.port}"
        with prometheus(tmp_path / "signed in", [target], scrape_s=1, web=web) as server:
            eventually(lambda: _health(server) == "up", "a scrape")
            assert server.query("swtrace_build_info")
        with prometheus(tmp_path / "stranger", [target], scrape_s=1) as server:
            eventually(lambda: _health(server) == "down", "a failed scrape")


def _health(server: Prometheus) -> str:
    return next((target["health"] for target in server.targets() if target["labels"]["job"] == "swtrace"), "unknown")


def _looked_up(server: Prometheus) -> bool:
    return {target["labels"]["job"] for target in server.targets()} == {"swtrace", "prometheus"}
