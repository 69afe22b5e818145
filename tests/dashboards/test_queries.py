"""Panels ask for metrics that exist, and for all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dashboards.source.queries import DOWN, HIGHEST_STALL_RATIOS, IDLE, ON_TIME_RATE, RANKS_BY_STALL_RATIO
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
    """Each row has the stall ratio of its own run. Ranks that are down, idle or on a watched host have a row, too."""
    steps, stall = "swtrace_step_duration_seconds_sum", "swtrace_wait_stall_seconds_sum"
    given = {
        _series("swtrace_rank_up", rank="0"): "1x20",
        _series("swtrace_rank_up", rank="0", run_id="younger"): "1x20",
        _series("swtrace_rank_up", rank="1"): "0x20",
        _series("swtrace_rank_up", rank="2"): "1x20",
        **{_series("swtrace_series_info", rank=rank, series="s", run_id="older"): "1x20" for rank in "012"},
        _series("swtrace_series_info", rank="0", series="s", run_id="younger"): "1x20",
        _series(steps, rank="0", series="s", phase="decode"): "0+16x20",
        _series(stall, rank="0", series="s"): "0+2x20",
        _series(steps, rank="0", series="s", run_id="younger", phase="decode"): "0+16x20",
        _series(stall, rank="0", series="s", run_id="younger"): "0+8x20",
    }
    watched = {"rank": "3", "host": "gpu-b", "series": "s"}
    given |= {
        _series("swtrace_rank_up", rank="3", host="gpu-b"): "1x20",
        _series("swtrace_series_info", run_id="older", **watched): "1x20",
        _series(steps, phase="decode", **watched): "0+16x20",
        _series(stall, **watched): "0+4x20",
    }
    expected = {("0", "older"): 0.125, ("0", "younger"): 0.5, ("1", "older"): DOWN, ("2", "older"): IDLE}
    _expect(
        tmp_path,
        given,
        "5m",
        RANKS_BY_STALL_RATIO,
        {_series("", rank=rank, run_id=run_id, series="s"): ratio for (rank, run_id), ratio in expected.items()}
        | {_series("", run_id="older", **watched): 0.25},
    )


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


def _expect(folder: Path, given: dict[str, str], moment: str, expr: str, samples: dict[str, float]) -> None:
    """Assert what a query returns at a moment, from series that are scraped every 15 seconds."""
    for variable in ("job", "daemon", "series", "rank"):
        expr = expr.replace(f"${variable}", ".*")
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
