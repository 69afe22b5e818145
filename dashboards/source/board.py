"""What all dashboards share: variables, links between them and to traces, and the grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from grafana_foundation_sdk.builders import bargauge, dashboard, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import DataSourceRef

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24
TAG = "swtrace"
SLOW_WAIT_NS = 1_000_000
_ALL = ".*"
_DATA_LINK = ("title", "url", "targetBlank")
_NO_VARIABLE = ("auto", "auto_count", "auto_min")


Panel = bargauge.Panel | heatmap.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel


class Row:
    """A titled row: panels side by side, whose widths add up to 24 columns."""

    def __init__(self, title: str, height: int, widths: Sequence[int], *panels: Panel) -> None:
        if sum(widths) != COLUMNS:
            raise ValueError(f"the panels of row {title!r} must add up to {COLUMNS} columns, not {sum(widths)}")
        self.title = title
        self.height = height
        self.panels = tuple(zip(widths, panels, strict=True))


def board(uid: str, title: str, description: str, *rows: Row) -> models.Dashboard:
    """Return a dashboard: rows below each other, panels numbered in reading order."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .editable()
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
    )
    for variable in _variables():
        made = made.with_variable(variable)
    for link in _links():
        made = made.link(link)
    top, number = 0, 0
    for row in rows:
        number += 1
        made = made.with_row(dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=COLUMNS, x=0, y=top)))
        top += 1
        left = 0
        for width, panel in row.panels:
            number += 1
            made = made.with_panel(panel.id(number).grid_pos(models.GridPos(h=row.height, w=width, x=left, y=top)))
            left += width
        top += row.height
    return made.build()


def to_json(made: models.Dashboard) -> str:
    """Return the text of a dashboard's file, the same at every run."""
    document = json.loads(JSONEncoder(sort_keys=True).encode(made))
    # The SDK moves every link into a menu by default, gives a field's links properties of a dashboard's links, and
    # writes defaults that Grafana's own schema lacks.
    for link in document["links"]:
        del link["placement"]
    for variable in document["templating"]["list"]:
        for name in _NO_VARIABLE:
            variable.pop(name, None)
    for panel in document["panels"]:
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        panel.get("options", {}).pop("footer", None)
        if "links" in defaults:
            defaults["links"] = [{name: link[name] for name in _DATA_LINK} for link in defaults["links"]]
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def rank_link() -> dashboard.DashboardLink:
    """Return the link from a rank's value to the Rank dashboard."""
    return (
        dashboard.DashboardLink("Rank ${__field.labels.rank} on ${__field.labels.instance}")
        .type(models.DashboardLinkType.LINK)
        .url(
            "/d/swtrace-rank?${datasource:queryparam}&${traces:queryparam}&${job:queryparam}&${series:queryparam}"
            "&var-host=${__field.labels.instance}&var-rank=${__field.labels.rank}&${__url_time_range}"
        )
    )


def rank_traces_link() -> dashboard.DashboardLink:
    """Return the link from a rank's value to the traces with its slow waits."""
    return (
        dashboard.DashboardLink("Traces with slow waits of rank ${__field.labels.rank}")
        .type(models.DashboardLinkType.LINK)
        .url(_explore(f"span.swtrace.stall_ns > {SLOW_WAIT_NS} && span.swtrace.rank = ${{__field.labels.rank}}"))
    )


def _explore(condition: str) -> str:
    """Return the address of Explore with a TraceQL query; Grafana's placeholders stay unescaped."""
    query = {
        "refId": "A",
        "datasource": {"type": "tempo", "uid": "${traces}"},
        "queryType": "traceql",
        "tableType": "traces",
        "limit": 20,
        "query": f'{{ name = "swtrace.wait" && {condition} }}',
    }
    pane = {"datasource": "${traces}", "queries": [query], "range": {"from": "${__from}", "to": "${__to}"}}
    return f"/explore?schemaVersion=1&panes={quote(json.dumps({'swt': pane}, separators=(',', ':')), safe='${}_:,')}"


def _links() -> tuple[dashboard.DashboardLink, ...]:
    return (
        dashboard.DashboardLink("swtrace")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(False)  # noqa: FBT003 (the SDK's)
        .include_vars(True)  # noqa: FBT003 (the SDK's)
        .keep_time(True),  # noqa: FBT003 (the SDK's)
        dashboard.DashboardLink("Traces with slow waits")
        .type(models.DashboardLinkType.LINK)
        .icon("external link")
        .tooltip("Steps in which a rank stalled for more than a millisecond on one weight")
        .url(_explore(f"span.swtrace.stall_ns > {SLOW_WAIT_NS}")),
    )


def _variables() -> tuple[Builder[models.VariableModel], ...]:
    return (
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        dashboard.DatasourceVariable("traces").label("Traces").type("tempo"),
        _values("job", "Job", "label_values(swtrace_build_info, job)"),
        _values("host", "Host", 'label_values(swtrace_build_info{job=~"$job"}, instance)'),
        _values("series", "Series", 'label_values(swtrace_series_info{job=~"$job", instance=~"$host"}, series)'),
        _values(
            "rank",
            "Rank",
            'label_values(swtrace_rank_up{job=~"$job", instance=~"$host"}, rank)',
            models.VariableSort.NUMERICAL_ASC,
        ),
    )


def _values(
    name: str, label: str, query: str, sort: models.VariableSort = models.VariableSort.ALPHABETICAL_ASC
) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(sort)
        .multi(True)  # noqa: FBT003 (the SDK's)
        .include_all(True)  # noqa: FBT003 (the SDK's)
        .all_value(_ALL)
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )
