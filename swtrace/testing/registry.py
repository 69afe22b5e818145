"""The daemon's metrics without a daemon: one snapshot in a registry, for tests that assert on samples."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from swtrace.daemon.collector import SnapshotCollector
from swtrace.daemon.snapshot import Health, RankState, Snapshot
from swtrace.ledger.facts import LedgerFacts
from swtrace.spans.delivery import NoSpans
from swtrace.watch import RankStatus


def registry(statuses: Iterable[RankStatus], facts: LedgerFacts) -> CollectorRegistry:
    """Return a registry that collects what a daemon would serve at this moment."""
    states = tuple(RankState.of(status, status.identity.start_time_ns) for status in statuses)
    snapshot = Snapshot(
        taken_ns=time.monotonic_ns(),
        taken_realtime_ns=time.time_ns(),
        started_realtime_ns=time.time_ns(),
        ranks=states,
        facts=facts,
        steps={},
        cursor=0,
        problems={},
        spans=NoSpans().statistics(),
        exemplars={},
    )
    made = CollectorRegistry(auto_describe=False)
    health = Health(trouble="", polled_realtime_ns=snapshot.taken_realtime_ns, poll_errors=0)
    made.register(SnapshotCollector(lambda: snapshot, lambda: health))
    return made
