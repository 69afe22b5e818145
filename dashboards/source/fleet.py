"""Fleet: is sharing worth it, where is it not, and who is worst. The first dashboard that anyone opens."""

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
        "Every shared-weight series at a glance: does the prefetch hide, what does it save, who is worst.",
        Row(
            "At a glance",
            4,
            (4,) * 6,
            panels.number(
                "Stall ratio, worst rank",
                "Share of step time in which the rank stood still for its weights. Good: below 5 %, the broadcasts "
                "are hidden. Above 30 % sharing costs more time than it is worth.",
                Ask(queries.WORST_STALL_RATIO),
                unit="percentunit",
                steps=panels.STALL_STEPS,
            ),
            panels.number(
                "On-time rate",
                "Share of receivers' waits that found their weight there, to 20 microseconds. Good: near 100 %. Late "
                "waits that are short may still not matter: the stall ratio decides.",
                Ask(queries.ON_TIME_RATE),
                unit="percentunit",
            ),
            panels.number(
                "Prefetch efficiency, worst rank",
                "Share of the transfer time that was hidden, over the last 64 steps. Good: near 100 %. It can be low "
                "and not matter: read it beside the stall ratio.",
                Ask(queries.WORST_EFFICIENCY),
                unit="percentunit",
            ),
            panels.number(
                "Memory saved",
                "What full copies on every rank would take, less what the ranks hold: their own layers, the "
                "windows, and layers that the program keeps by holding them.",
                Ask(queries.MEMORY_SAVED),
                unit="bytes",
            ),
            panels.number(
                "Memory saved, share",
                "The same per byte of full copies. With n ranks and few windows it comes near 1 - 1/n.",
                Ask(queries.MEMORY_SAVED_SHARE),
                unit="percentunit",
            ),
            panels.number(
                "Ranks up",
                "Ranks whose process lives. One that ended is still counted on the Health dashboard for five minutes.",
                Ask(queries.RANKS_UP),
            ),
        ),
        Row(
            "Who is worst",
            9,
            (12, 6, 6),
            panels.curves(
                "Stall ratio by rank",
                "Good: all curves below the first line (5 %). One rank far below the others, which stall on skew: "
                "they wait for that one.",
                Ask(queries.STALL_RATIO, queries.RANK_LEGEND),
                unit="percentunit",
                steps=panels.STALL_STEPS,
                links=(rank_link(), rank_traces_link()),
            ),
            panels.bars(
                "Highest stall ratio",
                "The ten ranks that stand still most. Whoever stalls is the victim; what of, says stall by cause.",
                Ask(f"topk(10, {queries.STALL_RATIO})", queries.RANK_LEGEND, instant=True),
                unit="percentunit",
                steps=panels.STALL_STEPS,
                links=(rank_link(), rank_traces_link()),
            ),
            panels.bars(
                "Straggler",
                "Excess compute on the critical path per step time, of the rank that holds the others up. Good: 0 "
                "everywhere. A rank is named only if it stands clearly above all others, from 5 % on; groups that "
                "span hosts have no value.",
                Ask(f"topk(10, {queries.STRAGGLER})", queries.RANK_LEGEND, instant=True),
                unit="percentunit",
                steps=panels.STRAGGLER_STEPS,
                links=(rank_link(),),
            ),
        ),
        Row(
            "Why",
            9,
            (12, 12),
            panels.curves(
                "Stall by cause",
                "Share of all ranks' step time, by proximate cause. Transfer: a layer's compute is shorter than its "
                "broadcast, try a larger prefetch step. Backlog: broadcasts queue, the channel is full. Skew: a peer "
                "issued late. Entry skew: a peer came late into the step. Unattributed: the peers' records are on "
                "another host.",
                Ask(queries.CAUSE_RATIO, "{{cause}}"),
                unit="percentunit",
                stacked=True,
            ),
            panels.curves(
                "Prefetch efficiency by rank",
                "Share of the transfer time that was hidden, over the last 64 steps. Good: near 100 %. Low beside a "
                "stall ratio below 5 %: nothing to do.",
                Ask(queries.EFFICIENCY, queries.RANK_LEGEND),
                unit="percentunit",
                links=(rank_link(),),
            ),
        ),
        Row(
            "How long",
            9,
            (12, 12),
            panels.curves(
                "One wait's stall, 99th percentile",
                "Good: below 20 microseconds. The dots are the slowest waits; each opens the trace of its step.",
                Ask(queries.quantile(0.99, "swtrace_wait_stall_seconds", "instance"), "{{instance}}", exemplars=True),
                unit="s",
            ),
            panels.curves(
                "Step duration by phase",
                "Forward begin to forward end, stalls included: median and 95th percentile.",
                Ask(queries.quantile(0.5, "swtrace_step_duration_seconds", "phase"), "{{phase}} median"),
                Ask(queries.quantile(0.95, "swtrace_step_duration_seconds", "phase"), "{{phase}} 95 %"),
                unit="s",
            ),
        ),
        Row(
            "What",
            9,
            (8, 16),
            panels.curves(
                "Memory by host",
                "Owned, windows and kept are what the ranks of a host hold, replicated what full copies of all layers "
                "would take.",
                Ask(queries.MEMORY_HELD, "{{instance}} {{kind}}"),
                unit="bytes",
            ),
            panels.table(
                "Series",
                "What is shared, where, and how.",
                Ask(queries.SERIES_INFO, instant=True),
                (
                    *("instance", "rank", "series", "model", "transport", "windows", "num_layers"),
                    *("group_size", "clock", "run_id", "swtrace_version"),
                ),
            ),
        ),
    )
