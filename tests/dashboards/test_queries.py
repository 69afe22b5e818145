"""Panels ask for metrics that exist, and for all of them."""

from __future__ import annotations

import re

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
