"""Every panel explains itself, shows now or a time, names the culprit first, and leads to traces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dashboards.source import panels as looks
from dashboards.source.queries import FRESH_S
from swtrace.diagnosis.finding import HIDDEN_BELOW, STALLED_ABOVE
from swtrace.diagnosis.rules.straggler import HARMFUL
from swtrace.ledger.facts import Cause
from swtrace.ledger.ledger import DEFAULT_EPSILON_NS
from swtrace.trace.marks import Occupancy
from tests.support.grafana_json import FILES, ROOT, load, panels
from tests.support.prometheus_process import alerts

every_dashboard = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@every_dashboard
def test_every_panel_explains_itself(path: Path) -> None:
    """A panel has a unique number and title, a description that says what good looks like, and a unit."""
    dashboard = load(path)
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)
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
    """Colours change at the verdict's thresholds, and where a straggler is bad."""
    assert [value for _, value in looks.STALL_STEPS] == [None, HIDDEN_BELOW, STALLED_ABOVE]
    assert [value for _, value in looks.STRAGGLER_STEPS] == [None, 1e-9, HARMFUL]
    assert [value for _, value in looks.ON_TIME_STEPS] == [None, DEFAULT_EPSILON_NS / 1e9]
    by_name = {rule["alert"]: rule["expr"] for rule in alerts()}
    assert f"> {HIDDEN_BELOW:.2f} " in by_name["SwtraceStallRatioHigh"]
    assert f"> {STALLED_ABOVE:.2f} " in by_name["SwtraceStallRatioCritical"]
    ages = {age for expr in by_name.values() for age in re.findall(r"timestamp\([^)]*\) < (\d+)", expr)}
    assert ages == {str(FRESH_S)}


@every_dashboard
def test_numbers_bars_and_tables_show_now_and_the_others_a_time(path: Path) -> None:
    """Only an instant query is empty once its source is gone; the last value of a range is an old one."""
    for panel in panels(load(path)):
        now = panel["type"] in {"stat", "bargauge", "table"}
        for target in panel["targets"]:
            assert (target["instant"], target["range"]) == (now, not now), panel["title"]
        assert not set(panel["options"].get("legend", {}).get("calcs", ())) & {"last", "lastNotNull"}, panel["title"]


@every_dashboard
def test_numbers_of_now_ask_for_current_samples_only(path: Path) -> None:
    """Prometheus finds a sample for five minutes; every gauge that a panel of now shows is younger than that."""
    for panel in panels(load(path)):
        for target in panel["targets"] if panel["type"] in {"stat", "bargauge", "table"} else ():
            bare = re.sub(r"\([^()]*\{[^{}]*\}\[[^]]*\]", "", target["expr"])  # rates, which end by themselves
            for selector in re.findall(r"\w+\{[^{}]*\}", bare):
                assert f"time() - timestamp({selector}) < {FRESH_S}" in bare, panel["title"]


@every_dashboard
def test_a_legend_names_the_rank_first_and_the_run_if_it_must(path: Path) -> None:
    """Long names of series and hosts cannot push out the rank, and two runs that are alive at once differ."""
    for panel in panels(load(path)):
        for target in panel["targets"]:
            legend = target["legendFormat"]
            if "{{rank}}" in legend:
                assert legend.startswith("rank {{rank}} "), panel["title"]
                assert legend.endswith("{{instance}} {{run_id}}"), panel["title"]


@every_dashboard
def test_tables_are_sorted_and_name_the_run_of_a_rank(path: Path) -> None:
    """A table sorts by its first column, which is how bad it is if it has values."""
    for panel in panels(load(path)):
        if panel["type"] == "table":
            columns, names = (step["options"] for step in panel["transformations"])
            first = min(names["indexByName"], key=names["indexByName"].__getitem__)
            (sort,) = panel["options"]["sortBy"]
            assert sort["displayName"] == names["renameByName"].get(first, first), panel["title"]
            shown = set(columns["include"]["names"])
            assert ("rank" in shown) == bool(shown & {"run", "run_id"}), panel["title"]


def test_colours_say_what_a_window_or_a_cause_means() -> None:
    """Every state and every cause has a colour of its own, and ready windows are green."""
    assert set(looks.STATE_COLORS) == {*Occupancy}
    assert set(looks.CAUSE_COLORS) == {*Cause}
    for colors in (looks.STATE_COLORS, looks.CAUSE_COLORS):
        assert len(set(colors.values())) == len(colors)
    assert looks.STATE_COLORS[Occupancy.READY] == looks.GREEN
    (bands,) = (p for path in FILES for p in panels(load(path)) if p["title"] == "Windows in each state")
    (legend,) = (target["legendFormat"] for target in bands["targets"])
    for state in Occupancy:
        name = legend.replace("{{rank}}", "3").replace("{{state}}", state)
        matching = [o for o in bands["fieldConfig"]["overrides"] if re.search(o["matcher"]["options"].strip("/"), name)]
        assert [o["properties"][0]["value"]["fixedColor"] for o in matching] == [looks.STATE_COLORS[state]]


def test_one_waits_stall_is_logarithmic_with_a_line_where_it_is_on_time() -> None:
    """Stalls range from microseconds to seconds, and the line at 20 microseconds is visible among them."""
    (panel,) = (p for path in FILES for p in panels(load(path)) if p["title"].startswith("One wait's stall"))
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["custom"]["scaleDistribution"] == {"type": "log", "log": 10}
    assert "min" not in defaults  # a logarithm has no 0
    assert [step["value"] for step in defaults["thresholds"]["steps"]] == [None, DEFAULT_EPSILON_NS / 1e9]


def test_records_per_second_have_their_unit() -> None:
    """A rate of records is in records per second."""
    units = {p["title"]: p["fieldConfig"]["defaults"].get("unit") for path in FILES for p in panels(load(path))}
    assert units["Records written"] == units["Records lost"] == "recps"


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
