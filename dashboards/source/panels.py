"""How panels look: one function per kind, so that colours and legends are defined once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, statetimeline
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.builders import timeseries as graphs
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.source.board import PROMETHEUS

GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "text"

STALL_STEPS = ((GREEN, None), (ORANGE, 0.05), (RED, 0.30))
"""Stall ratio: broadcasts are hidden below 5 % of step time, and above 30 % sharing costs more than it is worth."""
STRAGGLER_STEPS = ((GREEN, None), (RED, 0.05))
"""A straggler is named only from 5 % of step time on."""
NONE_STEPS = ((GREEN, None), (RED, 1e-9))
"""Green at zero only."""
NEUTRAL = ((BLUE, None),)

Steps = Sequence[tuple[str, float | None]]
AnyPanel = TypeVar(
    "AnyPanel", stat.Panel, graphs.Panel, bargauge.Panel, heatmap.Panel, statetimeline.Panel, tables.Panel
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A query of a panel, and the legend of its results."""

    expr: str
    legend: str = ""
    instant: bool = False
    exemplars: bool = False


def _titled(panel: AnyPanel, title: str, description: str) -> AnyPanel:
    return panel.title(title).description(description).datasource(PROMETHEUS)


def number(title: str, description: str, ask: Ask, *, unit: str = "none", steps: Steps = NEUTRAL) -> stat.Panel:
    """Return one large number over its graph: a count, unless it has a unit."""
    panel = (
        _titled(stat.Panel(), title, description)
        .unit(unit)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_query(ask, "A"))
    )
    return panel.decimals(1) if unit == "percentunit" else panel


def curves(
    title: str,
    description: str,
    *asks: Ask,
    unit: str,
    steps: Steps | None = None,
    stacked: bool = False,
    links: Sequence[dashboard.DashboardLink] = (),
) -> graphs.Panel:
    """Return curves over time; with steps, the area above each threshold is tinted."""
    panel = (
        _titled(graphs.Panel(), title, description)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(40 if stacked else 5)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)  # noqa: FBT003 (the SDK's)
            .calcs(["mean", "max", "lastNotNull"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        .data_links(list(links))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if steps is not None:
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED_AND_AREA)
        )
    for index, ask in enumerate(asks):
        panel = panel.with_target(_query(ask, chr(ord("A") + index)))
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
    """Return the newest values as horizontal bars, for ranking."""
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
        .with_target(_query(ask, "A"))
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
        .with_target(_query(ask, "A", PromQueryFormat.HEATMAP))
    )


def states(title: str, description: str, ask: Ask, mappings: Sequence[tuple[str, str, str]]) -> statetimeline.Panel:
    """Return one band per result; ``mappings`` are (from value, text, colour)."""
    options = {
        value: models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, text, color) in enumerate(mappings)
    }
    return (
        _titled(statetimeline.Panel(), title, description)
        .mappings([models.ValueMap(options=options)])
        .min(0)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.CONTINUOUS_BL_YL_RD))
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
        .with_target(_query(ask, "A"))
    )


def table(title: str, description: str, ask: Ask, columns: Sequence[str]) -> tables.Panel:
    """Return the labels of the newest samples as a table with these columns, in this order."""
    return (
        _titled(tables.Panel(), title, description)
        .show_header(True)  # noqa: FBT003 (the SDK's)
        .with_transformation(
            models.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": list(columns)}})
        )
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize", options={"indexByName": {name: index for index, name in enumerate(columns)}}
            )
        )
        .with_target(_query(ask, "A", PromQueryFormat.TABLE))
    )


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(color=color, value=value) for color, value in steps])
    )


def _query(ask: Ask, reference: str, form: PromQueryFormat = PromQueryFormat.TIME_SERIES) -> prometheus.Dataquery:
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
    return query.instant() if ask.instant else query.range()
