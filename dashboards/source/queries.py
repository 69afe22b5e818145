"""The panels' queries in PromQL, as plain text without Grafana.

(instance, rank) identifies a rank, (instance, rank, series) a series on it. If two runs are alive on one host, the
younger one's samples also carry ``run_id``. Those of a daemon that watches others carry ``host``. Sums and joins keep
both. The labels ``run`` and ``host_name`` of information identify nothing.
"""

from __future__ import annotations

RANK_SCOPE = 'job=~"$job", instance=~"$daemon", host=~"$host|", rank=~"$rank"'
SERIES_SCOPE = f'{RANK_SCOPE}, series=~"$series"'
DAEMON_SCOPE = 'job=~"$job", instance=~"$daemon"'

BY_SERIES_RANK = "host, instance, rank, run_id, series"
BY_RANK = "host, instance, rank, run_id"

SERIES_LEGEND = "rank {{rank}} {{host}} {{series}} {{instance}} {{run_id}}"
"""Of one series on one rank. The rank comes first, because a long name after it may be cut."""
SOURCE_LEGEND = "{{source}} {{instance}}"
RANK_LEGEND = "rank {{rank}} {{host}} {{instance}} {{run_id}}"

FRESH_S = 90
"""A sample older than this is of a target that is gone, or of the time before Prometheus was restarted."""
NOW = "2m"
"""What a rate of "now" covers, whatever time range is selected: at least two scrapes, also at one per minute."""
_CURVE = "$__rate_interval"


def of_series(metric: str, *matchers: str) -> str:
    """Return a selector of a metric with a series label."""
    return f"{metric}{{{', '.join((SERIES_SCOPE, *matchers))}}}"


def of_rank(metric: str, *matchers: str) -> str:
    """Return a selector of a metric with a rank label and no series label."""
    return f"{metric}{{{', '.join((RANK_SCOPE, *matchers))}}}"


def of_daemon(metric: str, *matchers: str) -> str:
    """Return a selector of a metric of the daemon itself, or of its scrape."""
    return f"{metric}{{{', '.join((DAEMON_SCOPE, *matchers))}}}"


def now(selector: str) -> str:
    """Return only the samples that are current, instead of all that Prometheus still finds within five minutes."""
    return f"({selector} and time() - timestamp({selector}) < {FRESH_S})"


def targets(matchers: str = "") -> str:
    """Return every daemon of the time range, also one that never answered if its job's name says what it is."""
    named = ", ".join(filter(None, ('job=~".*swtrace.*"', matchers)))
    return f"last_over_time(up{{{named}}}[$__range]) or last_over_time(swtrace_build_info{{{matchers}}}[$__range])"


def total(selector: str, by: str = "", *, per: str = "rate", over: str = _CURVE) -> str:
    """Return the sum of counters' rates, or with ``per`` increases, over Grafana's rate interval or another time."""
    return f"sum{f' by ({by}) ' if by else ''}({per}({selector}[{over}]))"


def quantile(share: float, histogram: str, by: str, *matchers: str) -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share:g}, {total(of_series(f'{histogram}_bucket', *matchers), f'le, {by}')})"


def heat(histogram: str, *matchers: str) -> str:
    """Return a histogram's buckets, counted per column of a heat map."""
    return total(of_series(f"{histogram}_bucket", *matchers), "le", per="increase")


def stall_ratio(over: str = _CURVE, *matchers: str) -> str:
    """Return, per rank, the share of step time in which it waited for weights; nothing where no timed step ended."""
    stall = total(of_series("swtrace_wait_stall_seconds_sum", *matchers), BY_SERIES_RANK, over=over)
    return f"{stall} / {_step_time(BY_SERIES_RANK, *matchers, over=over)}"


def _step_time(by: str = "", *matchers: str, over: str = _CURVE) -> str:
    return f"({total(of_series('swtrace_step_duration_seconds_sum', *matchers), by, over=over)} > 0)"


DAEMON_UP = of_daemon("up")
UNKNOWN = -1


def or_unknown(selector: str) -> str:
    """Return states over time, and UNKNOWN once a daemon is down: a band's last state might be drawn on until now."""
    # Both sides without the metric's name, so that they are one band.
    return f"0 + {selector} or 0 * last_over_time({selector}[6m]) + {UNKNOWN} and on (instance) {DAEMON_UP} == 0"


_RANKS = now(of_rank("swtrace_rank_up"))
_LIVING = f"({_RANKS} == 1)"


def _living(expr: str) -> str:
    """Return only results of ranks that live now. Rates outlive a rank by their range, its gauges by five minutes."""
    return f"({expr} and on ({BY_RANK}) {_LIVING})"


def _of_living_series(rates: str) -> str:
    """Return only rates of series that their ranks have now. A younger run may use a rank's number for other series."""
    return _living(f"{rates} and on ({BY_SERIES_RANK}) {now(of_series('swtrace_wait_stall_seconds_sum'))}")


_SKEW = of_series("swtrace_stall_cause_seconds_total", 'cause=~"entry_skew|skew"')
_WAITS = of_series("swtrace_waits_total", 'outcome=~"on_time|stalled"')
_ON_TIME = of_series("swtrace_waits_total", 'outcome="on_time"')
_CAUSE = of_series("swtrace_stall_cause_seconds_total")
_HELD = _living(now(of_series("swtrace_series_bytes", 'kind=~"owned|windows|kept"')))
_REPLICATED = _living(now(of_series("swtrace_series_bytes", 'kind="replicated"')))

STALL_RATIO = stall_ratio()
STALL_RATIO_NOW = _of_living_series(stall_ratio(NOW))
WORST_STALL_RATIO = f"max({STALL_RATIO_NOW})"
HIGHEST_STALL_RATIOS = f"sort_desc(topk(10, {STALL_RATIO_NOW}))"
SKEW_RATIO = f"{total(_SKEW, BY_SERIES_RANK)} / {_step_time(BY_SERIES_RANK)}"
ON_TIME_RATE = (
    f"sum({_of_living_series(total(_ON_TIME, BY_SERIES_RANK, over=NOW))})"
    f" / (sum({_of_living_series(total(_WAITS, BY_SERIES_RANK, over=NOW))}) > 0)"
)
CAUSE_RATIO = f"{total(_CAUSE, 'cause')} / on () group_left () {_step_time()}"
"""By cause: the share of all ranks' step time. The sum over causes is their mean stall ratio."""
EFFICIENCY = of_series("swtrace_prefetch_efficiency_ratio")
WORST_EFFICIENCY = f"min({_living(now(EFFICIENCY))})"
_EXCESS = of_series("swtrace_straggler_excess_ratio")
STRAGGLERS = f"sort_desc(topk(10, {_living(f'avg_over_time({_EXCESS}[5m]) and {now(_EXCESS)}')}))"
"""Averaged as in the alert, because the gauge is 0 whenever a rank does not stand out clearly enough."""
MEMORY_SAVED = f"sum({_REPLICATED}) - sum({_HELD})"
MEMORY_SAVED_SHARE = f"1 - sum({_HELD}) / sum({_REPLICATED})"
MEMORY_HELD = f"sum by (host, instance, kind) ({of_series('swtrace_series_bytes')})"
STEPS = total(of_series("swtrace_steps_total"), BY_SERIES_RANK)
_UNTIMED = of_series("swtrace_untimed_steps_total", 'reason!="sampled"')
UNTIMED_STEPS = f"{total(_UNTIMED, f'{BY_RANK}, reason')} > 0"
"""By reasons of devices only: that SWTRACE_TIME_EVERY leaves out steps is as it should be."""
PLANNED_STEP = f"max by (series, kind) ({of_series('swtrace_planned_step_seconds')})"
PLANNED_STALL_RATIO = f"max by (series, kind) ({of_series('swtrace_planned_stall_ratio')})"
LAST_STALL = of_series("swtrace_stall_seconds")
PREFETCH_STEP = f"min by (series, kind) ({_living(now(of_series('swtrace_prefetch_step')))})"
_INFO = now(of_series("swtrace_series_info"))
IDLE, DOWN = -1, 2
"""Instead of a stall ratio in the table of all ranks: the rank ended no timed step lately, or it does not live. The
latter is more than any ratio, so such ranks come first."""
RANKS_BY_STALL_RATIO = (
    f"{_INFO} * on ({BY_SERIES_RANK}) group_left () {STALL_RATIO_NOW} or {_living(_INFO)} * {IDLE} or {_INFO} * {DOWN}"
)
"""The stall ratio, with all that is known about the series and where it runs."""
_FINDING = f'swtrace_finding{{{DAEMON_SCOPE}, host=~"$host|", rank=~"$rank|", series=~"$series|"}}'
"""Of ranks, of series as a whole, and of hosts."""
_EVERY_S = 15
FINDINGS = f"({_EVERY_S} * sum_over_time({_FINDING}[1h:{_EVERY_S}s]) or 0 * {_FINDING}) and {now(_FINDING)}"
"""For how many seconds of the last hour each was found; 0 if only just now."""
FINDINGS_SEEN = or_unknown(_FINDING)
RANK_INFO = now(of_rank("swtrace_rank_info"))
REFUSED = _living(now(of_rank("swtrace_series_refused_info")))
UNTRACED = now(of_rank("swtrace_rank_untraced_info"))

OCCUPANCY = f"sum by ({BY_SERIES_RANK}, state) ({of_series('swtrace_window_occupancy')})"
OCCUPANCY_BY_STATE = f"sum by (state) ({of_series('swtrace_window_occupancy')})"
STALL_HEAT = heat("swtrace_wait_stall_seconds")
SLACK_HEAT = heat("swtrace_prefetch_slack_seconds")
TRANSFER_HEAT = heat("swtrace_transfer_duration_seconds", 'role="receiver"')
BANDWIDTH = total(of_series("swtrace_transfer_bytes_total"), BY_SERIES_RANK)

RANKS_UP = f"sum({_RANKS})"
RANKS_DOWN = f"count({_RANKS} == 0) or 0 * sum({_RANKS})"
RANKS_DIED = f"sum({now(of_rank('swtrace_rank_died'))})"
RANK_UP = or_unknown(of_rank("swtrace_rank_up"))
RANK_DIED = or_unknown(of_rank("swtrace_rank_died"))
DAEMON_READY = or_unknown(of_daemon("swtrace_daemon_ready"))
POLL_AGE = f"time() - {of_daemon('swtrace_daemon_last_poll_timestamp_seconds')}"
POLL_ERRORS = total(of_daemon("swtrace_daemon_poll_errors_total"), "instance")
RING_PROBLEMS = of_daemon("swtrace_ring_problems")
WATCHED_UP = of_daemon("swtrace_watched_up")
WATCHED_LAG = of_daemon("swtrace_watched_lag_seconds")
WATCHED_LOST = of_daemon("swtrace_watched_lost_records")
CLOCK_OFFSET = of_series("swtrace_clock_offset_seconds")
CLOCK_BOUND = of_series("swtrace_clock_offset_bound_seconds")
CLOCK_DRIFT = of_series("swtrace_clock_drift_ratio")
CLOCK_RESTARTS = total(of_series("swtrace_clock_restarts_total"), BY_SERIES_RANK, per="increase")
RING_LAG = of_rank("swtrace_ring_lag_seconds")
_UP = now(DAEMON_UP)
_BUILD = now(of_daemon("swtrace_build_info"))  # also of daemons that push, which have no ``up``
DAEMONS_UP = f"count({_BUILD}) or vector(0)"
DAEMONS_DOWN = f"count({_UP} == 0) or 0 * count({_UP} or {_BUILD})"
DAEMONS = f"{_BUILD} or {_UP} == 0"
_LOST = of_rank("swtrace_ring_lost_records_total")
RECORDS = total(of_rank("swtrace_ring_records_total"), BY_RANK)
RECORDS_LOST = total(_LOST, f"{BY_RANK}, reason")
RECORDS_LOST_IN_RANGE = f"sum(increase({_LOST}[$__range]))"
RECORDS_PENDING = of_rank("swtrace_ring_pending_records")
RECORD_AGE = f"time() - {of_rank('swtrace_rank_last_record_timestamp_seconds')}"
SPANS_EXPORTED = total(of_daemon("swtrace_spans_exported_total"), "instance")
SPANS_DROPPED = total(of_daemon("swtrace_spans_dropped_total"), "instance, reason")
SPANS_DROPPED_IN_RANGE = f"sum(increase({of_daemon('swtrace_spans_dropped_total')}[$__range]))"
METRIC_EXPORTS = total(of_daemon("swtrace_metric_exports_total"), "instance, outcome")
_OWN_ALERTS = 'alertname=~"Swtrace.+", job=~"$job|"'  # the one about a missing target has no job
FIRING = f'ALERTS{{{_OWN_ALERTS}, alertstate="firing"}}'
ALERTS_FIRING = f"count({now(FIRING)}) or 0 * {now('swtrace:alerts:loaded')}"
"""Nothing if the alerts are not loaded: that no alert fires then says nothing."""
ALERT_LEVELS = (
    (4, "critical", 'alertstate="firing", severity="critical"'),
    (3, "warning", 'alertstate="firing", severity="warning"'),
    (2, "info", 'alertstate="firing", severity="info"'),
    (1, "pending", 'alertstate="pending"'),
)
ALERTS_BY_LEVEL = " or ".join(
    f"{level} * {now(f'ALERTS{{{_OWN_ALERTS}, {matchers}}}')}" for level, _, matchers in ALERT_LEVELS
)
SCRAPE_AGE = f"time() - timestamp({of_daemon('up')})"
SCRAPE_DURATION = of_daemon("scrape_duration_seconds")
SCRAPE_SAMPLES = of_daemon("scrape_samples_scraped")

EVENT_STEP = "15s"
"""Between the points at which Grafana evaluates annotations. An event is what was not so one step earlier."""
_INFO_SEEN = of_series("swtrace_series_info")
RUNS_STARTED = (
    f"group by (instance, run) ({_INFO_SEEN})"
    f" unless group by (instance, run) (last_over_time({_INFO_SEEN}[1h] offset {EVENT_STEP}))"
)
_DAEMON_START = of_daemon("swtrace_daemon_start_timestamp_seconds")
DAEMONS_RESTARTED = f"{_DAEMON_START} > last_over_time({_DAEMON_START}[1h] offset {EVENT_STEP})"
