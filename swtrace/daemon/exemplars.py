"""Exemplars for the stall histogram: recent slow waits, each with the id of its trace.

Only steps whose spans are exported have exemplars, so every link from a dashboard leads to an existing trace.
For each rank and series, every bucket keeps one wait: the slowest in about a minute.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from swtrace.ledger.totals import DURATION_BOUNDS_NS
from swtrace.spans.origins import step_origins
from swtrace.spans.step_spans import WAIT
from swtrace.spans.traces import span_ids, trace_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from swtrace.ledger.facts import SeriesKey, StepFacts
    from swtrace.spans.origins import Origins
    from swtrace.trace.identity import RankKey

KEPT_NS = 60_000_000_000
"""After this time, any newer wait of the bucket replaces the kept one, which several scrapes have seen by then."""


@dataclass(frozen=True, slots=True)
class WaitExemplar:
    """One wait that stalled, its span, and the trace of its step."""

    stall_ns: int
    unix_ns: int
    """When the wait ended."""
    trace_id: str
    """32 hexadecimal digits, as tracing backends show it."""
    layer: int
    span_id: str
    """16 hexadecimal digits."""


BucketExemplars = dict[int, WaitExemplar]
"""By index in :data:`~swtrace.ledger.totals.DURATION_BOUNDS_NS`; the index after the last is the overflow bucket."""


class SlowestWaits:
    """The exemplars of all ranks and series."""

    def __init__(self) -> None:
        """Start without exemplars."""
        self._kept: dict[tuple[RankKey, SeriesKey], BucketExemplars] = {}

    def add(self, step: StepFacts, origins: Origins) -> None:
        """Consider the slowest wait of each rank in a step whose spans are exported."""
        stalls = np.where(step.receiver, step.stall_ns, 0)
        identifier = f"{trace_of(step):032x}"
        known = step_origins(step, origins)
        for rank, position in enumerate(stalls.argmax(axis=1).tolist()):
            stall_ns = int(stalls[rank, position])
            info, origin = step.infos[rank], known[rank]
            if stall_ns <= 0 or info is None or origin is None:
                continue
            layer = step.layers[position]
            exemplar = WaitExemplar(
                stall_ns=stall_ns,
                unix_ns=origin.unix_ns(int(step.wait_end_ns[rank, position]), int(step.clock[rank, position])),
                trace_id=identifier,
                layer=layer,
                span_id=_span_id(step, step.ranks[rank].rank, layer),
            )
            buckets = self._kept.setdefault((step.ranks[rank], step.series), {})
            bucket = bisect_left(DURATION_BOUNDS_NS, stall_ns)
            kept = buckets.get(bucket)
            # Never replace it by an older one: Prometheus accepts the exemplars of a series only in order of time.
            if kept is None or (
                exemplar.unix_ns > kept.unix_ns
                and (stall_ns > kept.stall_ns or exemplar.unix_ns - kept.unix_ns > KEPT_NS)
            ):
                buckets[bucket] = exemplar

    def of(self, ranks: Collection[RankKey]) -> dict[tuple[RankKey, SeriesKey], BucketExemplars]:
        """Return a copy of the exemplars of these ranks, and discard those of all others."""
        self._kept = {key: buckets for key, buckets in self._kept.items() if key[0] in ranks}
        return {key: dict(buckets) for key, buckets in self._kept.items()}


def _span_id(step: StepFacts, rank: int, layer: int) -> str:
    """Return the id of a wait's span."""
    return span_ids(step.series, step.step, rank, WAIT, (str(layer).encode(),)).hex()
