"""Write the plain Kubernetes manifests, which are renderings of the Helm chart: ``python -m deploy.chart``.

Needs helm-python-sdk, which contains Helm's own library (``make manifests`` installs it).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parent / "helm" / "swtrace"
MANIFESTS = Path(__file__).parent / "kubernetes"
NAME = "swtrace"
_HEADING = "# Written by `make manifests` from the chart deploy/helm/swtrace.\n"
_OF_HELM = re.compile(r"^ +(app\.kubernetes\.io/(version|managed-by)|helm\.sh/chart): .*\n", re.MULTILINE)
"""Labels that are true only of what Helm installs."""
_ANY_WORKLOAD = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: any\n"
"""Kustomize reads no patch without these, and then uses those of the patch's target."""


def render(values: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the text of every template that yields something, by the name of its file."""
    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(values or {}, name=NAME, namespace=NAME)
    return {Path(path).name: text.strip() + "\n" for path, text in texts.items() if text.strip()}


def objects(values: dict[str, Any] | None = None) -> dict[tuple[str, str], Any]:
    """Return every object of a rendering, by kind and name."""
    texts = [text for name, text in render(values).items() if name != "NOTES.txt"]
    found = [document for text in texts for document in yaml.safe_load_all(text) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


def manifests() -> dict[str, str]:
    """Return the text of every plain manifest, by its path below the folder."""
    texts = render({"podMonitor": {"enabled": True}})
    patch = yaml.safe_load(render({"mode": "sidecar"})["sidecar.yaml"])["data"]["patch.yaml"]
    made = {
        "daemonset.yaml": texts["daemonset.yaml"],
        "podmonitor.yaml": texts["podmonitor.yaml"],
        "sidecar/patch.yaml": _ANY_WORKLOAD + patch,
    }
    return {name: _HEADING + _OF_HELM.sub("", text) for name, text in made.items()}


if __name__ == "__main__":
    for name, text in manifests().items():
        (MANIFESTS / name).write_text(text, encoding="utf-8")
