"""The deployment files (compose, image, Prometheus, Kubernetes), checked by every tool that needs no engine."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.daemon_command import environment
from tests.support.grafana_json import DASHBOARDS, ROOT
from tests.support.patience import eventually, patience
from tests.support.prometheus_process import COMPOSE, FILES, Prometheus, prometheus
from tests.support.recorded_run import RecordedRun
from tests.support.span_receiver import SpanReceiver, collector, free_port

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


def test_compose_file_fits_its_schema() -> None:
    """docker-compose.yml is a compose file by the compose specification's own schema."""
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_dockerfile_passes_hadolint() -> None:
    """Hadolint reports nothing about the Dockerfile."""
    assert run("hadolint", str(DOCKERFILE)) == ""


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


def test_compose_mounts_what_exists_and_pins_what_it_pulls() -> None:
    """Every mounted file exists, every image has a version, every port is on loopback."""
    compose = read(COMPOSE)
    for name, service in compose["services"].items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                assert volume["source"] == "${SWTRACE_DIR:-/dev/shm/swtrace}", name
                continue
            source, *_rest = volume.split(":")
            assert source in compose["volumes"] or (ROOT / source).exists(), (name, source)


def test_containers_are_confined() -> None:
    """Every container has a read-only root, no capability but what the one-shot needs, and gains no privileges."""
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert ("cap_add" in service) == (name == "rings"), name
    rings = services()["daemon"]["volumes"][0]
    assert rings["read_only"] is True
    assert services()["rings"]["network_mode"] == "none"


def test_grafana_is_provisioned_with_what_compose_starts() -> None:
    """Data sources have fixed ids and point at compose's services; dashboards are where the provider looks."""
    sources = {source["uid"]: source for source in read(PROVISIONING / "datasources/swtrace.yml")["datasources"]}
    assert set(sources) == {"swtrace-prometheus", "swtrace-tempo"}
    listening = {"prometheus": ":9090", "tempo": ":3200"}
    for source in sources.values():
        service, port = source["type"], listening[source["type"]]
        assert source["url"] == f"http://{service}{port}"
        assert any(published.endswith(port) for published in services()[service]["ports"])
    grafana = services()["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts["./dashboards/grafana/provisioning"] == "/etc/grafana/provisioning"
    (provider,) = read(PROVISIONING / "dashboards/swtrace.yml")["providers"]
    assert provider["options"]["path"] == mounts["./dashboards/grafana/dashboards"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DASHBOARDS / Path(home).name).exists()
    interval = read(FILES / "prometheus.yml")["global"]["scrape_interval"]
    assert sources["swtrace-prometheus"]["jsonData"]["timeInterval"] == interval


def test_daemon_exports_to_the_collector_that_compose_starts() -> None:
    """The daemon exports to the OTLP receiver that Tempo's configuration opens."""
    endpoint = services()["daemon"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert endpoint.endswith(":-http://tempo:4318}")
    receivers = read(DEPLOY / "tempo.yml")["distributor"]["receivers"]["otlp"]["protocols"]
    assert receivers["http"]["endpoint"].endswith(":4318")


def succeeds(command: list[str]) -> bool:
    """Return whether a command ends with status 0."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


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


def test_image_starts_a_daemon_that_its_healthcheck_finds_well(tmp_path: Path) -> None:
    """The image's environment and command, and compose's, start a daemon that exports through a real collector."""
    settings, command, healthcheck = image_settings("daemon")
    assert command == ["swtrace", "daemon"]
    assert settings["SWTRACE_DIR"] == services()["daemon"]["volumes"][0]["target"]
    port = free_port()
    rings = tmp_path / "rings"
    run_ = RecordedRun(rings)
    run_.write(5)
    receiver = SpanReceiver()
    with collector(tmp_path, receiver) as (_grpc, http):
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment(
                SWTRACE_DIR=str(rings),
                SWTRACE_LISTEN=settings["SWTRACE_LISTEN"].replace("9465", str(port)),
                OTEL_EXPORTER_OTLP_ENDPOINT=http,
                SWTRACE_TRACE_SAMPLE="1",
                SWTRACE_SLOW_STEP="",
            ),
            stdout=subprocess.DEVNULL,
        )
        try:
            check = [sys.executable, *(part.replace("9465", str(port)) for part in healthcheck[1:])]
            eventually(lambda: succeeds(check), "the healthcheck to succeed")
            # Two ranks: a step, five broadcasts and five waits each; the first step's first layer was prefilled.
            spans = 5 * 2 * 11 - 2
            assert len(receiver.wait_for(spans)) == spans
        finally:
            process.terminate()
            assert process.wait(patience()) == 0
        assert not succeeds(check)
    receiver.close()
    run_.close()


@pytest.mark.prometheus
def test_prometheus_starts_with_the_very_files_and_flags(tmp_path: Path) -> None:
    """Prometheus starts with compose's command line and files, except targets, loads all rules and keeps exemplars."""
    with prometheus(tmp_path, ["127.0.0.1:1"]) as server:
        assert len(server.rules()) == 22
        assert server.get("status/flags")["enable-feature"] == "exemplar-storage"
        eventually(lambda: _looked_up(server), "the targets")


def _looked_up(server: Prometheus) -> bool:
    return {target["labels"]["job"] for target in server.targets()} == {"swtrace", "prometheus"}


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


def test_one_shot_gives_a_new_folder_to_the_group_and_leaves_a_prepared_one(tmp_path: Path) -> None:
    """The command that compose and Kubernetes run once makes rings group-readable, and respects what somebody set."""
    group = tmp_path.stat().st_gid
    text = services()["rings"]["command"][0].replace("9465", str(group))
    new, prepared = tmp_path / "new", tmp_path / "prepared"
    for folder, mode in ((new, 0o755), (prepared, 0o2750)):
        folder.mkdir()
        folder.chmod(mode)
        run("sh", "-c", text.replace("/run/swtrace", str(folder)))
    assert new.stat().st_mode & 0o7777 == 0o3777
    assert prepared.stat().st_mode & 0o7777 == 0o2750
