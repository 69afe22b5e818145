"""Prometheus' own tools accept its configuration, rules and alerts, and every alert says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon_threads import serving
from tests.support.deployment import read, run
from tests.support.patience import eventually
from tests.support.prometheus_process import FILES, Prometheus, prometheus
from tests.support.web_files import WebFiles


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
    alerts = [rule["alert"] for group in read(FILES / "swtrace.alerts.yml")["groups"] for rule in group["rules"]]
    tests = (FILES / "tests" / "alerts_test.yml").read_text(encoding="utf-8")
    assert [alert for alert in alerts if f'alertname="{alert}",alertstate="firing"' not in tests] == []


def test_every_alert_says_what_to_do() -> None:
    """An alert waits before it fires, has a severity, a summary with a number or a name in it, and a description."""
    for group in read(FILES / "swtrace.alerts.yml")["groups"]:
        for rule in group["rules"]:
            assert rule["for"], rule["alert"]
            assert rule["labels"]["severity"] in {"info", "warning", "critical"}, rule["alert"]
            assert "{{" in rule["annotations"]["summary"], rule["alert"]
            assert len(rule["annotations"]["description"]) > 80, rule["alert"]


@pytest.mark.prometheus
def test_prometheus_starts_with_the_very_files_and_flags(tmp_path: Path) -> None:
    """Prometheus starts with compose's command line and files, except targets, loads all rules and keeps exemplars."""
    with prometheus(tmp_path, ["127.0.0.1:1"]) as server:
        assert len(server.rules()) == 22
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
