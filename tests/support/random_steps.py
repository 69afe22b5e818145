"""Random schedules for a ledger, and whether two finished steps are equal in every fact."""

from __future__ import annotations

import random
from dataclasses import fields

import numpy as np

from swtrace.ledger.facts import CriticalPath, StepFacts
from tests.support.schedules import Schedule, simulate


def random_schedule(steps: int = 12, ranks: int = 3, seed: int = 1, queue: str = "serial") -> Schedule:
    """Return steps of seven layers, two layers ahead, whose computes differ at random."""
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    return simulate(
        ranks=ranks,
        layers=7,
        k=2,
        steps=steps,
        queue=queue,
        compute=lambda _r, _s, _p: chance.randrange(100_000, 900_000),
        occupancy=500_000,
    )


def same_path(a: CriticalPath | None, b: CriticalPath | None) -> bool:
    """Return whether two critical paths are equal."""
    if a is None or b is None:
        return a is b
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def same_step(a: StepFacts, b: StepFacts) -> bool:
    """Return whether all fields of two steps are equal."""
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if f.name == "path":
            if not same_path(x, y):
                return False
        elif isinstance(x, np.ndarray):
            if not np.array_equal(x, y):
                return False
        elif x != y:
            return False
    return True
