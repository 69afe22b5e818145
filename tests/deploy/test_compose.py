"""docker-compose.yml starts confined containers that find each other and every file."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.deployment import DEPLOY, PROVISIONING, read, run, services
from tests.support.grafana_json import DASHBOARDS, ROOT
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
