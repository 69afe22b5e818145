"""Rank: windows, waits, causes, channel and steps of one rank, or of a few side by side."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.source import panels, queries
from dashboards.source.board import Row, board, rank_traces_link
from dashboards.source.panels import Ask


def rank() -> Dashboard:
    """Return the dashboard."""
    return board(
        "swtrace-rank",
        "swtrace / Rank",
        "Windows, waits and transfers of one rank over time, or of a few side by side. Select host and rank above.",
        Row(
            "At a glance",
            4,
            (5, 5, 5, 9),
            panels.number(
                "Stall ratio",
                "Share of step time in which the rank waited for weights, in the last two minutes; the highest of the "
                "selected ranks. Good: below 5 %. Above 30 %, sharing or offloading costs more time "
                "than it is worth.",
                Ask(queries.WORST_STALL_RATIO),
                unit="percentunit",
                steps=panels.STALL_STEPS,
            ),
            panels.number(
                "Prefetch efficiency",
                "Share of the transfer time that was hidden, over the last 64 steps; the lowest of the selected ranks. "
                "Read it together with the stall ratio.",
                Ask(queries.WORST_EFFICIENCY),
                unit="percentunit",
            ),
            panels.number(
                "On-time rate",
                "Share of receivers' waits that stalled for less than 20 microseconds, in the last two minutes. Good: "
                "near 100 %.",
                Ask(queries.ON_TIME_RATE),
                unit="percentunit",
            ),
            panels.number(
                "Prefetch step",
                "How many layers ahead transfers start: as configured, and the lowest of the last step. Good: both "
                "are equal. Otherwise the forward reaches layers in a different order than the series expects.",
                Ask(queries.PREFETCH_STEP, "{{series}} {{kind}}"),
            ),
        ),
        Row("Findings", 6, (16, 8), panels.findings(), panels.findings_over_time()),
        Row(
            "Windows",
            9,
            (12, 12),
            panels.states(
                "Windows in each state",
                "How many windows are in flight (their transfer runs), ready (waiting to be used), in use, or free. "
                "Good: ready is seldom 0, so weights wait for compute. If windows are always in flight, compute waits "
                "for weights. Sampled at each scrape.",
                Ask(queries.OCCUPANCY, "rank {{rank}} {{state}} {{host}} {{series}} {{instance}} {{run_id}}"),
                (("0", "0", panels.FAINT),),
                colors=panels.STATE_COLORS,
            ),
            panels.curves(
                "Occupancy by state",
                "Windows of all selected ranks, by state. Good: a broad band of ready.",
                Ask(queries.OCCUPANCY_BY_STATE, "{{state}}"),
                unit="none",
                colors=panels.STATE_COLORS,
                stacked=True,
            ),
        ),
        Row(
            "Waits",
            10,
            (12, 12),
            panels.heat(
                "Stall per wait",
                "How long waits were blocked because the weight had not arrived. Good: all in the lowest rows, up to "
                "20 microseconds. The dots are the slowest waits; each one links to the trace of its step.",
                Ask(queries.STALL_HEAT, "{{le}}", exemplars=True),
                scheme="Reds",
            ),
            panels.heat(
                "Slack per wait",
                "How early weights were ready. Good: well above 0, but less than one step. Above that, a smaller "
                "prefetch step is enough.",
                Ask(queries.SLACK_HEAT, "{{le}}"),
                scheme="Greens",
            ),
        ),
        Row(
            "Causes",
            9,
            (12, 12),
            panels.curves(
                "Stall by cause",
                "Share of step time, by proximate cause. Transfer: compute per layer is shorter than that. "
                "Backlog: transfers queue. Skew: another rank issued late. Entry skew: another rank entered the step "
                "late. Unattributed: the cause is unknown, for example because other ranks run on other hosts.",
                Ask(queries.CAUSE_RATIO, "{{cause}}"),
                unit="percentunit",
                colors=panels.CAUSE_COLORS,
                stacked=True,
            ),
            panels.curves(
                "Skew by rank",
                "Share of step time that a rank waits because another rank issued or entered later. Good: near 0. The "
                "others wait for the rank that waits least. Series whose ranks pull or offload have no skew.",
                Ask(queries.SKEW_RATIO, queries.SERIES_LEGEND),
                unit="percentunit",
                links=(rank_traces_link(),),
            ),
        ),
        Row(
            "Channel",
            9,
            (8,) * 3,
            panels.curves(
                "Bandwidth",
                "Bytes per second of all transfers that a rank took part in: broadcasts, or its own copies. Near the "
                "limit of the link, the channel is full.",
                Ask(queries.BANDWIDTH, queries.SERIES_LEGEND),
                unit="Bps",
            ),
            panels.curves(
                "Transfer duration",
                "From issued to ready, including the queue: median and 99th percentile. Good for receivers: shorter "
                "than the compute of as many layers as the prefetch step.",
                Ask(queries.quantile(0.5, "swtrace_transfer_duration_seconds", "role"), "{{role}} median"),
                Ask(queries.quantile(0.99, "swtrace_transfer_duration_seconds", "role"), "{{role}} 99 %"),
                unit="s",
            ),
            panels.heat(
                "Transfers to receivers",
                "From issued to ready, including the queue. Two bands mean that some transfers queue behind others.",
                Ask(queries.TRANSFER_HEAT, "{{le}}"),
                scheme="Blues",
            ),
            collapsed=True,
        ),
        Row(
            "Steps",
            9,
            (6,) * 4,
            panels.curves(
                "Steps per second",
                "Finished forward passes. Ranks of one group run the same number, unless they pull.",
                Ask(queries.STEPS, queries.SERIES_LEGEND),
                unit="ops",
            ),
            panels.curves(
                "Untimed steps of devices",
                "Steps per second without instants for a reason that only devices have. They are counted, but not "
                "included in any stall, cause or duration. Steps that SWTRACE_TIME_EVERY leaves out are not shown.",
                Ask(queries.UNTIMED_STEPS, "rank {{rank}} {{host}} {{reason}} {{instance}} {{run_id}}"),
                unit="ops",
                empty="none, as always without a device",
            ),
            panels.curves(
                "Stall of the last step",
                "Sum over the layers of the last step, sampled at each scrape.",
                Ask(queries.LAST_STALL, queries.SERIES_LEGEND),
                unit="s",
                links=(rank_traces_link(),),
            ),
            panels.curves(
                "Step duration",
                "From forward begin to forward end, including stalls, by phase: median and 95th percentile.",
                Ask(queries.quantile(0.5, "swtrace_step_duration_seconds", "phase"), "{{phase}} median"),
                Ask(queries.quantile(0.95, "swtrace_step_duration_seconds", "phase"), "{{phase}} 95 %"),
                unit="s",
            ),
            collapsed=True,
        ),
        one_rank=True,
    )
