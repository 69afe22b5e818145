"""The Kubernetes manifests fit their schema, agree with the image and compose, and kustomize reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from swtrace.trace.identity import Workload
from tests.support.deployment import DEPLOY, DOCKERFILE, image_settings, read, run, services

MANIFESTS = DEPLOY / "kubernetes"
VLLM = """\
apiVersion: apps/v1
kind: {kind}
metadata:
  name: {name}
  labels: {labels}
spec:
  {more}
  selector: {{matchLabels: {{app: llm}}}}
  template:
    metadata: {{labels: {{app: llm}}}}
    spec:
      containers:
        - {{name: vllm, image: vllm-with-swtrace, volumeMounts: [{{name: shm, mountPath: /dev/shm}}]}}
      volumes: [{{name: shm, emptyDir: {{medium: Memory}}}}]
"""


def patched() -> dict[str, Any]:
    """Return the sidecar's patch as the Deployment that it would be alone."""
    patch: dict[str, Any] = read(MANIFESTS / "sidecar/patch.yaml")
    patch["spec"]["selector"] = {"matchLabels": {"app": "llm"}}
    return patch


@pytest.mark.parametrize("name", ["namespace.yaml", "daemonset.yaml"])
def test_kubernetes_manifests_fit_the_schema(name: str) -> None:
    """Kubernetes' schema accepts every manifest, and rejects one with a misspelt field."""
    document = read(MANIFESTS / name)
    kubernetes_validate.validate(document, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "specs": {}}, "1.33", strict=True)


def test_sidecar_patch_fits_the_schema() -> None:
    """Kubernetes' schema accepts a Deployment that consists of the patch."""
    kubernetes_validate.validate(patched(), "1.33", strict=True)


def test_kustomizations_name_files_that_exist() -> None:
    """Resources and patches of a kustomization are files beside it; the base has every object but the monitor."""
    base = read(MANIFESTS / "kustomization.yaml")
    component = read(MANIFESTS / "sidecar/kustomization.yaml")
    assert {*base["resources"], "podmonitor.yaml", "kustomization.yaml"} == {
        path.name for path in MANIFESTS.glob("*.yaml")
    }
    assert [patch["path"] for patch in component["patches"]] == ["patch.yaml"]


def test_kubernetes_and_compose_agree() -> None:
    """The same user, folder, port and permissions, wherever the image runs."""
    settings, _command, _healthcheck = image_settings("daemon")
    template = read(MANIFESTS / "daemonset.yaml")["spec"]["template"]
    (init,), (container,) = template["spec"]["initContainers"], template["spec"]["containers"]
    user = container["securityContext"]
    assert f"{user['runAsUser']}:{user['runAsGroup']}" == "9465:9465"
    assert "USER 9465:9465" in DOCKERFILE.read_text(encoding="utf-8")
    assert init["command"][-1] == services()["rings"]["command"][0]
    assert init["restartPolicy"] == "Always"
    assert ["CMD", *init["startupProbe"]["exec"]["command"]] == services()["rings"]["healthcheck"]["test"]
    sidecar = patched()["spec"]["template"]
    (daemon,) = sidecar["spec"]["initContainers"]
    for service in (init, container, daemon):
        assert service["image"] == services()["daemon"]["image"]
        assert service["volumeMounts"][0]["mountPath"] == settings["SWTRACE_DIR"]
    assert container["ports"][0]["containerPort"] == 9465
    monitor = read(MANIFESTS / "podmonitor.yaml")["spec"]
    assert monitor["podMetricsEndpoints"][0]["port"] == container["ports"][0]["name"] == daemon["ports"][0]["name"]
    for pod in (template, sidecar):
        assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert sidecar["spec"]["securityContext"]["fsGroup"] == 9465


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed; it contains kustomize")
def test_kustomize_adds_the_sidecar_to_the_workloads_that_ask_for_it(tmp_path: Path) -> None:
    """A labelled Deployment or StatefulSet gets the daemon and keeps what it had; an unlabelled one is unchanged."""
    shutil.copytree(MANIFESTS / "sidecar", tmp_path / "sidecar")
    asks = "{swtrace/sidecar: 'true'}"
    workloads = [
        ("Deployment", "a", asks, ""),
        ("StatefulSet", "b", asks, "serviceName: b"),
        ("Deployment", "c", "{}", ""),
    ]
    names = []
    for kind, name, labels, more in workloads:
        names.append(f"{name}.yaml")
        (tmp_path / names[-1]).write_text(VLLM.format(kind=kind, name=name, labels=labels, more=more), encoding="utf-8")
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": names, "components": ["sidecar"]}), "utf-8"
    )
    built = {made["metadata"]["name"]: made for made in yaml.safe_load_all(run("kubectl", "kustomize", str(tmp_path)))}
    pods = {name: made["spec"]["template"] for name, made in built.items()}
    assert "initContainers" not in pods["c"]["spec"]
    for name in "ab":
        kubernetes_validate.validate(built[name], "1.33", strict=True)
        (vllm,) = pods[name]["spec"]["containers"]
        assert {mount["mountPath"] for mount in vllm["volumeMounts"]} == {"/run/swtrace", "/dev/shm"}
        settings = {entry["name"]: entry["value"] for entry in vllm["env"] if "value" in entry}
        assert settings == {"SWTRACE": "1", "SWTRACE_DIR": "/run/swtrace"}
        assert pods[name]["metadata"]["labels"] == {"app": "llm", "swtrace/daemon": "true"}
    base = {made["kind"] for made in yaml.safe_load_all(run("kubectl", "kustomize", str(MANIFESTS)))}
    assert base == {"Namespace", "DaemonSet"}


def test_a_rank_in_kubernetes_knows_its_pod() -> None:
    """The downward API sets the variables of pod, namespace and node in the container that runs the ranks."""
    (vllm,) = patched()["spec"]["template"]["spec"]["containers"]
    paths = {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in vllm["env"] if "valueFrom" in each}
    assert paths == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "NODE_NAME": "spec.nodeName"}
    assert Workload.from_environment(paths).attributes() == {
        "k8s.pod.name": "metadata.name",
        "k8s.namespace.name": "metadata.namespace",
        "k8s.node.name": "spec.nodeName",
    }
