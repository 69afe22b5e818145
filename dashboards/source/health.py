"""Health: can the other two dashboards be believed? Ranks, records, spans and scrapes."""

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
        "Whether what swtrace shows is complete: who lives, what was lost, how old it is.",
        Row(
            "At a glance",
            4,
            (4,) * 6,
            panels.number("Ranks up", "Ranks whose process lives.", Ask(queries.RANKS_UP)),
            panels.number(
                "Ranks seen",
                "Ranks that live, or ended within the last five minutes. Good: as many as are up.",
                Ask(queries.RANKS_SEEN),
            ),
            panels.number(
                "Daemons up",
                "Daemons that answer Prometheus. Good: one per host.",
                Ask(queries.DAEMONS_UP),
            ),
            panels.number(
                "Records lost",
                "In the chosen time. Good: 0. Otherwise the metrics miss them; the ranks were not held up.",
                Ask(queries.RECORDS_LOST_IN_RANGE),
                unit="short",
                steps=panels.NONE_STEPS,
            ),
            panels.number(
                "Spans dropped",
                "In the chosen time. Good: 0. Otherwise traces have holes; metrics are complete.",
                Ask(queries.SPANS_DROPPED_IN_RANGE),
                unit="short",
                steps=panels.NONE_STEPS,
            ),
            panels.number(
                "Alerts firing",
                "Of swtrace.alerts.yml. Good: 0. Always 0 where those rules are not loaded.",
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
                "Up while the rank's process holds the lock on its ring. Gone five minutes after it went down.",
                Ask(queries.RANK_UP, RANK_LEGEND),
                (("0", "down", panels.RED), ("1", "up", panels.GREEN)),
            ),
            panels.states(
                "Ranks that died",
                "Gone without having closed their ring, while others of their run went on. Good: none.",
                Ask(queries.RANK_DIED, RANK_LEGEND),
                (("0", "no", panels.GREEN), ("1", "died", panels.RED)),
            ),
            panels.curves(
                "Age of the last record",
                "Time since a rank recorded anything. It grows while a server is idle; if it grows on a busy one, the "
                "rank hangs.",
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
                "Where one cannot, its /healthz says why, and it serves no old figures.",
                Ask(queries.DAEMON_READY, "{{instance}}"),
                (("0", "no", panels.RED), ("1", "yes", panels.GREEN)),
            ),
            panels.curves(
                "Age of the last reading",
                "Time since the daemon last read its rings. Good: next to nothing.",
                Ask(queries.POLL_AGE, "{{instance}}"),
                unit="s",
            ),
            panels.curves(
                "Rings that cannot be read",
                "Files of ranks that are missing everywhere, and failed readings of all rings per second. Good: 0.",
                Ask(queries.RING_PROBLEMS, "{{instance}} rings"),
                Ask(queries.POLL_ERRORS, "{{instance}} failed readings"),
                unit="short",
            ),
            panels.curves(
                "Behind",
                "How much later a rank wrote its newest record than the last one that is in the figures. Good: 0.",
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
                "Per second: one per layer and step, and one per step.",
                Ask(queries.RECORDS, RANK_LEGEND),
                unit="ops",
            ),
            panels.curves(
                "Records lost",
                "Per second. Good: 0. Lapped: the daemon came too late, give it CPU or the ring more room "
                "(SWTRACE_RING_RECORDS). Damaged: something else writes there.",
                Ask(queries.RECORDS_LOST, "{{instance}} rank {{rank}} {{reason}}"),
                unit="ops",
            ),
            panels.curves(
                "Records pending",
                "Written and not read at the scrape. Good: near 0. It grows before records are lost.",
                Ask(queries.RECORDS_PENDING, RANK_LEGEND),
                unit="short",
            ),
        ),
        Row(
            "Spans",
            8,
            (12, 12),
            panels.curves(
                "Spans exported",
                "Per second, taken by a collector. 0 where no collector is configured.",
                Ask(queries.SPANS_EXPORTED, "{{instance}}"),
                unit="ops",
            ),
            panels.curves(
                "Spans dropped",
                "Per second. Good: 0. Queue full: export fewer steps (SWTRACE_TRACE_SAMPLE). Export failed: the "
                "collector does not answer.",
                Ask(queries.SPANS_DROPPED, "{{instance}} {{reason}}"),
                unit="ops",
            ),
        ),
        Row(
            "Scrapes",
            8,
            (8,) * 3,
            panels.curves(
                "Scrape age",
                "Time since Prometheus last asked each daemon. Good: below the scrape interval.",
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
                "About 135 per rank and series, and 21 more for each further phase of steps.",
                Ask(queries.SCRAPE_SAMPLES, "{{instance}}"),
                unit="short",
            ),
        ),
        Row(
            "What runs",
            7,
            (8,) * 3,
            panels.table(
                "Daemons",
                "Good: one version everywhere.",
                Ask(queries.BUILD, instant=True),
                ("instance", "version", "python_version"),
            ),
            panels.table(
                "Asked for and not shared",
                "Good: empty. Each line is memory that is not saved, and the reason.",
                Ask(queries.REFUSED, instant=True),
                ("instance", "rank", "series", "reason"),
            ),
            panels.table(
                "Shared and not recorded",
                "Good: empty. Each line is a rank whose stalls nobody sees, and the reason.",
                Ask(queries.UNTRACED, instant=True),
                ("instance", "rank", "series", "reason"),
            ),
        ),
    )
