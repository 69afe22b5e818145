"""The committed dashboards are what the code makes, fit their grid, and query metrics that exist."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from dashboards.source import panels as looks
from dashboards.source.__main__ import documents
from swtrace.ledger.finding import HIDDEN_BELOW, STALLED_ABOVE
from swtrace.ledger.recent import STRAGGLER_SHARE
from tests.daemon.test_daemon_metrics import NAMES
from tests.support.grafana_json import FILES, ROOT, Json, load, panels, queries

VARIABLES = ["datasource", "traces", "job", "host", "series", "rank"]
BUILT_IN = {"__rate_interval", "__range"}
PROMETHEUS_OWN = {"up", "ALERTS", "scrape_duration_seconds", "scrape_samples_scraped"}

every_dashboard = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_committed_json_is_what_the_code_makes() -> None:
    """``python -m dashboards.source`` writes exactly the committed JSON: nobody edits it by hand."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == documents()


@every_dashboard
def test_panels_neither_overlap_nor_overflow(path: Path) -> None:
    """Every panel and row lies within the 24 columns, and no two share a cell."""
    places = [(panel["title"], panel["gridPos"]) for panel in load(path)["panels"]]
    for title, place in places:
        assert place["x"] >= 0, title
        assert place["y"] >= 0, title
        assert place["w"] > 0, title
        assert place["h"] > 0, title
        assert place["x"] + place["w"] <= 24, title
    for (first, a), (second, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{first!r} overlaps {second!r}"


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


@every_dashboard
def test_variables_are_the_same_everywhere_and_all_that_queries_use(path: Path) -> None:
    """Each dashboard has the variables that links from the others set, and queries use no other variable."""
    dashboard = load(path)
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == VARIABLES
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["traces"]["query"] == "tempo"
    for panel in panels(dashboard):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {*VARIABLES, *BUILT_IN}


def test_queries_ask_for_documented_metrics_only() -> None:
    """Every metric of a query is one that the daemon serves, or one of Prometheus' own."""
    for query in queries():
        asked = set(re.findall(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\{", query.expr))
        assert asked, query
        for name in asked - PROMETHEUS_OWN:
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in NAMES or NAMES.get(family, ("",))[0] == "histogram", query


def test_every_daemon_metric_is_on_a_dashboard() -> None:
    """Every metric of the daemon has a panel."""
    text = " ".join(query.expr for query in queries())
    assert {name for name in NAMES if name not in text} == set()


def test_thresholds_are_those_of_the_verdict() -> None:
    """Colours change at the verdict's thresholds, and where a straggler is named."""
    assert [value for _, value in looks.STALL_STEPS] == [None, HIDDEN_BELOW, STALLED_ABOVE]
    assert [value for _, value in looks.STRAGGLER_STEPS] == [None, STRAGGLER_SHARE]
    alerts = yaml.safe_load((ROOT / "dashboards/prometheus/swtrace.alerts.yml").read_text(encoding="utf-8"))
    by_name = {rule["alert"]: rule["expr"] for group in alerts["groups"] for rule in group["rules"]}
    assert f"> {HIDDEN_BELOW:.2f}" in by_name["SwtraceStallRatioHigh"]
    assert by_name["SwtraceStallRatioCritical"].endswith(f"> {STALLED_ABOVE:.2f}")


@every_dashboard
def test_links_lead_to_dashboards_and_traces_that_exist(path: Path) -> None:
    """Links between dashboards name existing ones; links to traces are a TraceQL query on the traces variable."""
    dashboard = load(path)
    uids = {load(file)["uid"] for file in FILES}
    links = [*dashboard["links"], *(link for panel in panels(dashboard) for link in _data_links(panel))]
    assert any(link.get("type") == "dashboards" and link["tags"] == dashboard["tags"] for link in links)
    addresses = [link["url"] for link in links if "url" in link]
    traces = [address for address in addresses if address.startswith("/explore")]
    assert traces
    for address in addresses:
        if address.startswith("/explore"):
            _check_explore(address)
        else:
            assert urlsplit(address).path.removeprefix("/d/") in uids, address


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


def _data_links(panel: Json) -> list[Json]:
    links: list[Json] = panel["fieldConfig"]["defaults"].get("links", [])
    return links


def _check_explore(address: str) -> None:
    """Decode the address as Grafana does, after filling in the variables."""
    filled = re.sub(r"\$\{__(from|to)\}", "0", address)
    filled = filled.replace("${traces}", "swtrace-tempo").replace("${__field.labels.rank}", "3")
    assert "$" not in filled
    (panes,) = parse_qs(urlsplit(filled).query)["panes"]
    (pane,) = json.loads(unquote(panes)).values()
    (query,) = pane["queries"]
    assert pane["datasource"] == query["datasource"]["uid"] == "swtrace-tempo"
    assert query["queryType"] == "traceql"
    assert re.fullmatch(
        r'\{ name = "swtrace\.wait" && span\.swtrace\.stall_ns > \d+( && span\.swtrace\.rank = 3)? \}', query["query"]
    )
