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

from dashboards.source import queries

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

    def __init__(self, title: str, height: int, widths: Sequence[int], *panels: Panel, collapsed: bool = False) -> None:
        if sum(widths) != COLUMNS:
            raise ValueError(f"the panels of row {title!r} must add up to {COLUMNS} columns, not {sum(widths)}")
        self.title = title
        self.height = height
        self.panels = tuple(zip(widths, panels, strict=True))
        self.collapsed = collapsed
        """Whether the row is closed at first. Grafana asks for its data only once it is opened."""


def board(uid: str, title: str, description: str, *rows: Row, one_rank: bool = False) -> models.Dashboard:
    """Return a dashboard: rows below each other, panels numbered in reading order.

    With ``one_rank``, it shows one rank of one daemon at first, instead of all.
    """
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
    for variable in _variables(one_rank=one_rank):
        made = made.with_variable(variable)
    for annotation in _annotations():
        made = made.annotation(annotation)
    for link in _links():
        made = made.link(link)
    top, number = 0, 0
    for row in rows:
        number += 1
        heading = dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=COLUMNS, x=0, y=top))
        top += 1
        left, placed = 0, []
        for width, panel in row.panels:
            number += 1
            placed.append(panel.id(number).grid_pos(models.GridPos(h=row.height, w=width, x=left, y=top)))
            left += width
        if row.collapsed:
            for panel in placed:
                heading = heading.with_panel(panel)
        else:
            top += row.height
        made = made.with_row(heading)
        for panel in placed if not row.collapsed else ():
            made = made.with_panel(panel)
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
    for annotation in document["annotations"]["list"]:
        annotation.pop("placement", None)
    for panel in (inner for outer in document["panels"] for inner in (outer, *outer.get("panels", ()))):
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
            "/d/swtrace-rank?${datasource:queryparam}&${traces:queryparam}&${job:queryparam}&${host:queryparam}&${series:queryparam}"
            "&var-daemon=${__field.labels.instance}&var-rank=${__field.labels.rank}&${__url_time_range}"
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


def _annotations() -> tuple[dashboard.AnnotationQuery, ...]:
    def events(name: str, color: str, expr: str, title: str, text: str) -> dashboard.AnnotationQuery:
        return (
            dashboard.AnnotationQuery()
            .name(name)
            .datasource(PROMETHEUS)
            .enable(True)  # noqa: FBT003 (the SDK's)
            .icon_color(color)
            .expr(expr)
            .step(queries.EVENT_STEP)
            .title_format(title)
            .text_format(text)
        )

    return (
        events("Runs started", "blue", queries.RUNS_STARTED, "Run {{run}} started", "on {{instance}}"),
        events("Daemons restarted", "purple", queries.DAEMONS_RESTARTED, "Daemon restarted", "on {{instance}}"),
        events(
            "Alerts firing",
            "red",
            queries.FIRING,
            "{{alertname}}",
            "{{severity}}: rank {{rank}} {{host}} {{series}} {{instance}} {{run_id}}",
        ),
    )


def _variables(*, one_rank: bool) -> tuple[Builder[models.VariableModel], ...]:
    scope = queries.DAEMON_SCOPE
    jobs, daemons = queries.targets(), queries.targets('job=~"$job"')
    return (
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        dashboard.DatasourceVariable("traces").label("Traces").type("tempo"),
        # "All" is the list of these two's values: other targets of the same Prometheus are no daemons.
        _values("job", "Job", f"query_result(group by (job) ({jobs}))").regex('/job="([^"]*)"/'),
        _values("daemon", "Daemon", f"query_result(group by (instance) ({daemons}))", every=not one_rank).regex(
            '/instance="([^"]*)"/'
        ),
        _values("host", "Host", f"label_values(swtrace_rank_info{{{scope}}}, host_name)").all_value(_ALL),
        _values("series", "Series", f"label_values(swtrace_series_info{{{scope}}}, series)").all_value(_ALL),
        # Most samples have no host, so a host is selected by its ranks, of which "All" is the list.
        _values(
            "rank", "Rank", f'label_values(swtrace_rank_info{{{scope}, host_name=~"$host"}}, rank)', every=not one_rank
        ).sort(models.VariableSort.NUMERICAL_ASC),
    )


def _values(name: str, label: str, query: str, *, every: bool = True) -> dashboard.QueryVariable:
    """Return a variable with the values that a query finds: at first all of them, or the first one."""
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)  # noqa: FBT003 (the SDK's)
        .include_all(every)
    )
    return variable.current(models.VariableOption(selected=True, text=["All"], value=["$__all"])) if every else variable
