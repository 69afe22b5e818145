"""A real Prometheus, started with the command line and the files that docker-compose.yml gives it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.grafana_json import ROOT
from tests.support.patience import eventually, patience
from tests.support.span_receiver import free_port
from tests.support.web_files import WebFiles

COMPOSE = ROOT / "docker-compose.yml"
FILES = ROOT / "dashboards" / "prometheus"


@dataclass(frozen=True)
class Sample:
    """One result of an instant query."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """A running server and a client of its API."""

    client: httpx.Client
    log: Path

    def get(self, path: str, **parameters: str | float) -> Any:
        """Return the data of an API answer."""
        response = self.client.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expr: str, time: float | None = None) -> list[Sample]:
        """Return the result of an instant query."""
        data = self.get("query", query=expr, **({} if time is None else {"time": time}))
        assert data["resultType"] in {"vector", "scalar"}, data["resultType"]
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(result["metric"], float(result["value"][1])) for result in data["result"]]

    def scrapes(self, selector: str, seconds: int) -> list[tuple[float, float]]:
        """Return the scraped samples of one series as (time, value); none if there is no such series."""
        results = self.get("query", query=f"{selector}[{seconds}s]")["result"]
        assert len(results) <= 1, selector
        return [(float(time), float(value)) for result in results for time, value in result["values"]]

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its state and its alerts."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """Return every target with its health."""
        targets: list[dict[str, Any]] = self.get("targets")["activeTargets"]
        return targets


def alerts() -> list[dict[str, Any]]:
    """Return the alerts of the committed file, without the rule beside them that records that they are loaded."""
    groups = yaml.safe_load((FILES / "swtrace.alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def compose_command(service: str) -> list[str]:
    """Return the arguments that compose passes to a container."""
    command: list[str] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"][service]["command"]
    return command


@contextmanager
def prometheus(
    directory: Path,
    targets: Sequence[str],
    *,
    scrape_s: int | None = None,
    evaluate_s: int | None = None,
    web: WebFiles | None = None,
) -> Iterator[Prometheus]:
    """Run Prometheus over a copy of its files in ``directory``, with only targets and intervals changed.

    With ``web``, the configuration's commented lines for protected daemons count, with its user and its files.
    """
    binary = shutil.which("prometheus")
    assert binary is not None, "prometheus is missing: install it (Debian: apt-get install prometheus)"
    files = directory / "prometheus"
    shutil.copytree(FILES, files)
    port = free_port()
    (files / "targets" / "local.yml").write_text(yaml.safe_dump([{"targets": list(targets)}]), encoding="utf-8")
    config = files / "prometheus.yml"
    text = config.read_text(encoding="utf-8").replace("localhost:9090", f"localhost:{port}")
    if scrape_s is not None:
        text = re.sub(r"scrape_(interval|timeout): \d+s", rf"scrape_\1: {scrape_s}s", text)
    if evaluate_s is not None:
        text = re.sub(r"evaluation_interval: \d+s", f"evaluation_interval: {evaluate_s}s", text)
    if web is not None:
        before, marker, protected = text.partition("    # Daemons with --web-config")
        assert marker
        text = before + marker + re.sub(r"^    # ", "    ", protected, flags=re.MULTILINE)
        text = text.replace("username: prometheus", "username: alice")
        shutil.copy(web.folder / "ca.pem", files / "swtrace-ca.pem")
        shutil.copy(web.folder / "password", files / "swtrace-password")
    config.write_text(text, encoding="utf-8")
    moved = {
        "=/etc/prometheus/": f"={files}/",
        "=/prometheus": f"={directory}/data",
        "=0.0.0.0:9090": f"=127.0.0.1:{port}",
    }
    arguments = compose_command("prometheus")
    for mounted, own in moved.items():
        assert sum(mounted in argument for argument in arguments) == 1, mounted
        arguments = [argument.replace(mounted, own) for argument in arguments]
    log = directory / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen([binary, *arguments], stdout=output, stderr=output)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=patience()) as client:
                eventually(lambda: _ready(client), f"Prometheus to be ready: {log.read_text()}")
                yield Prometheus(client, log)
        finally:
            process.terminate()
            process.wait(patience())


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
