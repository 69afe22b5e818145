"""A daemon's metrics as a scraper reads them."""

from __future__ import annotations

import httpx
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def parse_openmetrics(text: str) -> list[Metric]:
    """Return the metric families of an OpenMetrics exposition."""
    return list(read_openmetrics(text))  # type: ignore[no-untyped-call]


NAMES = {
    "swtrace_rank_died": ("gauge", {"rank"}),
    "swtrace_ring_lag_seconds": ("gauge", {"rank"}),
    "swtrace_ring_problems": ("gauge", set()),
    "swtrace_watched_up": ("gauge", {"source"}),
    "swtrace_watched_lag_seconds": ("gauge", {"source"}),
    "swtrace_watched_lost_records": ("gauge", {"source"}),
    "swtrace_daemon_ready": ("gauge", set()),
    "swtrace_daemon_last_poll_timestamp_seconds": ("gauge", set()),
    "swtrace_daemon_start_timestamp_seconds": ("gauge", set()),
    "swtrace_daemon_poll_errors_total": ("counter", set()),
    "swtrace_window_occupancy": ("gauge", {"rank", "series", "state"}),
    "swtrace_stall_seconds": ("gauge", {"rank", "series"}),
    "swtrace_wait_stall_seconds": ("histogram", {"rank", "series"}),
    "swtrace_prefetch_slack_seconds": ("histogram", {"rank", "series"}),
    "swtrace_transfer_duration_seconds": ("histogram", {"rank", "series", "kind", "role"}),
    "swtrace_transfer_bytes_total": ("counter", {"rank", "series", "kind"}),
    "swtrace_stall_cause_seconds_total": ("counter", {"rank", "series", "cause"}),
    "swtrace_waits_total": ("counter", {"rank", "series", "outcome"}),
    "swtrace_prefetch_efficiency_ratio": ("gauge", {"rank", "series"}),
    "swtrace_straggler_excess_ratio": ("gauge", {"rank", "series"}),
    "swtrace_clock_offset_seconds": ("gauge", {"rank", "series"}),
    "swtrace_clock_offset_bound_seconds": ("gauge", {"rank", "series"}),
    "swtrace_clock_drift_ratio": ("gauge", {"rank", "series"}),
    "swtrace_clock_restarts_total": ("counter", {"rank", "series"}),
    "swtrace_steps_total": ("counter", {"rank", "series"}),
    "swtrace_untimed_steps_total": ("counter", {"rank", "series", "reason"}),
    "swtrace_step_duration_seconds": ("histogram", {"rank", "series", "phase"}),
    "swtrace_planned_step_seconds": ("gauge", {"rank", "series", "kind"}),
    "swtrace_planned_stall_ratio": ("gauge", {"rank", "series", "kind"}),
    "swtrace_prefetch_step": ("gauge", {"rank", "series", "kind"}),
    "swtrace_series_bytes": ("gauge", {"rank", "series", "kind"}),
    "swtrace_finding": ("gauge", {"rank", "series", "kind", "severity"}),
    "swtrace_rank_up": ("gauge", {"rank"}),
    "swtrace_rank_info": (
        "gauge",
        {
            "rank",
            "run",
            "host_name",
            "model",
            "pid",
            "k8s_pod_name",
            "k8s_namespace_name",
            "k8s_node_name",
            "k8s_job_name",
            "slurm_job_id",
            "slurm_job_name",
        },
    ),
    "swtrace_rank_untraced_info": ("gauge", {"rank", "series", "reason"}),
    "swtrace_rank_last_record_timestamp_seconds": ("gauge", {"rank"}),
    "swtrace_ring_records_total": ("counter", {"rank"}),
    "swtrace_ring_lost_records_total": ("counter", {"rank", "reason"}),
    "swtrace_ring_pending_records": ("gauge", {"rank"}),
    "swtrace_spans_exported_total": ("counter", set()),
    "swtrace_spans_dropped_total": ("counter", {"reason"}),
    "swtrace_metric_exports_total": ("counter", {"outcome"}),
    "swtrace_build_info": ("gauge", {"version", "python_version"}),
    "swtrace_series_info": (
        "gauge",
        {
            "rank",
            "series",
            "run",
            "host_name",
            "model",
            "swtrace_version",
            "kind",
            "transport",
            "windows",
            "clock",
            "start_layer",
            "num_layers",
            "stack_layers",
            "group_size",
            "rank_in_group",
        },
    ),
    "swtrace_series_refused_info": ("gauge", {"rank", "series", "reason"}),
}


def scrape(client: httpx.Client) -> dict[str, Metric]:
    """Return the metric families of a scrape in the text format, by their names in queries."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert_no_duplicates(response.text)
    families = {}
    for family in parse_text(response.text):
        families[family.name + ("_total" if family.type == "counter" else "")] = family
    return families


def assert_no_duplicates(text: str) -> None:
    """Fail if one exposition names a sample or a family twice."""
    samples = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(set(samples)) == len(samples)
    headers = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(set(headers)) == len(headers)


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """Return the only sample with at least these labels."""
    family = next(family for known, family in families.items() if name.startswith(known))
    (sample,) = (s for s in family.samples if s.name == name and labels.items() <= s.labels.items())
    return float(sample.value)
