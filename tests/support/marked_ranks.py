"""A group of ranks whose rings say what they are doing, with the facts of the steps before, without any process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from swtrace.diagnosis.case import Case
from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Finding
from swtrace.observing.events import RingState
from swtrace.observing.observation import ObservedRank
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.marks import Marks, Progress
from swtrace.trace.ring_reader import RingStatistics
from swtrace.trace.schema import Collective, Stage
from tests.support.feeding import feed, ledger
from tests.support.schedules import RUN, key, simulate
from tests.support.verdicts import even

LAYERS = 6
K = 1
STEPS = 24
S = 1_000_000_000
NOW_NS = 1_000 * S
"""When the rings are read, on every rank's clock."""


def at(
    step: int, layer: int | None, age_s: float, stage: Stage = Stage.MARKED, *, waits: int | None = None
) -> Progress:
    """Return the progress of a rank that reached a layer of a step, or none yet, ``age_s`` ago.

    With ``waits``, that long ago it began to wait for this layer.
    """
    reached = 0 if layer is None else layer + 1
    since_ns = NOW_NS - int(age_s * S)
    progress = Progress(step * LAYERS + reached, stage, since_ns)
    return progress if waits is None else progress._replace(waiting=waits, waiting_since_ns=since_ns)


def between(step: int, age_s: float) -> Progress:
    """Return the progress of a rank that ended a step ``age_s`` ago."""
    return at(step, LAYERS - 1, age_s, Stage.BETWEEN)


@dataclass
class Group:
    """Ranks that have run 24 steps with layers of one length, and what each is doing now."""

    doing: Mapping[int, Progress]
    """By rank; those without are not observed."""
    ranks: int = 3
    layer_ns: int = 1_000_000
    collectives: Mapping[int, tuple[Collective, float]] | None = None
    """Of ranks in a collective that no series issued: which one, and since how many seconds."""
    changes: Mapping[int, Mapping[str, Any]] | None = None
    """Other fields of the ranks' rings."""
    info: Mapping[str, Any] | None = None
    """Other fields of the series."""
    steps: int = STEPS

    def case(self) -> Case:
        """Return what rules look at."""
        schedule = simulate(ranks=self.ranks, layers=LAYERS, k=K, steps=self.steps, compute=even(self.layer_ns))
        schedule.infos = [replace(each, **{"rendezvous": "tree", **(self.info or {})}) for each in schedule.infos]
        made = ledger(schedule)
        feed(made, schedule)
        (facts,) = made.facts().series
        ranks = [self._rank(rank, schedule.infos[rank]) for rank in self.doing]
        return Case.of(facts, made.history(facts.key), ranks)

    def findings(self, kind: str) -> list[Finding]:
        """Return the findings of a kind."""
        case = self.case()
        said = verdict(case.facts, case.steps, tuple(case.ranks.values()))
        return [finding for finding in said.findings if finding.kind == kind]

    def _rank(self, rank: int, info: SeriesInfo) -> ObservedRank:
        kind, since_s = (self.collectives or {}).get(rank, (None, 0.0))
        marks = Marks((self.doing[rank],), kind, NOW_NS - int(since_s * S) if kind else 0)
        ring = RingState(
            key(rank),
            alive=True,
            closed=False,
            statistics=RingStatistics(1, 1, 0, 0, 0),
            anchor=ClockAnchor(0, 5 * S),
            marks=marks,
            taken_ns=NOW_NS,
        )
        changes = dict((self.changes or {}).get(rank, {}))
        died = changes.pop("died", False)
        identity = RankIdentity(RUN, rank, "host", "boot", pid=1, start_time_ns=1)
        return ObservedRank(identity, (info,), replace(ring, **changes), died=died, before=0, run_began_ns=0)
