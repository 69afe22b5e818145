"""Verdicts over simulated runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from swtrace.diagnosis.diagnosis import Verdict, verdict
from swtrace.ledger.facts import SeriesFacts, StepFacts
from swtrace.observing.events import RingState
from swtrace.observing.observation import ObservedRank
from swtrace.trace.identity import RankKey
from swtrace.trace.ring_reader import RingStatistics
from tests.support.feeding import feed, ledger
from tests.support.host_clocks import Hosts
from tests.support.schedules import Schedule, simulate
from tests.support.simulated_pull import simulate_pull

Compute = Callable[[int, int, int], int]


def judged(*, ranks: list[int] | None = None, steps_known: bool = True, **shape: Any) -> Verdict:
    """Return the verdict over a simulated run."""
    settings = {"ranks": 3, "layers": 12, "k": 1, "steps": 24, "occupancy": 300_000, "compute": even(1_000_000)}
    return judge(simulate(**{**settings, **shape}), ranks=ranks, steps_known=steps_known)


def judge(schedule: Schedule, *, ranks: list[int] | None = None, steps_known: bool = True) -> Verdict:
    """Return the verdict over some ranks of a schedule, or all."""
    made = ledger(schedule, ranks=ranks)
    feed(made, schedule, ranks=ranks)
    facts = made.facts().series[0]
    return verdict(facts, made.history(facts.key) if steps_known else ())


def even(ns: int) -> Compute:
    """Return computes of one length on all ranks."""
    return lambda _rank, _step, _position: ns


def kinds(said: Verdict) -> set[str]:
    """Return the kinds of all findings."""
    return {finding.kind for finding in said.findings}


def finding(said: Verdict, kind: str) -> Any:
    """Return the first finding of a kind."""
    return next(finding for finding in said.findings if finding.kind == kind)


def known(hosts: Hosts) -> tuple[SeriesFacts, tuple[StepFacts, ...]]:
    """Return the facts and the last steps of a series."""
    fed = hosts.fed()
    (facts,) = fed.facts().series
    return facts, fed.history(facts.key)


def pulled(**shape: Any) -> Verdict:
    """Return the verdict over a simulated pull run of three ranks."""
    settings = {"layers": 12, "k": 1, "steps": (24, 24, 24), "compute": even(1_000_000), "copy": even(300_000)}
    schedule = simulate_pull(**{**settings, **shape})
    made = ledger(schedule)
    feed(made, schedule)
    facts = made.facts().series[0]
    return verdict(facts, made.history(facts.key))


def slow_second(rank: int, _step: int, _position: int) -> int:
    """Return computes of which rank 1's are much shorter than a copy."""
    return 200_000 if rank == 1 else 1_000_000


def dead(*keys: RankKey) -> list[ObservedRank]:
    """Return ranks that died."""
    shape = simulate(ranks=2, layers=2, k=0, steps=1, compute=even(1))
    return [
        ObservedRank(
            identity=replace(shape.identity(0), run_id=each.run_id, rank=each.rank),
            series=(),
            ring=RingState(each, alive=False, closed=False, statistics=RingStatistics(0, 0, 0, 0, 0)),
            died=True,
            before=0,
            run_began_ns=0,
        )
        for each in keys
    ]
