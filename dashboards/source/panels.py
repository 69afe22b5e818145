"""How panels look: one function per kind, so that colours and legends are defined once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, statetimeline
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.builders import timeseries as graphs
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.source import queries
from dashboards.source.board import PROMETHEUS

GREEN, ORANGE, RED, BLUE, PURPLE, GREY, FAINT = (*("green", "orange", "red", "blue", "purple", "text", "transparent"),)

STALL_STEPS = ((GREEN, None), (ORANGE, 0.05), (RED, 0.30))
"""Stall ratio: broadcasts are hidden below 5 % of step time, and above 30 % sharing costs more than it is worth."""
STRAGGLER_STEPS = ((GREEN, None), (ORANGE, 1e-9), (RED, 0.05))
"""From 5 % of step time on, a straggler is bad. Below, it is a warning, or a rank that is named now and then."""
NONE_STEPS = ((GREEN, None), (RED, 1e-9))
"""Green at zero only."""
SOME_STEPS = ((RED, None), (GREEN, 1))
"""Red at zero only."""
ON_TIME_STEPS = ((GREEN, None), (ORANGE, 20e-6))
"""One wait's stall: on time below 20 microseconds."""
NEUTRAL = ((BLUE, None),)
UNKNOWN = (str(queries.UNKNOWN), "unknown", GREY)
STATE_COLORS = {"ready": GREEN, "in_use": BLUE, "inflight": ORANGE, "free": GREY}
"""Of windows, by what they mean: ready is what prefetch is for, and in flight may become a stall."""
FINDING_COLORS = {"bad": RED, "warning": ORANGE}
CAUSE_COLORS = {"transfer": BLUE, "backlog": PURPLE, "skew": RED, "entry_skew": ORANGE, "unattributed": GREY}

ALERT_LEVELS = tuple(
    (str(level), name, color)
    for (level, name, _), color in zip(queries.ALERT_LEVELS, (RED, ORANGE, BLUE, GREY), strict=True)
)

Steps = Sequence[tuple[str, float | None]]
AnyPanel = TypeVar(
    "AnyPanel", stat.Panel, graphs.Panel, bargauge.Panel, heatmap.Panel, statetimeline.Panel, tables.Panel
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A query of a panel, and the legend of its results.

    The panel decides what is asked for: numbers, bars and tables show what is so now; curves, heat maps and states show
    what was so over time.
    """

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Value:
    """The column of a table that shows the samples' values."""

    title: str
    unit: str = "none"
    steps: Steps = NEUTRAL
    mappings: Sequence[tuple[str, str, str]] = ()
    descending: bool = True
    leads: bool = True
    """Whether it is the first column. If not, it is the second."""


def _titled(panel: AnyPanel, title: str, description: str) -> AnyPanel:
    return panel.title(title).description(description).datasource(PROMETHEUS)


def number(
    title: str,
    description: str,
    ask: Ask,
    *,
    unit: str = "none",
    steps: Steps = NEUTRAL,
    empty: str = "no data",
    loud: bool = False,
) -> stat.Panel:
    """Return one large number, of now: a count, unless it has a unit. A loud one fills its panel with its colour."""
    panel = (
        _titled(stat.Panel(), title, description)
        .unit(unit)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .color_mode(common_models.BigValueColorMode.BACKGROUND if loud else common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value(empty)
        .with_target(_query(ask, "A", instant=True))
    )
    return panel.decimals(1) if unit == "percentunit" else panel


def curves(
    title: str,
    description: str,
    *asks: Ask,
    unit: str,
    steps: Steps | None = None,
    colors: Mapping[str, str] | None = None,
    stacked: bool = False,
    logarithmic: bool = False,
    empty: str = "",
    links: Sequence[dashboard.DashboardLink] = (),
) -> graphs.Panel:
    """Return curves over time; with steps, the area above each threshold is tinted.

    The legend has no newest value: of a curve that has ended, it would be an old one.
    """
    panel = (
        _titled(graphs.Panel(), title, description)
        .unit(unit)
        .line_width(1)
        .fill_opacity(40 if stacked else 5)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)  # noqa: FBT003 (the SDK's)
            .calcs(["mean", "max"])
            .sort_by("Max")
            .sort_desc(True)  # noqa: FBT003 (the SDK's)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        .data_links(list(links))
    )
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    else:
        panel = panel.min(0)
    if empty:
        panel = panel.no_value(empty)
    for name, color in (colors or {}).items():
        panel = panel.override_by_name(name, [_fixed(color)])
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if steps is not None:
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED_AND_AREA)
        )
    for index, ask in enumerate(asks):
        panel = panel.with_target(_query(ask, chr(ord("A") + index), instant=False))
    return panel


def planned(title: str, description: str, expr: str, *, unit: str) -> graphs.Panel:
    """Return what a plan predicts, with the ends of its range as dashed lines, and what is measured beside it."""
    panel = curves(title, description, Ask(expr, "{{series}} {{kind}}"), unit=unit, empty="no plan")
    dashed = models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 8]})
    thick = models.DynamicConfigValue("custom.lineWidth", 2)
    for pattern, color, look in (
        ("/ (low|high)$/", BLUE, dashed),
        ("/ predicted$/", BLUE, thick),
        ("/ measured$/", ORANGE, thick),
    ):
        panel = panel.override_by_regexp(pattern, [_fixed(color), look])
    return panel


def bars(
    title: str,
    description: str,
    ask: Ask,
    *,
    unit: str,
    steps: Steps,
    links: Sequence[dashboard.DashboardLink] = (),
) -> bargauge.Panel:
    """Return the values of now as horizontal bars, for ranking."""
    return (
        _titled(bargauge.Panel(), title, description)
        .unit(unit)
        .min(0)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .data_links(list(links))
        .with_target(_query(ask, "A", instant=True))
    )


def heat(title: str, description: str, ask: Ask, *, scheme: str) -> heatmap.Panel:
    """Return a histogram's buckets over time."""
    return (
        _titled(heatmap.Panel(), title, description)
        .calculate(False)  # noqa: FBT003 (the SDK's)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common_models.HeatmapCellLayout.AUTO))
        .y_axis(heatmap.YAxisConfig().unit("s").axis_placement(common_models.AxisPlacement.LEFT))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme(scheme)
            .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_gap(1)
        .show_legend()
        .tooltip(
            heatmap.HeatmapTooltip().mode(common_models.TooltipDisplayMode.SINGLE).y_histogram(True)  # noqa: FBT003
        )
        .exemplars_color("rgba(255,0,255,0.7)")
        .with_target(_query(ask, "A", PromQueryFormat.HEATMAP, instant=False))
    )


def states(
    title: str,
    description: str,
    ask: Ask,
    mappings: Sequence[tuple[str, str, str]],
    *,
    colors: Mapping[str, str] | None = None,
) -> statetimeline.Panel:
    """Return one band per result.

    ``mappings`` are (from value, text, colour). ``colors`` are those of a band's other values, by the word after its
    rank.
    """
    panel = (
        _titled(statetimeline.Panel(), title, description)
        .mappings(_mappings(mappings))
        .min(0)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds(NEUTRAL))
        .merge_values(True)  # noqa: FBT003 (the SDK's)
        .show_value(common_models.VisibilityMode.AUTO)
        .row_height(0.9)
        .fill_opacity(80)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)  # noqa: FBT003 (the SDK's)
        )
        .with_target(_query(ask, "A", instant=False))
    )
    for word, color in (colors or {}).items():
        panel = panel.override_by_regexp(rf"/^rank \S+ {word}\b/", [_fixed(color)])
    return panel


def table(
    title: str,
    description: str,
    ask: Ask,
    columns: Sequence[str],
    *,
    value: Value | None = None,
    colors: Mapping[str, str] | None = None,
) -> tables.Panel:
    """Return the labels of now's samples as a table with these columns, in this order.

    With ``value``, a column shows the samples' values. The first column sorts the rows. ``colors`` are those of the
    first label's texts.
    """
    before, after = ((), columns) if value is None or value.leads else (columns[:1], columns[1:])
    fields = (*before, *(("Value",) if value else ()), *after)
    panel = (
        _titled(tables.Panel(), title, description)
        .show_header(True)  # noqa: FBT003 (the SDK's)
        .with_transformation(
            models.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": list(fields)}})
        )
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "indexByName": {name: index for index, name in enumerate(fields)},
                    "renameByName": {"Value": value.title} if value else {},
                },
            )
        )
        .with_target(_query(ask, "A", PromQueryFormat.TABLE, instant=True))
    )
    leading = value if value and value.leads else None
    sorting = common.TableSortByFieldState().display_name(leading.title if leading else columns[0])
    panel = panel.sort_by([sorting.desc(bool(leading and leading.descending))])
    if colors:
        texts = _mappings([(text, text, color) for text, color in colors.items()])
        panel = panel.override_by_name(
            columns[0],
            [
                models.DynamicConfigValue("mappings", texts),
                models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
                models.DynamicConfigValue("custom.width", 110),
            ],
        )
    if value:
        properties = [
            models.DynamicConfigValue("unit", value.unit),
            models.DynamicConfigValue("decimals", 1 if value.unit == "percentunit" else 0),
            models.DynamicConfigValue("mappings", _mappings(value.mappings)),
            models.DynamicConfigValue("thresholds", _thresholds(value.steps).build()),
            models.DynamicConfigValue("color", {"mode": models.FieldColorModeId.THRESHOLDS}),
            models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            models.DynamicConfigValue("custom.width", 110),
        ]
        panel = panel.override_by_name(value.title, properties)
    return panel


def findings() -> tables.Panel:
    """Return what the rules find now."""
    return table(
        "Findings",
        "What the rules find wrong now, and for how much of the last hour they did. Good: none. On the host, swtrace "
        "diagnose says it in a sentence, with evidence, advice and what a repair would save.",
        Ask(queries.FINDINGS),
        ("severity", "kind", "series", "rank", "host", "instance", "run_id"),
        value=Value("Found for", unit="s", leads=False),
        colors=FINDING_COLORS,
    )


def findings_over_time() -> statetimeline.Panel:
    """Return when each finding was there."""
    return states(
        "Findings over time",
        "Each kind of finding while it was there. Good: empty. A finding that comes and goes is near its threshold, or "
        "is about something that comes and goes.",
        Ask(queries.FINDINGS_SEEN, "rank {{rank}} {{kind}} {{host}} {{series}} {{instance}} {{run_id}}"),
        (("1", "found", ORANGE), UNKNOWN),
    )


def daemons() -> tuple[stat.Panel, stat.Panel]:
    """Return how many daemons answer, and how many do not."""
    return (
        number(
            "Daemons up",
            "Daemons that answered the last scrape, or pushed just now. Good: one per host. Without one, all other "
            "panels are empty.",
            Ask(queries.DAEMONS_UP),
            steps=SOME_STEPS,
            loud=True,
        ),
        number(
            "Daemons down",
            "Daemons that Prometheus scrapes and that do not answer. Good: 0. The ranks of their hosts are missing "
            "from all panels of now.",
            Ask(queries.DAEMONS_DOWN),
            steps=NONE_STEPS,
            empty="no target",
            loud=True,
        ),
    )


def daemon_table() -> tables.Panel:
    """Return all daemons with their versions."""
    return table(
        "Daemons",
        "Every daemon that Prometheus scrapes, those that do not answer first. Good: all up, with the same version.",
        Ask(queries.DAEMONS),
        ("instance", "version", "python_version"),
        value=Value("State", mappings=(("0", "down", RED), ("1", "up", GREEN)), descending=False),
    )


def alerts_firing() -> stat.Panel:
    """Return how many alerts fire."""
    return number(
        "Alerts firing",
        "Alerts of swtrace.alerts.yml. Good: 0. Fleet lists them.",
        Ask(queries.ALERTS_FIRING),
        steps=NONE_STEPS,
        empty="not loaded",
        loud=True,
    )


def _fixed(color: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue("color", {"mode": models.FieldColorModeId.FIXED, "fixedColor": color})


def _mappings(mappings: Sequence[tuple[str, str, str]]) -> list[models.ValueMapping]:
    """Return value mappings of (from value, text, colour)."""
    options = {
        value: models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, text, color) in enumerate(mappings)
    }
    return [models.ValueMap(options=options)] if options else []


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(color=color, value=value) for color, value in steps])
    )


def _query(
    ask: Ask, reference: str, form: PromQueryFormat = PromQueryFormat.TIME_SERIES, *, instant: bool
) -> prometheus.Dataquery:
    query = (
        prometheus.Dataquery()
        .datasource(PROMETHEUS)
        .expr(ask.expr)
        .legend_format(ask.legend or "__auto")
        .format(form)
        .ref_id(reference)
    )
    if ask.exemplars:
        query = query.exemplar(True)  # noqa: FBT003 (the SDK's)
    return query.instant() if instant else query.range()
