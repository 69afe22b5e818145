"""The Kubernetes manifests fit their schema, and agree with the image and compose."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml

from swtrace.trace.identity import Workload
from tests.support.deployment import DEPLOY, DOCKERFILE, image_settings, read, services


@pytest.mark.parametrize("name", ["daemonset.yaml", "sidecar.yaml"])
def test_kubernetes_manifests_fit_the_schema(name: str) -> None:
    """Kubernetes' schema accepts every document, and rejects one with a misspelt field."""
    for document in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text(encoding="utf-8")):
        kubernetes_validate.validate(document, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "specs": {}}, "1.33", strict=True)


def test_kubernetes_and_compose_agree() -> None:
    """The same user, folder, port and permissions, wherever the image runs."""
    settings, _command, _healthcheck = image_settings("daemon")
    _namespace, daemonset = yaml.safe_load_all((DEPLOY / "kubernetes/daemonset.yaml").read_text(encoding="utf-8"))
    pod = daemonset["spec"]["template"]["spec"]
    (init,), (container,) = pod["initContainers"], pod["containers"]
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == "9465:9465"
    assert "USER 9465:9465" in DOCKERFILE.read_text(encoding="utf-8")
    assert init["command"][-1] == services()["rings"]["command"][0]
    assert init["restartPolicy"] == "Always"
    assert ["CMD", *init["startupProbe"]["exec"]["command"]] == services()["rings"]["healthcheck"]["test"]
    for service in (init, container):
        assert service["image"] == services()["daemon"]["image"]
        assert service["volumeMounts"][0]["mountPath"] == settings["SWTRACE_DIR"]
    assert container["ports"][0]["containerPort"] == 9465
    monitor = read(DEPLOY / "kubernetes/podmonitor.yaml")["spec"]
    assert monitor["podMetricsEndpoints"][0]["port"] == container["ports"][0]["name"]
    assert monitor["selector"]["matchLabels"].items() <= daemonset["spec"]["template"]["metadata"]["labels"].items()
    sidecar = read(DEPLOY / "kubernetes/sidecar.yaml")
    assert monitor["selector"]["matchLabels"].items() <= sidecar["metadata"]["labels"].items()
    assert sidecar["spec"]["securityContext"]["fsGroup"] == 9465


def test_a_rank_in_kubernetes_knows_its_pod() -> None:
    """The downward API sets the variables of pod, namespace and node in the container that runs the ranks."""
    (vllm,) = read(DEPLOY / "kubernetes/sidecar.yaml")["spec"]["containers"]
    paths = {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in vllm["env"] if "valueFrom" in each}
    assert paths == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "NODE_NAME": "spec.nodeName"}
    assert Workload.from_environment(paths).attributes() == {
        "k8s.pod.name": "metadata.name",
        "k8s.namespace.name": "metadata.namespace",
        "k8s.node.name": "spec.nodeName",
    }
