"""The slowest waits of late, each with the trace that tells its story: what histograms carry as exemplars.

Only steps whose spans are exported have exemplars, so that the link from a bar in a dashboard leads to a trace
that exists. Of each rank and series every bucket of the stall histogram keeps one wait: the slowest in about a minute.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from swtrace.ledger.totals import DURATION_BOUNDS_NS
from swtrace.spans.traces import trace_id

if TYPE_CHECKING:
    from collections.abc import Collection

    from swtrace.ledger.facts import SeriesKey, StepFacts
    from swtrace.spans.origins import Origins
    from swtrace.trace.identity import RankKey

KEPT_NS = 60_000_000_000
"""After this long the next wait of its bucket replaces one, however fast: several scrapes have seen it."""


@dataclass(frozen=True, slots=True)
class WaitExemplar:
    """One wait that stalled, and where its spans are."""

    stall_ns: int
    unix_ns: int
    """When the wait ended."""
    trace_id: str
    """32 hexadecimal digits, as back ends show it."""
    layer: int


BucketExemplars = dict[int, WaitExemplar]
"""By index of the bucket in :data:`~swtrace.ledger.totals.DURATION_BOUNDS_NS`; one more for what lies above."""


class SlowestWaits:
    """Keeps the exemplars of every rank and series."""

    def __init__(self) -> None:
        """Start with none."""
        self._kept: dict[tuple[RankKey, SeriesKey], BucketExemplars] = {}

    def add(self, step: StepFacts, origins: Origins) -> None:
        """Take the slowest wait of each rank in a step whose spans are exported."""
        stalls = np.where(step.receiver, step.stall_ns, 0)
        identifier = f"{trace_id(step.series.run_id, step.step):032x}"
        for rank, position in enumerate(stalls.argmax(axis=1).tolist()):
            stall_ns = int(stalls[rank, position])
            info, origin = step.infos[rank], origins.get(step.ranks[rank])
            if stall_ns <= 0 or info is None or origin is None:
                continue
            exemplar = WaitExemplar(
                stall_ns=stall_ns,
                unix_ns=origin.unix_ns(int(step.wait_end_ns[rank, position]), int(step.clock[rank, position])),
                trace_id=identifier,
                layer=info.start_layer + position,
            )
            buckets = self._kept.setdefault((step.ranks[rank], step.series), {})
            bucket = bisect_left(DURATION_BOUNDS_NS, stall_ns)
            kept = buckets.get(bucket)
            # Never an older one: Prometheus takes a series' exemplars in the order of time only.
            if kept is None or (
                exemplar.unix_ns > kept.unix_ns
                and (stall_ns > kept.stall_ns or exemplar.unix_ns - kept.unix_ns > KEPT_NS)
            ):
                buckets[bucket] = exemplar

    def of(self, ranks: Collection[RankKey]) -> dict[tuple[RankKey, SeriesKey], BucketExemplars]:
        """Return a copy of what is kept of these ranks, and forget all others."""
        self._kept = {key: buckets for key, buckets in self._kept.items() if key[0] in ranks}
        return {key: dict(buckets) for key, buckets in self._kept.items()}
