"""The steps that the ledger finishes from a folder of rings, without a daemon."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.sdk.resources import Resource

from swtrace.ledger import Ledger
from swtrace.ledger.facts import StepFacts
from swtrace.spans.origins import SpanOrigin
from swtrace.trace.directory import ring_paths
from swtrace.trace.identity import RankKey
from swtrace.trace.ring_reader import RingReader


def finished_steps(directory: Path, *, flush: bool = False) -> tuple[StepFacts, ...]:
    """Read every ring of the folder and return the finished steps."""
    ledger = Ledger(keep_untaken=1 << 16)
    readers = [RingReader.open(path) for path in ring_paths(directory)]
    for reader in readers:
        ledger.add_rank(reader.identity)
        ledger.set_series(reader.identity.key, reader.series())
    for reader in readers:
        ledger.add(reader.identity.key, reader.read())
        reader.close()
    if flush:
        ledger.flush()
    return ledger.take_steps()


def origins(*ranks: int, run_id: str = "run-1", offset_ns: int = 10**18) -> dict[RankKey, SpanOrigin]:
    """Return origins of ranks whose clock is ``offset_ns`` before UNIX time."""
    return {
        RankKey(run_id, rank): SpanOrigin(Resource({"service.name": "swtrace", "rank": rank}), offset_ns, offset_ns)
        for rank in ranks
    }
