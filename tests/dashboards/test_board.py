"""Every dashboard fits its grid, has the same variables, and links to what exists."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from dashboards.source.board import Row
from tests.support.grafana_json import FILES, Json, load, panels

VARIABLES = ["datasource", "traces", "job", "daemon", "host", "series", "rank"]
BUILT_IN = {"__rate_interval", "__range"}

every_dashboard = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@every_dashboard
def test_panels_neither_overlap_nor_overflow(path: Path) -> None:
    """Every panel and row lies within the 24 columns, and no two that are open together share a cell."""
    outer = load(path)["panels"]
    for row in outer:
        assert row["gridPos"]["w"] == 24 or row["type"] != "row"
        _check_places([row, *row.get("panels", ())])
    _check_places(outer)


def _check_places(shown: list[Json]) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in shown]
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


@every_dashboard
def test_all_jobs_and_daemons_are_those_listed(path: Path) -> None:
    """The choice of all stands for the listed daemons: a pattern like .* would count every target as a daemon."""
    variables = {variable["name"]: variable for variable in load(path)["templating"]["list"]}
    for name in ("job", "daemon"):
        assert "allValue" not in variables[name]
        assert "up{" in variables[name]["query"]  # also those that do not answer


@every_dashboard
def test_a_host_selects_its_ranks(path: Path) -> None:
    """The list of ranks has those of the selected hosts, and the choice of all ranks stands for this list."""
    variables = {variable["name"]: variable for variable in load(path)["templating"]["list"]}
    assert variables["host"]["allValue"] == ".*"
    assert 'host_name=~"$host"' in variables["rank"]["query"]
    assert "allValue" not in variables["rank"]


def test_rank_shows_one_rank_at_first_and_the_others_all() -> None:
    """Rank has no "All" of daemons and ranks, so Grafana selects the first one; the other dashboards begin with all."""
    for path in FILES:
        for variable in load(path)["templating"]["list"]:
            if variable["name"] in {"daemon", "rank"}:
                assert variable["includeAll"] is (path.stem != "swtrace-rank")
                assert ("current" in variable) is (path.stem != "swtrace-rank")


@every_dashboard
def test_a_dashboard_marks_what_happened(path: Path) -> None:
    """Annotations show when runs started, daemons restarted and alerts fired, of the selected daemons."""
    marks = {mark["name"]: mark for mark in load(path)["annotations"]["list"]}
    assert list(marks) == ["Runs started", "Daemons restarted", "Alerts firing"]
    for mark in marks.values():
        assert mark["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert "$job" in mark["expr"]


def test_the_first_rows_are_open_and_the_last_ones_closed() -> None:
    """What answers a dashboard's question is seen at once, and nothing closed comes before something open."""
    for path in FILES:
        closed = [panel["collapsed"] for panel in load(path)["panels"] if panel["type"] == "row"]
        assert closed == sorted(closed), path
        assert not closed[0]
        assert closed[-1]


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


def test_a_row_that_leaves_a_gap_is_refused() -> None:
    """Widths that do not add up to the grid are an error that names the row."""
    with pytest.raises(ValueError, match="row 'Ranks' must add up to 24 columns, not 20"):
        Row("Ranks", 8, (12, 8))
