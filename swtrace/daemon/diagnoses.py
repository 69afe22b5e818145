"""The diagnosis that the API serves, found within a share of a core however often it is asked for.

What ranks do now is found for every answer. The rules about steps, and what repairs would save, take up to seconds for
a large group. So an answer is kept for a while, unless a rank begins or ceases to stand still.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swtrace.diagnosis.diagnosis import conditions, current_runs, diagnose

if TYPE_CHECKING:
    from swtrace.daemon.api import Document, Query
    from swtrace.daemon.snapshot import Snapshot
    from swtrace.observing import Observation

_REST = 10
"""An answer is kept for this many times the CPU time that it took."""
_KEPT_ANSWERS = 16


def diagnosed(snapshot: Snapshot, query: Query) -> Document:
    """Return what is wrong in the selected run; by default in the living runs, or else in the newest one."""
    return diagnose(_selected(snapshot, query)).to_json()


@dataclass(frozen=True, slots=True)
class _Kept:
    document: Document
    standing: frozenset[object]
    """The ranks that stand still."""
    until_s: float


class Diagnoses:
    """Diagnoses by run and series, each kept for a while."""

    def __init__(self) -> None:
        """Know none yet."""
        self._kept: dict[tuple[str | None, str | None], _Kept] = {}
        self._diagnosing = threading.Lock()

    def of(self, snapshot: Snapshot, query: Query) -> Document:
        """Return what :func:`diagnosed` returns, or returned a while ago."""
        standing = _standing(_selected(snapshot, query))
        with self._diagnosing:
            kept = self._kept.pop((query.run, query.series), None)
            if kept is None or kept.standing != standing or time.monotonic() >= kept.until_s:
                began_s = time.thread_time()
                document = diagnosed(snapshot, query)
                kept = _Kept(document, standing, time.monotonic() + _REST * (time.thread_time() - began_s))
            self._kept[query.run, query.series] = kept
            if len(self._kept) > _KEPT_ANSWERS:
                del self._kept[next(iter(self._kept))]
            return kept.document


def _selected(snapshot: Snapshot, query: Query) -> Observation:
    seen = snapshot.observation
    seen = seen.of_runs(current_runs(seen) if query.run is None else {query.run})
    wanted = tuple(facts for facts in seen.facts.series if query.wants(facts.key))
    return replace(seen, facts=replace(seen.facts, series=wanted))


def _standing(seen: Observation) -> frozenset[object]:
    return frozenset(
        (facts.key, finding.kind, finding.ranks)
        for facts in seen.facts.series
        if facts.ranks
        for finding in conditions(facts, seen.history.get(facts.key, ()), seen.ranks)
    )
