"""Health: whether the other two dashboards can be trusted: ranks, records, spans and scrapes."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.source import panels, queries
from dashboards.source.board import Row, board, rank_link
from dashboards.source.panels import Ask

RANK_LEGEND = "{{instance}} rank {{rank}}"


def health() -> Dashboard:
    """Return the dashboard."""
    return board(
        "swtrace-health",
        "swtrace / Health",
        "Whether swtrace's data are complete: which ranks are alive, what was lost, and how old the data are.",
        Row(
            "At a glance",
            4,
            (4,) * 6,
            panels.number("Ranks up", "Ranks whose process is alive.", Ask(queries.RANKS_UP)),
            panels.number(
                "Ranks seen",
                "Ranks that are alive, or ended within the last five minutes. Good: equal to ranks up.",
                Ask(queries.RANKS_SEEN),
            ),
            panels.number(
                "Daemons up",
                "Daemons that answer Prometheus. Good: one per host.",
                Ask(queries.DAEMONS_UP),
            ),
            panels.number(
                "Records lost",
                "In the selected time range. Good: 0. The metrics lack lost records; the ranks are not affected.",
                Ask(queries.RECORDS_LOST_IN_RANGE),
                unit="short",
                steps=panels.NONE_STEPS,
            ),
            panels.number(
                "Spans dropped",
                "In the selected time range. Good: 0. Traces lack dropped spans; metrics are complete.",
                Ask(queries.SPANS_DROPPED_IN_RANGE),
                unit="short",
                steps=panels.NONE_STEPS,
            ),
            panels.number(
                "Alerts firing",
                "Alerts of swtrace.alerts.yml. Good: 0. Always 0 if those rules are not loaded.",
                Ask(queries.ALERTS_FIRING),
                steps=panels.NONE_STEPS,
            ),
        ),
        Row(
            "Ranks",
            9,
            (8,) * 3,
            panels.states(
                "Ranks",
                "Up while the rank's process holds the lock on its ring. A rank disappears five minutes after it went "
                "down.",
                Ask(queries.RANK_UP, RANK_LEGEND),
                (("0", "down", panels.RED), ("1", "up", panels.GREEN)),
            ),
            panels.states(
                "Ranks that died",
                "Ranks that ended without closing their ring while others of their run went on. Good: none.",
                Ask(queries.RANK_DIED, RANK_LEGEND),
                (("0", "no", panels.GREEN), ("1", "died", panels.RED)),
            ),
            panels.curves(
                "Age of the last record",
                "Time since a rank wrote its last record. It grows while a server is idle. If it grows on a busy "
                "server, the rank hangs.",
                Ask(queries.RECORD_AGE, RANK_LEGEND),
                unit="s",
                links=(rank_link(),),
            ),
        ),
        Row(
            "Reading",
            8,
            (6,) * 4,
            panels.states(
                "Daemons that can read",
                "A daemon that cannot read its rings says why at /healthz, and serves no old figures. Good: yes.",
                Ask(queries.DAEMON_READY, "{{instance}}"),
                (("0", "no", panels.RED), ("1", "yes", panels.GREEN)),
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
                Ask(queries.RING_PROBLEMS, "{{instance}} rings"),
                Ask(queries.POLL_ERRORS, "{{instance}} failed readings"),
                unit="short",
            ),
            panels.curves(
                "Reading lag",
                "Time between the last record in the figures and the newest one that the rank wrote. Good: 0.",
                Ask(queries.RING_LAG, RANK_LEGEND),
                unit="s",
            ),
        ),
        Row(
            "Records",
            8,
            (8,) * 3,
            panels.curves(
                "Records written",
                "Records per second: one per layer and step, and one per step.",
                Ask(queries.RECORDS, RANK_LEGEND),
                unit="ops",
            ),
            panels.curves(
                "Records lost",
                "Records per second. Good: 0. Lapped: overwritten before the daemon read them; give the daemon more "
                "CPU or the ring more room (SWTRACE_RING_RECORDS). Damaged: something else writes to the ring.",
                Ask(queries.RECORDS_LOST, "{{instance}} rank {{rank}} {{reason}}"),
                unit="ops",
            ),
            panels.curves(
                "Records pending",
                "Records written but not yet read at the scrape. Good: near 0. The number grows before records are "
                "lost.",
                Ask(queries.RECORDS_PENDING, RANK_LEGEND),
                unit="short",
            ),
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
                Ask(queries.SPANS_DROPPED, "{{instance}} {{reason}}"),
                unit="ops",
            ),
            panels.curves(
                "Metrics pushed",
                "Exports of all metrics over OTLP, per second. Good: none failed. 0 if metrics are not pushed.",
                Ask(queries.METRIC_EXPORTS, "{{instance}} {{outcome}}"),
                unit="ops",
            ),
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
        ),
        Row(
            "Pods, nodes and jobs",
            7,
            (24,),
            panels.table(
                "Ranks",
                "What each rank is part of, and where it runs. Pods, nodes and jobs come from the rank's environment.",
                Ask(queries.RANK_INFO, instant=True),
                (
                    *("instance", "rank", "run_id", "model", "host", "pid"),
                    *("k8s_namespace_name", "k8s_pod_name", "k8s_node_name", "k8s_job_name"),
                    *("slurm_job_id", "slurm_job_name"),
                ),
            ),
        ),
        Row(
            "Versions and gaps",
            7,
            (8,) * 3,
            panels.table(
                "Daemons",
                "Version of each daemon. Good: the same everywhere.",
                Ask(queries.BUILD, instant=True),
                ("instance", "version", "python_version"),
            ),
            panels.table(
                "Requested but not shared",
                "Good: empty. Each row is a series that saves no memory on a rank, with the reason.",
                Ask(queries.REFUSED, instant=True),
                ("instance", "rank", "series", "reason"),
            ),
            panels.table(
                "Shared but not recorded",
                "Good: empty. Each row is a rank whose stalls are not recorded, with the reason.",
                Ask(queries.UNTRACED, instant=True),
                ("instance", "rank", "series", "reason"),
            ),
        ),
    )
