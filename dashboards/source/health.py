"""Health: whether the other two dashboards can be trusted: ranks, records, spans and scrapes."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.source import panels, queries
from dashboards.source.board import Row, board, rank_link
from dashboards.source.panels import Ask


def health() -> Dashboard:
    """Return the dashboard."""
    return board(
        "swtrace-health",
        "swtrace / Health",
        "Whether swtrace's data are complete: which ranks are alive, what was lost, and how old the data are.",
        Row(
            "At a glance",
            4,
            (3,) * 8,
            *panels.daemons(),
            panels.number("Ranks up", "Ranks whose process is alive, as of the last scrape.", Ask(queries.RANKS_UP)),
            panels.number(
                "Ranks down",
                "Ranks that ended within the last five minutes, whether they were stopped or died. Good: 0 while a "
                "server runs.",
                Ask(queries.RANKS_DOWN),
            ),
            panels.number(
                "Ranks died",
                "Of the ranks that are down: those that ended without closing their ring while others of their run "
                "went on. Good: 0.",
                Ask(queries.RANKS_DIED),
                steps=panels.NONE_STEPS,
            ),
            panels.number(
                "Records lost in range",
                "In the selected time range. Good: 0. The metrics lack lost records; the ranks are not affected. "
                "Records that were overwritten before the daemon started do not count.",
                Ask(queries.RECORDS_LOST_IN_RANGE),
                unit="short",
                steps=panels.NONE_STEPS,
            ),
            panels.number(
                "Spans dropped in range",
                "In the selected time range. Good: 0. Traces lack dropped spans; metrics are complete.",
                Ask(queries.SPANS_DROPPED_IN_RANGE),
                unit="short",
                steps=panels.NONE_STEPS,
            ),
            panels.alerts_firing(),
        ),
        Row(
            "Ranks",
            9,
            (8,) * 3,
            panels.states(
                "Ranks",
                "Up while the rank's process holds the lock on its ring. A rank disappears five minutes after it went "
                "down. Unknown: its daemon does not answer.",
                Ask(queries.RANK_UP, queries.RANK_LEGEND),
                (("0", "down", panels.RED), ("1", "up", panels.GREEN), panels.UNKNOWN),
            ),
            panels.states(
                "Ranks that died",
                "Ranks that ended without closing their ring while others of their run went on. Good: none.",
                Ask(queries.RANK_DIED, queries.RANK_LEGEND),
                (("0", "no", panels.GREEN), ("1", "died", panels.RED), panels.UNKNOWN),
            ),
            panels.curves(
                "Age of the last record",
                "Time since a rank wrote its last record. It grows while a server is idle. If it grows on a busy "
                "server, the rank hangs.",
                Ask(queries.RECORD_AGE, queries.RANK_LEGEND),
                unit="s",
                links=(rank_link(),),
            ),
        ),
        Row(
            "Reading",
            8,
            (5, 5, 5, 5, 4),
            panels.states(
                "Daemons that answer",
                "Good: up all the time. While a daemon is down, the ranks of its host are missing from all panels.",
                Ask(queries.DAEMON_UP, "{{instance}}"),
                (("0", "down", panels.RED), ("1", "up", panels.GREEN)),
            ),
            panels.states(
                "Daemons that can read",
                "A daemon that cannot read its rings says why at /healthz, and serves no old figures. Good: yes.",
                Ask(queries.DAEMON_READY, "{{instance}}"),
                (("0", "no", panels.RED), ("1", "yes", panels.GREEN), panels.UNKNOWN),
            ),
            panels.curves(
                "Age of the last reading",
                "Time since the daemon last read its rings. Good: near 0.",
                Ask(queries.POLL_AGE, "{{instance}}"),
                unit="s",
            ),
            panels.curves(
                "Rings that cannot be read",
                "Rings whose ranks are missing from all figures, and failed readings of all rings per second. Good: 0.",
                Ask(queries.RING_PROBLEMS, "rings {{instance}}"),
                Ask(queries.POLL_ERRORS, "failed readings {{instance}}"),
                unit="short",
            ),
            panels.curves(
                "Reading lag",
                "Time between the last record in the figures and the newest one that the rank wrote. Good: 0.",
                Ask(queries.RING_LAG, queries.RANK_LEGEND),
                unit="s",
            ),
        ),
        Row(
            "Not shared, not recorded",
            7,
            (12, 12),
            panels.table(
                "Requested but not shared",
                "Good: none. Each row is a series that saves no memory on a rank, with the reason.",
                Ask(queries.REFUSED),
                ("rank", "host", "series", "reason", "instance", "run_id"),
            ),
            panels.table(
                "Shared but not recorded",
                "Good: none. Each row is a rank whose stalls are not recorded, with the reason.",
                Ask(queries.UNTRACED),
                ("rank", "host", "series", "reason", "instance", "run_id"),
            ),
        ),
        Row(
            "Records",
            8,
            (8,) * 3,
            panels.curves(
                "Records written",
                "Records per second: one per layer and step, and one per step.",
                Ask(queries.RECORDS, queries.RANK_LEGEND),
                unit="recps",
            ),
            panels.curves(
                "Records lost",
                "Records per second. Good: 0. Lapped: overwritten before the daemon read them; give the daemon more "
                "CPU or the ring more room (SWTRACE_RING_RECORDS). Damaged: something else writes to the ring.",
                Ask(queries.RECORDS_LOST, "rank {{rank}} {{host}} {{reason}} {{instance}} {{run_id}}"),
                unit="recps",
            ),
            panels.curves(
                "Records pending",
                "Records written but not yet read at the scrape. Good: near 0. The number grows before records are "
                "lost.",
                Ask(queries.RECORDS_PENDING, queries.RANK_LEGEND),
                unit="short",
            ),
            collapsed=True,
        ),
        Row(
            "Exports",
            8,
            (8,) * 3,
            panels.curves(
                "Spans exported",
                "Spans per second that a collector accepted. 0 if no collector is configured.",
                Ask(queries.SPANS_EXPORTED, "{{instance}}"),
                unit="ops",
            ),
            panels.curves(
                "Spans dropped",
                "Spans per second. Good: 0. Queue full: export fewer steps (SWTRACE_TRACE_SAMPLE). Export failed: the "
                "collector does not answer.",
                Ask(queries.SPANS_DROPPED, "{{reason}} {{instance}}"),
                unit="ops",
            ),
            panels.curves(
                "Metrics pushed",
                "Exports of all metrics over OTLP, per second. Good: none failed. 0 if metrics are not pushed.",
                Ask(queries.METRIC_EXPORTS, "{{outcome}} {{instance}}"),
                unit="ops",
            ),
            collapsed=True,
        ),
        Row(
            "Scrapes",
            8,
            (8,) * 3,
            panels.curves(
                "Scrape age",
                "Time since Prometheus last scraped each daemon. Good: below the scrape interval.",
                Ask(queries.SCRAPE_AGE, "{{instance}}"),
                unit="s",
            ),
            panels.curves(
                "Scrape duration",
                "How long a daemon took to answer. Good: well below the scrape interval.",
                Ask(queries.SCRAPE_DURATION, "{{instance}}"),
                unit="s",
            ),
            panels.curves(
                "Samples per scrape",
                "About 135 per rank and series, plus 21 for each further phase of steps.",
                Ask(queries.SCRAPE_SAMPLES, "{{instance}}"),
                unit="short",
            ),
            collapsed=True,
        ),
        Row(
            "Clocks of several hosts",
            8,
            (6,) * 4,
            panels.curves(
                "Clock bound",
                "If a daemon reads several hosts: by how much the clock of a rank's host may be off from that of the "
                "group's first rank. Skew below it has no known cause. Good: far below the stalls. Ranks with the "
                "first rank's clock have no curve, nor have those whose clock is unknown.",
                Ask(queries.CLOCK_BOUND, queries.SERIES_LEGEND),
                unit="s",
            ),
            panels.curves(
                "Clock offset",
                "Time added to the rank's instants to show them on the first rank's clock. Hosts that were started at "
                "different times have large offsets, which is fine. Good: no steps.",
                Ask(queries.CLOCK_OFFSET, queries.SERIES_LEGEND),
                unit="s",
            ),
            panels.curves(
                "Clock drift",
                "Seconds that the first rank's clock gains per second of the rank's clock. Good: below 0.0002, the "
                "limit of what can be aligned; 0.00001 to 0.0001 is usual.",
                Ask(queries.CLOCK_DRIFT, queries.SERIES_LEGEND),
                unit="short",
            ),
            panels.curves(
                "Clock restarts",
                "How often the rank's clock was set to another time, for example because its host was suspended. The "
                "steps around are not compared. Good: 0.",
                Ask(queries.CLOCK_RESTARTS, queries.SERIES_LEGEND),
                unit="short",
            ),
            collapsed=True,
        ),
        Row(
            "Watched daemons",
            8,
            (8,) * 3,
            panels.curves(
                "Watched daemon answers",
                "If a daemon watches others: 1 while one answers, 0 while it does not and none of its ranks is shown. "
                "Good: 1.",
                Ask(queries.WATCHED_UP, queries.SOURCE_LEGEND),
                unit="short",
            ),
            panels.curves(
                "Behind a watched daemon",
                "How much newer the newest record of its ranks is than the last one that it sent. Good: below the time "
                "between the steps that are read.",
                Ask(queries.WATCHED_LAG, queries.SOURCE_LEGEND),
                unit="s",
            ),
            panels.curves(
                "Records lost on the way",
                "Records of its present ranks that were overwritten, damaged or skipped since the connection was made. "
                "Good: no rise.",
                Ask(queries.WATCHED_LOST, queries.SOURCE_LEGEND),
                unit="short",
            ),
            collapsed=True,
        ),
        Row(
            "Hosts, pods, nodes and jobs",
            7,
            (24,),
            panels.table(
                "Where ranks run",
                "What each rank is part of, and where it runs. Pods, nodes and jobs come from the rank's environment.",
                Ask(queries.RANK_INFO),
                (
                    *("rank", "host_name", "instance", "run", "model", "pid"),
                    *("k8s_namespace_name", "k8s_pod_name", "k8s_node_name", "k8s_job_name"),
                    *("slurm_job_id", "slurm_job_name"),
                ),
            ),
            collapsed=True,
        ),
        Row(
            "Versions",
            7,
            (24,),
            panels.daemon_table(),
            collapsed=True,
        ),
    )
