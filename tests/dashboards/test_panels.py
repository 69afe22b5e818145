"""Every panel explains itself, changes colour where the verdict does, and leads to traces."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dashboards.source import panels as looks
from swtrace.ledger.finding import HIDDEN_BELOW, STALLED_ABOVE
from swtrace.ledger.recent import STRAGGLER_SHARE
from tests.support.grafana_json import FILES, ROOT, load, panels
from tests.support.prometheus_process import alerts

every_dashboard = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@every_dashboard
def test_every_panel_explains_itself(path: Path) -> None:
    """A panel has a unique number, a title, a description that says what good looks like, and a unit."""
    dashboard = load(path)
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert None not in numbers
    for panel in panels(dashboard):
        assert panel["title"]
        assert len(panel["description"]) >= 20, panel["title"]
        if panel["type"] not in {"table", "heatmap", "state-timeline"}:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] in {"stat", "bargauge"}:
            assert panel["options"]["reduceOptions"]["calcs"] == ["lastNotNull"], panel["title"]


def test_thresholds_are_those_of_the_verdict() -> None:
    """Colours change at the verdict's thresholds, and where a straggler is named."""
    assert [value for _, value in looks.STALL_STEPS] == [None, HIDDEN_BELOW, STALLED_ABOVE]
    assert [value for _, value in looks.STRAGGLER_STEPS] == [None, STRAGGLER_SHARE]
    by_name = {rule["alert"]: rule["expr"] for rule in alerts()}
    assert f"> {HIDDEN_BELOW:.2f} " in by_name["SwtraceStallRatioHigh"]
    assert f"> {STALLED_ABOVE:.2f} " in by_name["SwtraceStallRatioCritical"]
    assert f"> {STRAGGLER_SHARE:.2f} " in by_name["SwtraceStraggler"].replace("\n", " ")


def test_histograms_of_waits_link_to_traces_by_exemplars() -> None:
    """The panels of single waits ask for exemplars, and the provisioned data source links them to Tempo's."""
    asking = {
        panel["title"]
        for path in FILES
        for panel in panels(load(path))
        for target in panel["targets"]
        if target.get("exemplar")
    }
    assert asking == {"One wait's stall, 99th percentile", "Stall per wait"}
    provisioning = ROOT / "dashboards/grafana/provisioning/datasources/swtrace.yml"
    sources = {
        source["uid"]: source for source in yaml.safe_load(provisioning.read_text(encoding="utf-8"))["datasources"]
    }
    (destination,) = sources["swtrace-prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert destination["name"] == "trace_id"
    assert sources[destination["datasourceUid"]]["type"] == "tempo"
