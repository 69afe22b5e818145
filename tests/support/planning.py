"""Runs of a simulated group under several settings, and planners of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.contention import CROWDING, SLOWDOWN
from swtrace.ledger.planning.prediction import Candidate
from swtrace.ledger.planning.shared import OVERHEAD_NS, SharedPlanner
from swtrace.profile import Profile, Spread, Timing
from swtrace.share import Share
from swtrace.trace.identity import BROADCAST, PULL
from tests.support.feeding import feed, ledger
from tests.support.schedules import BYTES
from tests.support.simulated_contention import Sharing, run

LAYERS = 12


def uneven(seed: int = 1, *, transfer_ns: float = 900_000, **options: float) -> Sharing:
    """Return a group with uneven computes of about 1 ms per layer, the same ones under all settings.

    Sharing a layer costs, and transfers and computes slow each other down, as much as the planner assumes.
    """

    def varied(*of: object) -> float:
        return random.Random(f"{seed} {of}").uniform(0.7, 1.3)  # noqa: S311 - reproducible

    def compute(rank: int, step: int, layer: int) -> tuple[float, float]:
        whole = 1_000_000 * varied(rank, step, layer)
        return 0.4 * whole, 0.6 * whole

    family, contention = PULL if options.get("pull") else BROADCAST, options.get("contention", 0.0)
    sharing = Sharing(
        compute,
        lambda *of: transfer_ns * varied("transfer", *of),
        layers=LAYERS,
        overhead=OVERHEAD_NS[family],
        slowdown=SLOWDOWN[family] + contention / (1 + contention),
        crowding=CROWDING,
        wake=20_000,
        steps=30,
    )
    return replace(sharing, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ran:
    """A run and the truth about it."""

    sharing: Sharing
    steps: tuple[StepFacts, ...]
    step_ns: float
    """Mean, on the rank with the longest."""
    stall_ratio: float

    def planner(self, profile: Profile | None = None, **options: float) -> SharedPlanner:
        """Return a planner of its steps."""
        made = SharedPlanner.of(self.steps, profile, **options)
        assert made is not None
        return made


def ran(sharing: Sharing, share: str = "all", prefetch_step: int = 1) -> Ran:
    """Run a group under some settings."""
    shared = Share(share).layers(0, sharing.layers)
    sharing = replace(sharing, shared=shared, prefetch_step=prefetch_step)
    schedule, step_ns, stall_ns = run(sharing)
    made = ledger(schedule)
    feed(made, schedule)
    step, stall = (np.mean(each[2:], axis=0) for each in (step_ns, stall_ns))
    history = made.history(made.facts().series[0].key)
    return Ran(sharing, history, float(step.max()), float((stall / step).max()))


def candidate(share: str = "all", prefetch_step: int = 1, *, pull: bool = False, ranks: int = 2) -> Candidate:
    """Return settings to predict."""
    return Candidate(Share(share), prefetch_step, "pull" if pull else "broadcast", "static", ranks)


def pull_profile(*stretches: Spread, seconds: float = 1e-3) -> Profile:
    """Return a profile of copies of some sizes, each with how copies stretch compute. The first is that of a layer."""

    def timing(size: int, stretch: Spread | None) -> Timing:
        each, issue = (Spread(always, always, always, always) for always in (seconds, 1e-5))
        return Timing("pull", PULL, 2, size * BYTES, 1, stretch is not None, 20, each, issue, stretch)

    idle = (timing(size, None) for size in range(1, len(stretches) + 1))
    computing = (timing(size, stretch) for size, stretch in enumerate(stretches, 1))
    return Profile("0.1.0", "2026-11-28T18:00:00+00:00", ("a",), 2, "cpu", "host", 2, 1, (*idle, *computing), ())
