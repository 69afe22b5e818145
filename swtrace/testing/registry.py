"""The daemon's metrics without a daemon: one snapshot in a registry, for tests that assert on samples."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from swtrace.daemon.collector import SnapshotCollector
from swtrace.daemon.export import NoSpans
from swtrace.daemon.snapshot import RankState, SeriesWindows, Snapshot
from swtrace.ledger.facts import LedgerFacts
from swtrace.trace.clocks import ClockAnchor
from swtrace.watch import RankStatus


def registry(
    statuses: Iterable[RankStatus], anchors: Mapping[Path, ClockAnchor], facts: LedgerFacts
) -> CollectorRegistry:
    """Return a registry that collects what a daemon would serve at this moment."""
    states = tuple(
        RankState(
            identity=status.identity,
            path=status.path,
            up=status.alive,
            closed=status.closed,
            down_since_ns=0,
            statistics=status.statistics,
            anchor=anchors[status.path],
            virtual_offset_ns=status.identity.start_time_ns,
            series=tuple(
                SeriesWindows(index, info, () if info.refused else status.windows[info.name])
                for index, info in enumerate(status.series)
            ),
        )
        for status in statuses
    )
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
    made.register(SnapshotCollector(lambda: snapshot))
    return made
