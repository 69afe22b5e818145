"""``swtrace dashboards export``: the files for an existing Grafana."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from swtrace.cli.dashboards import dashboards
from swtrace.cli.exit_codes import CommandError
from tests.support.daemon_command import environment
from tests.support.grafana_json import DASHBOARDS, ROOT
from tests.support.patience import patience


def export(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(dashboards, ["export", *arguments])


def test_export_writes_dashboards_provisioning_and_rules(tmp_path: Path) -> None:
    """The committed files are written, provisioning points at them, and stdout lists them."""
    done = export(str(tmp_path), "--prometheus", "http://p:1", "--tempo", "http://t:2", "--json")
    assert done.exit_code == 0, done.output
    written = [Path(name) for name in json.loads(done.stdout)["written"]]
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for path in DASHBOARDS.glob("*.json"):
        assert (tmp_path / "grafana/dashboards" / path.name).read_text() == path.read_text()
    for name in ("swtrace.rules.yml", "swtrace.alerts.yml"):
        assert (tmp_path / "prometheus" / name).read_text() == (ROOT / "dashboards/prometheus" / name).read_text()
    rule = yaml.safe_load((tmp_path / "kubernetes/prometheusrule.yaml").read_text())
    files = [
        yaml.safe_load((tmp_path / "prometheus" / f"swtrace.{name}.yml").read_text()) for name in ("rules", "alerts")
    ]
    assert rule["spec"]["groups"] == [group for file in files for group in file["groups"]]
    provisioning = tmp_path / "grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/swtrace.yml").read_text())["providers"]
    assert provider["options"]["path"] == str(tmp_path / "grafana/dashboards")
    sources = yaml.safe_load((provisioning / "datasources/swtrace.yml").read_text())["datasources"]
    assert {source["url"] for source in sources} == {"http://p:1", "http://t:2"}


def test_export_overwrites_only_when_told(tmp_path: Path) -> None:
    """Unchanged files may be exported again; overwriting a changed file needs --force."""
    assert export(str(tmp_path)).exit_code == 0
    assert export(str(tmp_path)).exit_code == 0
    changed = tmp_path / "prometheus/swtrace.rules.yml"
    changed.write_text("groups: []\n")
    refused = export(str(tmp_path))
    assert isinstance(refused.exception, CommandError)
    assert f"{changed} already exists and differs; use --force" in str(refused.exception)
    assert refused.stdout == ""
    assert changed.read_text() == "groups: []\n"
    assert export(str(tmp_path), "--force").exit_code == 0
    assert changed.read_text() == (ROOT / "dashboards/prometheus/swtrace.rules.yml").read_text()


def test_wheel_carries_what_the_export_writes(tmp_path: Path) -> None:
    """The wheel contains the files and the report's glossary, and an export from the installed package is the same."""
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("builds a wheel with uv, which is not in this environment")
    command = [str(uv), "build", "--wheel", "-q", "-o", str(tmp_path), "--python", sys.executable, str(ROOT)]
    subprocess.run(command, check=True, timeout=patience(), env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    done = subprocess.run(
        [sys.executable, "-m", "swtrace", "dashboards", "export", str(tmp_path / "out")],
        env={**environment(), "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(),
    )
    assert done.returncode == 0, done.stderr
    assert (installed / "swtrace/_dashboards/grafana/dashboards").is_dir()
    assert (installed / "swtrace/_docs/glossary.md").read_text() == (ROOT / "docs/glossary.md").read_text()
    assert len(list((tmp_path / "out/grafana/dashboards").glob("*.json"))) == 3
