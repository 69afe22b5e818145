"""The deployment files as data, and the programs that check them."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.grafana_json import ROOT
from tests.support.patience import patience
from tests.support.prometheus_process import COMPOSE

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
PROVISIONING = ROOT / "dashboards" / "grafana" / "provisioning"
BIN = Path(sys.executable).parent


def read(path: Path) -> Any:
    """Return the contents of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def services() -> dict[str, Any]:
    """Return the services of docker-compose.yml."""
    found: dict[str, Any] = read(COMPOSE)["services"]
    return found


def run(*command: str) -> str:
    """Run a checker and return its output, or fail with it."""
    program = shutil.which(command[0], path=f"{BIN}:{os.environ['PATH']}")
    assert program is not None, f"{command[0]} is missing: install the test dependencies, and Prometheus for promtool"
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=patience())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def image_settings(stage: str) -> tuple[dict[str, str], list[str], list[str]]:
    """Return a Dockerfile stage's environment, command and healthcheck, including those of its base."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL))
    lines = stages["run"] + stages[stage]
    settings = dict(re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^ENV (.*)$", lines, re.MULTILINE))))
    (entrypoint,) = re.findall(r"^ENTRYPOINT (\[.*\])", lines, re.MULTILINE)
    (command,) = re.findall(r"^CMD (\[.*\])", lines, re.MULTILINE)
    healthcheck = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])", lines, re.MULTILINE)
    return (
        settings,
        [*ast.literal_eval(entrypoint), *ast.literal_eval(command)],
        ast.literal_eval(healthcheck[0]) if healthcheck else [],
    )
