"""The daemon's metrics without a daemon: one observation in a registry, for tests that assert on samples."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry

from swtrace.daemon.collector import SnapshotCollector
from swtrace.daemon.snapshot import Health, Snapshot
from swtrace.observing import Observation
from swtrace.spans.delivery import NoSpans


def registry(observation: Observation) -> CollectorRegistry:
    """Return a registry that collects what a daemon would serve at this moment."""
    now_ns = time.time_ns()
    snapshot = Snapshot(
        observation=observation,
        taken_realtime_ns=now_ns,
        started_realtime_ns=now_ns,
        steps={},
        cursor=0,
        spans=NoSpans().statistics(),
        exemplars={},
    )
    made = CollectorRegistry(auto_describe=False)
    made.register(SnapshotCollector(lambda: snapshot, lambda: Health("", polled_realtime_ns=now_ns, poll_errors=0)))
    return made
