"""Panels ask for metrics that exist, and for all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dashboards.source.queries import (
    DOWN,
    FINDINGS,
    HIGHEST_STALL_RATIOS,
    IDLE,
    LAST_STALL,
    ON_TIME_RATE,
    RANKS_BY_STALL_RATIO,
)
from tests.support.deployment import run
from tests.support.grafana_json import marks, queries
from tests.support.scrapes import NAMES

PROMETHEUS_OWN = {"up", "ALERTS", "scrape_duration_seconds", "scrape_samples_scraped"}


def test_queries_ask_for_documented_metrics_only() -> None:
    """Every metric of a query is one that the daemon serves, or one of Prometheus' own."""
    for query in queries():
        asked = set(re.findall(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\{", query.expr))
        assert asked, query
        for name in asked - PROMETHEUS_OWN:
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in NAMES or NAMES.get(family, ("",))[0] == "histogram", query


def test_every_daemon_metric_is_on_a_dashboard() -> None:
    """Every metric of the daemon has a panel or an annotation."""
    text = " ".join((*(query.expr for query in queries()), *marks()))
    assert {name for name in NAMES if name not in text} == set()


@pytest.mark.prometheus
def test_the_table_of_ranks_keeps_apart_runs_that_share_a_rank(tmp_path: Path) -> None:
    """Each row has the state and the stall ratio of its own run, on one host or on several that a daemon watches."""
    steps, stall = "swtrace_step_duration_seconds_sum", "swtrace_wait_stall_seconds_sum"
    given, expected = {}, {}
    for about, run_name, ratio in (
        ({"rank": "0"}, "older", 0.125),
        ({"rank": "0", "run_id": "younger"}, "younger", 0.5),
        ({"rank": "1"}, "older", DOWN),
        ({"rank": "1", "run_id": "younger"}, "younger", IDLE),
        ({"rank": "2", "host": "gpu-b"}, "older", 0.25),
        ({"rank": "2", "host": "gpu-c"}, "another", 0.75),
        ({"rank": "2", "host": "gpu-c", "run_id": "younger"}, "younger", DOWN),
        ({"rank": "2", "host": "gpu-d"}, "one more", IDLE),
    ):
        given[_series("swtrace_rank_up", **about)] = "0x20" if ratio == DOWN else "1x20"
        given[_series("swtrace_series_info", **about, series="s", run=run_name)] = "1x20"
        expected[_series("", **about, series="s", run=run_name)] = ratio
        if ratio < 1 and ratio != IDLE:
            given[_series(steps, **about, series="s", phase="decode")] = "0+16x20"
            given[_series(stall, **about, series="s")] = f"0+{16 * ratio:g}x20"
    _expect(tmp_path, given, "5m", RANKS_BY_STALL_RATIO, expected)


@pytest.mark.prometheus
def test_a_rank_that_is_down_has_no_ratio_while_its_namesake_on_another_host_lives(tmp_path: Path) -> None:
    """Only living ranks are among those that stall now, also below a daemon that watches two hosts."""
    given = {}
    for host, up in (("gpu-a", 1), ("gpu-b", 0)):
        about = {"rank": "0", "host": host}
        given[_series("swtrace_rank_up", **about)] = f"{up}x20"
        given[_series("swtrace_step_duration_seconds_sum", **about, series="s", phase="decode")] = "0+16x20"
        given[_series("swtrace_wait_stall_seconds_sum", **about, series="s")] = "0+2x20"
    _expect(tmp_path, given, "5m", HIGHEST_STALL_RATIOS, {_series("", rank="0", host="gpu-a", series="s"): 0.125})


@pytest.mark.prometheus
def test_a_host_is_selected_where_samples_have_one(tmp_path: Path) -> None:
    """The selected host's rank is shown, and its namesakes are not, except those of a daemon that reads one host."""
    for about in ({"host": "gpu-a"}, {"host": "gpu-b"}, {}):
        given = {_series("swtrace_stall_seconds", rank="0", series="s", **about): "1x20"}
        shown = {_series("swtrace_stall_seconds", rank="0", series="s", **about): 1.0}
        _expect(tmp_path, given, "5m", LAST_STALL, {} if about == {"host": "gpu-b"} else shown, host="gpu-a")


@pytest.mark.prometheus
def test_a_run_that_ended_has_no_ratio_while_another_uses_its_ranks(tmp_path: Path) -> None:
    """Rates of now leave out a series that is gone, though its rank's number is that of a living rank again."""
    gone, there = "_x8 0+{0}x8 stale _x8", "_x18 0+{0}x20"
    steps, stall = "swtrace_step_duration_seconds_sum", "swtrace_wait_stall_seconds_sum"
    waits = "swtrace_waits_total"
    given = {_series("swtrace_rank_up", rank="0"): "1x40"}
    for name, values, seconds, on_time in (("gone", gone, 8, 0), ("there", there, 2, 10)):
        given |= {
            _series(steps, rank="0", series=name, phase="decode"): values.format(16),
            _series(stall, rank="0", series=name): values.format(seconds),
            _series(waits, rank="0", series=name, outcome="on_time"): values.format(on_time),
            _series(waits, rank="0", series=name, outcome="stalled"): values.format(10 - on_time),
        }
    _expect(tmp_path, given, "5m15s", HIGHEST_STALL_RATIOS, {_series("", rank="0", series="there"): 0.125})
    _expect(tmp_path, given, "5m15s", ON_TIME_RATE, {"{}": 1})


@pytest.mark.prometheus
def test_a_finding_is_shown_with_the_time_for_which_it_was_found(tmp_path: Path) -> None:
    """Only findings of now, each with its time within the last hour, also one that comes and goes or has just come."""
    name = "swtrace_finding"
    half = {"kind": "slow_link", "rank": "1", "series": "s"}
    whole, new, gone = {**half, "rank": "2"}, {"kind": "channel_bound", "series": "s"}, {**half, "rank": "3"}
    given = {
        _series(name, **half): " ".join(["1", "stale"] * 20) + " 1",
        _series(name, **whole): "1x40",
        _series(name, **new): "_x40 1",
        _series(name, **gone): "1x20 stale",
    }
    expected = {_series("", **half): 21 * 15.0, _series("", **whole): 41 * 15.0, _series("", **new): 15.0}
    _expect(tmp_path, given, "10m", FINDINGS, expected)


def _expect(
    folder: Path, given: dict[str, str], moment: str, expr: str, samples: dict[str, float], host: str = ".*"
) -> None:
    """Assert what a query returns at a moment, from series that are scraped every 15 seconds."""
    for variable in ("job", "daemon", "series", "rank"):
        expr = expr.replace(f"${variable}", ".*")
    expr = expr.replace("$host", host)
    case = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in given.items()],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": moment,
                "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
            }
        ],
    }
    file = folder / "query_test.yml"
    file.write_text(yaml.safe_dump({"tests": [case]}), encoding="utf-8")
    run("promtool", "test", "rules", str(file))


def _series(name: str, **labels: str) -> str:
    pairs = [f'{label}="{text}"' for label, text in {"instance": "a:9465", **labels}.items()]
    return f"{name}{{{', '.join(pairs)}}}"
