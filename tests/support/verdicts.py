"""Verdicts over simulated runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swtrace.ledger.verdict import Verdict, verdict
from tests.support.feeding import feed, ledger
from tests.support.schedules import simulate

Compute = Callable[[int, int, int], int]


def judged(*, ranks: list[int] | None = None, steps_known: bool = True, **shape: Any) -> Verdict:
    """Return the verdict over a simulated run."""
    settings = {"ranks": 3, "layers": 12, "k": 1, "steps": 24, "occupancy": 300_000, "compute": even(1_000_000)}
    schedule = simulate(**{**settings, **shape})
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
