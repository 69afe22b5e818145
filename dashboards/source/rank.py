"""Rank: one rank, or a few side by side: windows, waits, causes, channel and steps."""

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
        "What a rank's windows, waits and broadcasts do over time. Choose host, series and rank above.",
        Row(
            "At a glance",
            4,
            (5, 5, 5, 9),
            panels.number(
                "Stall ratio",
                "Share of step time in which the rank stood still for its weights; the highest of those chosen. Good: "
                "below 5 %. Above 30 % sharing costs more time than it is worth.",
                Ask(queries.WORST_STALL_RATIO),
                unit="percentunit",
                steps=panels.STALL_STEPS,
            ),
            panels.number(
                "Prefetch efficiency",
                "Share of the transfer time that was hidden, over the last 64 steps; the lowest of those chosen. Read "
                "it beside the stall ratio.",
                Ask(queries.WORST_EFFICIENCY),
                unit="percentunit",
            ),
            panels.number(
                "On-time rate",
                "Share of the waits that found their weight there, to 20 microseconds.",
                Ask(queries.ON_TIME_RATE),
                unit="percentunit",
            ),
            panels.number(
                "Prefetch step",
                "Layers ahead at which broadcasts start: as configured, and the fewest of the last step. Good: the "
                "same. Otherwise the forward reaches layers in another order than the series knows.",
                Ask(queries.PREFETCH_STEP, "{{series}} {{kind}}"),
            ),
        ),
        Row(
            "Windows",
            9,
            (12, 12),
            panels.states(
                "Windows in each state",
                "How many windows are in flight (their broadcast runs), ready (waiting to be used), in use, or free. "
                "Good: ready is seldom 0, so that weights wait for compute. Always in flight: compute waits for "
                "weights. Sampled at each scrape.",
                Ask(queries.OCCUPANCY, "{{instance}} rank {{rank}} {{state}}"),
                (("0", "0", panels.GREY),),
            ),
            panels.curves(
                "Occupancy by state",
                "All chosen ranks' windows by state. Good: a broad band of ready.",
                Ask(queries.OCCUPANCY_BY_STATE, "{{state}}"),
                unit="none",
                stacked=True,
            ),
        ),
        Row(
            "Waits",
            10,
            (12, 12),
            panels.heat(
                "Stall per wait",
                "How long waits were held for their weight. Good: all in the lowest rows, up to 20 microseconds. The "
                "dots are the slowest waits; each opens the trace of its step.",
                Ask(queries.STALL_HEAT, "{{le}}", exemplars=True),
                scheme="Reds",
            ),
            panels.heat(
                "Slack per wait",
                "How early weights were there. Good: well above 0, and not above one step: then a smaller prefetch "
                "step would do.",
                Ask(queries.SLACK_HEAT, "{{le}}"),
                scheme="Greens",
            ),
        ),
        Row(
            "Why",
            9,
            (12, 12),
            panels.curves(
                "Stall by cause",
                "Share of the step time, by proximate cause. Transfer: compute per layer is shorter than a broadcast. "
                "Backlog: broadcasts queue. Skew: a peer issued late. Entry skew: a peer came late into the step. "
                "Unattributed: the peers' records are on another host.",
                Ask(queries.CAUSE_RATIO, "{{cause}}"),
                unit="percentunit",
                stacked=True,
            ),
            panels.curves(
                "Skew by rank",
                "Share of the step time that a rank waits because a peer issued later. Good: near 0. The rank that "
                "waits least is the one that the others wait for.",
                Ask(queries.SKEW_RATIO, queries.RANK_LEGEND),
                unit="percentunit",
                links=(rank_traces_link(),),
            ),
        ),
        Row(
            "Channel",
            9,
            (8,) * 3,
            panels.curves(
                "Broadcast bandwidth",
                "Bytes of all broadcasts that a rank took part in, per second. It is steps per second times the "
                "series' bytes: near what the link can do, the channel is full.",
                Ask(queries.BANDWIDTH, queries.RANK_LEGEND),
                unit="Bps",
            ),
            panels.curves(
                "Broadcast duration",
                "Issued to ready, queue included: median and 99th percentile. Good for receivers: below the compute "
                "of as many layers as the prefetch step.",
                Ask(queries.quantile(0.5, "swtrace_broadcast_duration_seconds", "role"), "{{role}} median"),
                Ask(queries.quantile(0.99, "swtrace_broadcast_duration_seconds", "role"), "{{role}} 99 %"),
                unit="s",
            ),
            panels.heat(
                "Receivers' broadcasts",
                "Issued to ready, queue included. Two bands: some broadcasts queue behind others.",
                Ask(queries.BROADCAST_HEAT, "{{le}}"),
                scheme="Blues",
            ),
        ),
        Row(
            "Steps",
            9,
            (6,) * 4,
            panels.curves(
                "Steps per second",
                "Finished forward passes. Ranks of one group run the same number of them.",
                Ask(queries.STEPS, queries.RANK_LEGEND),
                unit="ops",
            ),
            panels.curves(
                "Untimed steps",
                "Per second, by reason: a device's steps without instants. They are counted, and in no stall, cause "
                "or duration. Good: none, or sampled ones that were asked for.",
                Ask(queries.UNTIMED_STEPS, "{{reason}}"),
                unit="ops",
            ),
            panels.curves(
                "Stall of the last step",
                "Summed over its layers, as it was at each scrape.",
                Ask(queries.LAST_STALL, queries.RANK_LEGEND),
                unit="s",
                links=(rank_traces_link(),),
            ),
            panels.curves(
                "Step duration",
                "Forward begin to forward end, stalls included, by phase: median and 95th percentile.",
                Ask(queries.quantile(0.5, "swtrace_step_duration_seconds", "phase"), "{{phase}} median"),
                Ask(queries.quantile(0.95, "swtrace_step_duration_seconds", "phase"), "{{phase}} 95 %"),
                unit="s",
            ),
        ),
    )
