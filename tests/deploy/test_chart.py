"""The Helm chart by Helm's own library: it lints, every value has an effect, the plain manifests are its renderings.

Skipped without that library, 75 MB: ``make test-helm`` installs it.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import kubernetes_validate
import pytest
import yaml

from swtrace import __version__
from tests.support.deployment import read, services
from tests.support.grafana_json import DASHBOARDS
from tests.support.prometheus_process import FILES

helm = pytest.importorskip("helm_python", reason="Helm's library is not installed: make test-helm")
chart = pytest.importorskip("deploy.chart")

EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example/swtrace", "tag": "1.2.3", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "nameOverride": "tracer",
    "fullnameOverride": "the-tracer",
    "port": 9999,
    "rings": {"hostPath": "/run/other", "prepare": False},
    "otlp": {"endpoint": "http://tempo:4318", "traceSample": "0.5", "slowStep": "1s"},
    "webConfig": {"secretName": "web", "key": "web.yml"},
    "extraEnv": [{"name": "OTEL_BSP_MAX_QUEUE_SIZE", "value": "4096"}],
    "extraArgs": ["--verbose"],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "serviceAccount": {"create": True, "name": "tracer", "annotations": {"a": "b"}},
    "priorityClassName": "system-node-critical",
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "updateStrategy": {"type": "OnDelete"},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "serving"},
    "podSecurityContext": {"supplementalGroups": [1]},
    "securityContext": {"privileged": False},
    "resources": {"limits": {"memory": "2Gi"}},
    "service": {"enabled": True, "type": "NodePort", "port": 80, "annotations": {"a": "b"}},
    "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]},
    "podMonitor": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "interval": "15s",
        "scheme": "https",
        "scrapeTimeout": "10s",
        "relabelings": [{"action": "labeldrop", "regex": "pod"}],
        "metricRelabelings": [{"action": "labeldrop", "regex": "host"}],
        "basicAuth": {"username": {"name": "login", "key": "user"}},
        "tlsConfig": {"insecureSkipVerify": True},
    },
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboards": {"enabled": True, "labels": {"grafana_dashboard": "yes"}, "annotations": {"folder": "swtrace"}},
}
"""A value other than its default for everything that the DaemonSet's form takes."""
OF_SIDECAR: dict[str, Any] = {"sidecar": {"container": "server", "sizeLimit": "1Gi"}, "mode": "sidecar"}
SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text(encoding="utf-8"))


def leaves(properties: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every value that the schema knows."""
    found = []
    for name, schema in properties.items():
        inner = schema.get("properties")
        found += leaves(inner, (*above, name)) if inner else [(*above, name)]
    return [path for path in found if path != ("global",)]


def test_chart_passes_helms_strict_lint() -> None:
    """Helm finds nothing to warn about, and the chart's version is swtrace's."""
    said = helm.lint(str(chart.CHART), EVERYTHING, strict=True)
    assert said["errors"] == []
    assert [message for message in said["messages"] if message["severity"] > 1] == []
    about = read(chart.CHART / "Chart.yaml")
    assert (about["version"], about["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("values", [{}, EVERYTHING, OF_SIDECAR], ids=["defaults", "everything", "sidecar"])
def test_every_rendering_fits_kubernetes_schema(values: dict[str, Any]) -> None:
    """Kubernetes' schema accepts every object, whether the values are the defaults or all others."""
    objects = chart.objects(values)
    own = {key: made for key, made in objects.items() if not made["apiVersion"].startswith("monitoring.coreos.com")}
    assert len(own) > 0
    for made in own.values():
        kubernetes_validate.validate(made, "1.33", strict=True)


def test_every_value_has_an_effect() -> None:
    """Each value that the schema knows has a default in values.yaml, and changes the rendering when it changes."""
    defaults = read(chart.CHART / "values.yaml")
    full = {**EVERYTHING, "mode": "daemonset"}
    rendered = {"daemonset": chart.objects(full), "sidecar": chart.objects(OF_SIDECAR)}
    for path in leaves(SCHEMA["properties"]):
        changed = copy.deepcopy(OF_SIDECAR if path[0] in OF_SIDECAR else full)
        place, default = changed, defaults
        for name in path[:-1]:
            place, default = place[name], default[name]
        assert place[path[-1]] != default[path[-1]], path
        place[path[-1]] = default[path[-1]]
        assert chart.objects(changed) != rendered["sidecar" if path[0] in OF_SIDECAR else "daemonset"], path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": {"tags": "1"}}, "additional properties 'tags' not allowed"),
        ({"mode": "deployment"}, "'/mode': value must be one of"),
        ({"otlp": {"traceSample": "5 %"}}, "'/otlp/traceSample'"),
        ({"mode": "sidecar", "networkPolicy": {"enabled": True}}, "would also cut off vLLM's own port"),
    ],
)
def test_unusable_value_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    """A misspelt, impossible or harmful value ends the rendering with an error that names it."""
    with pytest.raises(helm.HelmError, match=said):
        chart.render(values)


def test_plain_manifests_are_what_the_chart_makes() -> None:
    """``make manifests`` writes exactly the committed manifests: nobody edits them by hand."""
    made = chart.manifests()
    assert {name: (chart.MANIFESTS / name).read_text(encoding="utf-8") for name in made} == made


def test_chart_ships_the_dashboards_and_rules_that_compose_serves() -> None:
    """The ConfigMaps hold the generated dashboards, and the PrometheusRule the very rules, without a copy of either."""
    objects = chart.objects({"dashboards": {"enabled": True}, "prometheusRule": {"enabled": True}})
    boards = {
        name: text for (kind, _), made in objects.items() if kind == "ConfigMap" for name, text in made["data"].items()
    }
    assert {name: json.loads(text) for name, text in boards.items()} == {
        path.name: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS.glob("*.json")
    }
    files = ("swtrace.rules.yml", "swtrace.alerts.yml")
    groups = [group for name in files for group in read(FILES / name)["groups"]]
    assert objects["PrometheusRule", "swtrace"]["spec"]["groups"] == groups


def test_sidecar_patch_and_daemonset_run_the_same_container() -> None:
    """Both forms run one container over one mount path. Only the sidecar restarts by itself, and has no readiness."""
    container = chart.objects({})["DaemonSet", "swtrace"]["spec"]["template"]["spec"]["containers"][0]
    patch = yaml.safe_load(chart.objects({"mode": "sidecar"})["ConfigMap", "swtrace-sidecar"]["data"]["patch.yaml"])
    (sidecar,) = patch["spec"]["template"]["spec"]["initContainers"]
    assert sidecar.pop("restartPolicy") == "Always"
    del container["readinessProbe"]
    assert {**sidecar, "name": "daemon"} == container
    assert container["image"] == services()["daemon"]["image"]
