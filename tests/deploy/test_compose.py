"""docker-compose.yml starts confined containers that find each other and every file."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.deployment import DEPLOY, PROVISIONING, read, run, services
from tests.support.grafana_json import DASHBOARDS, ROOT
from tests.support.patience import eventually, patience
from tests.support.prometheus_process import COMPOSE, FILES


def test_compose_file_fits_its_schema() -> None:
    """docker-compose.yml is a compose file by the compose specification's own schema."""
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_compose_mounts_what_exists_and_pins_what_it_pulls() -> None:
    """Every mounted file exists, every image has a version, every port is on loopback."""
    compose = read(COMPOSE)
    for name, service in compose["services"].items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
            assert name != "daemon" or port == "127.0.0.1:${SWTRACE_PORT:-9465}:9465"
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                assert volume["source"] == "${SWTRACE_DIR:-/dev/shm/swtrace}", name
                continue
            source, *_rest = volume.split(":")
            assert source in compose["volumes"] or (ROOT / source).exists(), (name, source)


def test_containers_are_confined() -> None:
    """Every container has a read-only root, no capability but what `rings` needs, and gains no privileges."""
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


@contextmanager
def watched(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command of the service `rings` over a folder, without its pauses, until it is stopped."""
    (text,) = services()["rings"]["command"]
    group = str(folder.stat().st_gid)
    text = text.replace("9465", group).replace("/run/swtrace", str(folder)).replace("sleep 5", "sleep 0.01")
    process = subprocess.Popen(["/bin/sh", "-c", text], stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=patience())


def mode(folder: Path) -> int:
    """Return the permissions of a folder."""
    return folder.stat().st_mode & 0o7777


def test_a_new_folder_is_given_to_the_group_and_a_prepared_one_is_left_alone(tmp_path: Path) -> None:
    """The command of compose and Kubernetes makes rings group-readable, again and again, and respects what is set."""
    folder = tmp_path / "rings"
    folder.mkdir(mode=0o755)
    with watched(folder) as process:
        eventually(lambda: mode(folder) == 0o3777, "a shared folder")
        folder.chmod(0o755)
        eventually(lambda: mode(folder) == 0o3777, "the folder to be shared again")
        folder.chmod(0o2750)
        process.terminate()
        assert process.wait(patience()) == 0
    assert mode(folder) == 0o2750


def test_a_container_whose_folder_was_removed_ends(tmp_path: Path) -> None:
    """Only a restart mounts the folder that took its place, and the restart policy makes one."""
    folder = tmp_path / "rings"
    folder.mkdir()
    with watched(folder) as process:
        folder.rmdir()
        assert process.wait(patience()) == 1
    assert services()["rings"]["restart"] == "unless-stopped"


def test_daemon_and_ranks_start_once_the_folder_is_shared() -> None:
    """Both wait for a health check that succeeds only in a folder with the set-group-ID bit."""
    assert services()["rings"]["healthcheck"]["test"] == ["CMD", "test", "-g", "/run/swtrace"]
    for name in ("daemon", "demo"):
        assert services()[name]["depends_on"] == {"rings": {"condition": "service_healthy"}}
