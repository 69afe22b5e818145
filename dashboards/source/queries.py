"""The panels' queries in PromQL, as plain text without Grafana.

(instance, rank) identifies a rank, (instance, rank, series) a series on it. If two runs are alive on one host, the
younger one's samples also carry ``run_id``, so sums keep it.
"""

from __future__ import annotations

SERIES_SCOPE = 'job=~"$job", instance=~"$host", series=~"$series", rank=~"$rank"'
RANK_SCOPE = 'job=~"$job", instance=~"$host", rank=~"$rank"'
HOST_SCOPE = 'job=~"$job", instance=~"$host"'

BY_SERIES_RANK = "instance, rank, run_id, series"
BY_RANK = "instance, rank, run_id"

RANK_LEGEND = "{{instance}} rank {{rank}} {{series}}"


def of_series(metric: str, *matchers: str) -> str:
    """Return a selector of a metric with a series label."""
    return f"{metric}{{{', '.join((SERIES_SCOPE, *matchers))}}}"


def of_rank(metric: str, *matchers: str) -> str:
    """Return a selector of a metric with a rank label and no series label."""
    return f"{metric}{{{', '.join((RANK_SCOPE, *matchers))}}}"


def of_host(metric: str, *matchers: str) -> str:
    """Return a selector of a metric of the daemon itself, or of its scrape."""
    return f"{metric}{{{', '.join((HOST_SCOPE, *matchers))}}}"


def total(selector: str, by: str = "", *, per: str = "rate") -> str:
    """Return the sum of counters' rates, or with ``per`` increases, over Grafana's rate interval."""
    return f"sum{f' by ({by}) ' if by else ''}({per}({selector}[$__rate_interval]))"


def quantile(share: float, histogram: str, by: str, *matchers: str) -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share:g}, {total(of_series(f'{histogram}_bucket', *matchers), f'le, {by}')})"


def heat(histogram: str, *matchers: str) -> str:
    """Return a histogram's buckets, counted per column of a heat map."""
    return total(of_series(f"{histogram}_bucket", *matchers), "le", per="increase")


_STALL = of_series("swtrace_wait_stall_seconds_sum")
_STEP = of_series("swtrace_step_duration_seconds_sum")
_SKEW = of_series("swtrace_stall_cause_seconds_total", 'cause=~"entry_skew|skew"')
_WAITS = of_series("swtrace_waits_total", 'outcome=~"on_time|stalled"')
_ON_TIME = of_series("swtrace_waits_total", 'outcome="on_time"')
_CAUSE = of_series("swtrace_stall_cause_seconds_total")
_HELD = of_series("swtrace_series_bytes", 'kind=~"owned|windows|kept"')
_REPLICATED = of_series("swtrace_series_bytes", 'kind="replicated"')

STALL_RATIO = f"{total(_STALL, BY_SERIES_RANK)} / {total(_STEP, BY_SERIES_RANK)}"
"""Per rank: the share of step time in which it waited for weights."""
WORST_STALL_RATIO = f"max({STALL_RATIO})"
SKEW_RATIO = f"{total(_SKEW, BY_SERIES_RANK)} / {total(_STEP, BY_SERIES_RANK)}"
ON_TIME_RATE = f"{total(_ON_TIME)} / {total(_WAITS)}"
CAUSE_RATIO = f"{total(_CAUSE, 'cause')} / on () group_left () {total(_STEP)}"
"""By cause: the share of all ranks' step time. The sum over causes is their mean stall ratio."""
EFFICIENCY = of_series("swtrace_prefetch_efficiency_ratio")
WORST_EFFICIENCY = f"min({EFFICIENCY})"
STRAGGLER = of_series("swtrace_straggler_excess_ratio")
MEMORY_SAVED = f"sum({_REPLICATED}) - sum({_HELD})"
MEMORY_SAVED_SHARE = f"1 - sum({_HELD}) / sum({_REPLICATED})"
MEMORY_HELD = f"sum by (instance, kind) ({of_series('swtrace_series_bytes')})"
STEPS = total(of_series("swtrace_steps_total"), BY_SERIES_RANK)
UNTIMED_STEPS = total(of_series("swtrace_untimed_steps_total"), "reason")
LAST_STALL = of_series("swtrace_stall_seconds")
PREFETCH_STEP = f"min by (series, kind) ({of_series('swtrace_prefetch_step')})"
SERIES_INFO = of_series("swtrace_series_info")
RANK_INFO = of_rank("swtrace_rank_info")
REFUSED = of_rank("swtrace_series_refused_info")
UNTRACED = of_rank("swtrace_rank_untraced_info")

OCCUPANCY = f"sum by ({BY_SERIES_RANK}, state) ({of_series('swtrace_window_occupancy')})"
OCCUPANCY_BY_STATE = f"sum by (state) ({of_series('swtrace_window_occupancy')})"
STALL_HEAT = heat("swtrace_wait_stall_seconds")
SLACK_HEAT = heat("swtrace_prefetch_slack_seconds")
BROADCAST_HEAT = heat("swtrace_broadcast_duration_seconds", 'role="receiver"')
BANDWIDTH = total(of_series("swtrace_broadcast_bytes_total"), BY_SERIES_RANK)

RANKS_UP = f"sum({of_rank('swtrace_rank_up')})"
RANKS_SEEN = f"count({of_rank('swtrace_rank_up')})"
RANK_UP = of_rank("swtrace_rank_up")
RANK_DIED = of_rank("swtrace_rank_died")
DAEMON_READY = of_host("swtrace_daemon_ready")
POLL_AGE = f"time() - {of_host('swtrace_daemon_last_poll_timestamp_seconds')}"
POLL_ERRORS = total(of_host("swtrace_daemon_poll_errors_total"), "instance")
RING_PROBLEMS = of_host("swtrace_ring_problems")
RING_LAG = of_rank("swtrace_ring_lag_seconds")
DAEMONS_UP = f"sum({of_host('up')})"
RECORDS = total(of_rank("swtrace_ring_records_total"), BY_RANK)
RECORDS_LOST = total(of_rank("swtrace_ring_lost_records_total"), f"{BY_RANK}, reason")
RECORDS_LOST_IN_RANGE = f"sum(increase({of_rank('swtrace_ring_lost_records_total')}[$__range]))"
RECORDS_PENDING = of_rank("swtrace_ring_pending_records")
RECORD_AGE = f"time() - {of_rank('swtrace_rank_last_record_timestamp_seconds')}"
SPANS_EXPORTED = total(of_host("swtrace_spans_exported_total"), "instance")
SPANS_DROPPED = total(of_host("swtrace_spans_dropped_total"), "instance, reason")
SPANS_DROPPED_IN_RANGE = f"sum(increase({of_host('swtrace_spans_dropped_total')}[$__range]))"
METRIC_EXPORTS = total(of_host("swtrace_metric_exports_total"), "instance, outcome")
ALERTS_FIRING = 'count(ALERTS{alertname=~"Swtrace.+", alertstate="firing", job=~"$job"}) or vector(0)'
SCRAPE_AGE = f"time() - timestamp({of_host('up')})"
SCRAPE_DURATION = of_host("scrape_duration_seconds")
SCRAPE_SAMPLES = of_host("scrape_samples_scraped")
BUILD = of_host("swtrace_build_info")
