"""Fleet: whether sharing is worth it, where it is not, and which ranks are worst. The dashboard to open first."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.source import panels, queries
from dashboards.source.board import Row, board, rank_link, rank_traces_link
from dashboards.source.panels import Ask


def fleet() -> Dashboard:
    """Return the dashboard."""
    return board(
        "swtrace-fleet",
        "swtrace / Fleet",
        "Every series of shared or offloaded weights: whether prefetch hides, what it saves, which ranks are worst.",
        Row(
            "At a glance",
            4,
            (3,) * 8,
            *panels.daemons(),
            panels.number(
                "Ranks up",
                "Ranks whose process is alive, as of the last scrape. The Health dashboard shows a rank that ended for "
                "five more minutes.",
                Ask(queries.RANKS_UP),
            ),
            panels.alerts_firing(),
            panels.number(
                "Stall ratio, worst rank",
                "Share of step time in which the rank waited for weights, in the last two minutes. Good: below 5 %, "
                "where transfers are hidden. Above 30 %, sharing or offloading costs more time than it is "
                "worth.",
                Ask(queries.WORST_STALL_RATIO),
                unit="percentunit",
                steps=panels.STALL_STEPS,
            ),
            panels.number(
                "On-time rate",
                "Share of receivers' waits that stalled for less than 20 microseconds, in the last two minutes. Good: "
                "near 100 %. Short late waits may not matter; the stall ratio decides.",
                Ask(queries.ON_TIME_RATE),
                unit="percentunit",
            ),
            panels.number(
                "Efficiency, worst rank",
                "Prefetch efficiency: share of the transfer time that was hidden, over the last 64 steps. Good: near "
                "100 %. A low value may not matter: read it together with the stall ratio.",
                Ask(queries.WORST_EFFICIENCY),
                unit="percentunit",
            ),
            panels.number(
                "Memory saved",
                "Size of full copies on every rank, minus what the ranks hold: layers they store, the windows, and "
                "layers that the program keeps alive.",
                Ask(queries.MEMORY_SAVED),
                unit="bytes",
            ),
        ),
        Row(
            "Alerts and daemons",
            7,
            (16, 8),
            panels.table(
                "Alerts",
                "Alerts of swtrace.alerts.yml that fire or are about to, the most severe first. Good: none. It is also "
                "empty if the alerts are not loaded; the number above then says so.",
                Ask(queries.ALERTS_BY_LEVEL),
                ("alertname", "rank", "host", "series", "instance", "run_id", "reason"),
                value=panels.Value("Level", mappings=panels.ALERT_LEVELS),
            ),
            panels.daemon_table(),
        ),
        Row("Findings", 7, (16, 8), panels.findings(), panels.findings_over_time()),
        Row(
            "Worst ranks",
            9,
            (12, 6, 6),
            panels.curves(
                "Stall ratio by rank",
                "Good: all curves below the first line (5 %). If the others stall on skew and one rank is far below "
                "them, they wait for that rank.",
                Ask(queries.STALL_RATIO, queries.SERIES_LEGEND),
                unit="percentunit",
                steps=panels.STALL_STEPS,
                links=(rank_link(), rank_traces_link()),
            ),
            panels.bars(
                "Highest stall ratio",
                "The ten ranks that stalled most in the last two minutes, worst first. A rank that stalls is the "
                "victim; its cause is in Stall by cause.",
                Ask(queries.HIGHEST_STALL_RATIOS, queries.SERIES_LEGEND),
                unit="percentunit",
                steps=panels.STALL_STEPS,
                links=(rank_link(), rank_traces_link()),
            ),
            panels.bars(
                "Straggler",
                "Excess compute on the critical path, as a share of step time, of the rank that the others wait for: "
                "the mean of the last five minutes, as in the alert. Good: 0. A rank is named only if it stands "
                "clearly above all others, and only by a daemon that reads all ranks of its group.",
                Ask(queries.STRAGGLERS, queries.SERIES_LEGEND),
                unit="percentunit",
                steps=panels.STRAGGLER_STEPS,
                links=(rank_link(),),
            ),
        ),
        Row(
            "Causes and efficiency",
            9,
            (12, 12),
            panels.curves(
                "Stall by cause",
                "Share of all ranks' step time, by proximate cause. Transfer: a layer's compute is shorter than its "
                "transfer; try a larger prefetch step. Backlog: transfers queue because the channel is full. Skew: "
                "another rank issued late. Entry skew: another rank entered the step late. Unattributed: the cause is "
                "unknown, for example because the daemon does not read the other ranks' host.",
                Ask(queries.CAUSE_RATIO, "{{cause}}"),
                unit="percentunit",
                colors=panels.CAUSE_COLORS,
                stacked=True,
            ),
            panels.curves(
                "Prefetch efficiency by rank",
                "Share of the transfer time that was hidden, over the last 64 steps. Good: near 100 %. If it is low "
                "and the stall ratio is below 5 %, there is nothing to do.",
                Ask(queries.EFFICIENCY, queries.SERIES_LEGEND),
                unit="percentunit",
                links=(rank_link(),),
            ),
        ),
        Row(
            "Every rank",
            10,
            (24,),
            panels.table(
                "Ranks and series",
                "Every series on every rank: where it runs, and how its layers move. Ranks that are down come "
                "first, then those with the highest stall ratio of the last two minutes.",
                Ask(queries.RANKS_BY_STALL_RATIO),
                (
                    *("rank", "host_name", "series", "instance", "run", "model", "transport", "windows", "num_layers"),
                    *("stack_layers", "group_size", "clock", "swtrace_version"),
                ),
                value=panels.Value(
                    "Stall ratio",
                    unit="percentunit",
                    steps=panels.STALL_STEPS,
                    mappings=(
                        (str(queries.IDLE), "idle", panels.GREY),
                        (str(queries.DOWN), "down", panels.RED),
                    ),
                ),
            ),
            collapsed=True,
        ),
        Row(
            "Durations",
            9,
            (12, 12),
            panels.curves(
                "One wait's stall, 99th percentile",
                "Good: below the line at 20 microseconds, where a wait is on time. The dots are the slowest waits; "
                "each one links to the trace of its step.",
                Ask(
                    queries.quantile(0.99, "swtrace_wait_stall_seconds", queries.BY_SERIES_RANK),
                    queries.SERIES_LEGEND,
                    exemplars=True,
                ),
                unit="s",
                steps=panels.ON_TIME_STEPS,
                logarithmic=True,
                links=(rank_link(), rank_traces_link()),
            ),
            panels.curves(
                "Step duration by phase",
                "From forward begin to forward end, including stalls: median and 95th percentile.",
                Ask(queries.quantile(0.5, "swtrace_step_duration_seconds", "phase"), "{{phase}} median"),
                Ask(queries.quantile(0.95, "swtrace_step_duration_seconds", "phase"), "{{phase}} 95 %"),
                unit="s",
            ),
            collapsed=True,
        ),
        Row(
            "Plan",
            9,
            (12, 12),
            panels.planned(
                "Step time and plan",
                "Mean time of a step on the rank with the longest: predicted by the plan of the run, with the "
                "ends of its range, and measured over the last 64 timed steps. Good: measured is not above "
                "high. Empty without SWTRACE_PLAN, or if the plan is for other settings.",
                queries.PLANNED_STEP,
                unit="s",
            ),
            panels.planned(
                "Stall ratio and plan",
                "Stall ratio of the most stalled rank: predicted by the plan, with the ends of its range, and measured "
                "over the last 64 timed steps. Good: measured is not above high.",
                queries.PLANNED_STALL_RATIO,
                unit="percentunit",
            ),
            collapsed=True,
        ),
        Row(
            "Memory",
            8,
            (6, 18),
            panels.number(
                "Memory saved, share",
                "Memory saved as a share of full copies. With n ranks and few windows it approaches 1 - 1/n.",
                Ask(queries.MEMORY_SAVED_SHARE),
                unit="percentunit",
            ),
            panels.curves(
                "Memory by host",
                "The ranks of a host hold owned, windows and kept. Replicated is the size of full copies of all "
                "layers.",
                Ask(queries.MEMORY_HELD, "{{kind}} {{host}} {{instance}}"),
                unit="bytes",
            ),
            collapsed=True,
        ),
    )
