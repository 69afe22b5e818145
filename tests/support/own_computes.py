"""Own compute of simulated ranks, ``[step, rank]`` in ns: many kinds of noise, and ranks that are slow in many ways."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace.ledger.stragglers import OwnCompute
from swtrace.trace.schema import Phase

Floats = npt.NDArray[np.float64]
Chance = np.random.Generator

TYPICAL_NS = 14_000_000
"""A rank's own compute."""
WAIT_NS = 6_000_000
"""What a step lasts longer than the slowest rank's own compute."""


def _correlated(chance: Chance, steps: int, ranks: int, decay: float, deviation: float) -> Floats:
    """Return a first-order autoregression."""
    lead = 200
    values = chance.normal(0.0, deviation * np.sqrt(1.0 - decay**2), (steps + lead, ranks))
    distance, factor = 1, decay
    while factor > 1e-9 and distance < len(values):
        earlier = np.zeros_like(values)
        earlier[distance:] = factor * values[:-distance]
        values = values + earlier
        distance, factor = 2 * distance, factor * factor
    return values[lead:]


def _bursts(chance: Chance, steps: int, ranks: int) -> Floats:
    """Return other processes that take a core for 3 to 25 steps, once in 250 steps."""
    values = chance.normal(0.0, 0.01, (steps, ranks))
    for step, rank in zip(*(chance.random((steps, ranks)) < 0.004).nonzero(), strict=True):
        burst = values[step : step + int(chance.integers(3, 25)), rank]
        burst += chance.exponential(0.4) * (chance.random(len(burst)) < 0.7)
    return values


NOISE: dict[str, Callable[[Chance, int, int], Floats]] = {
    "1 %": lambda chance, steps, ranks: chance.normal(0.0, 0.01, (steps, ranks)),
    "5 %": lambda chance, steps, ranks: chance.normal(0.0, 0.05, (steps, ranks)),
    "15 %": lambda chance, steps, ranks: chance.normal(0.0, 0.15, (steps, ranks)),
    "AR 0.5, 5 %": lambda chance, steps, ranks: _correlated(chance, steps, ranks, 0.5, 0.05),
    "AR 0.9, 2 %": lambda chance, steps, ranks: _correlated(chance, steps, ranks, 0.9, 0.02),
    "AR 0.9, 5 %": lambda chance, steps, ranks: _correlated(chance, steps, ranks, 0.9, 0.05),
    "AR 0.9, 15 %": lambda chance, steps, ranks: _correlated(chance, steps, ranks, 0.9, 0.15),
    "AR 0.9 and white": lambda chance, steps, ranks: (
        _correlated(chance, steps, ranks, 0.9, 0.03) + chance.normal(0.0, 0.03, (steps, ranks))
    ),
    "lognormal": lambda chance, steps, ranks: np.expm1(chance.normal(0.0, 0.3, (steps, ranks))),
    "Pareto 1.5": lambda chance, steps, ranks: 0.03 * chance.pareto(1.5, (steps, ranks)),
    "Student 2": lambda chance, steps, ranks: 0.03 * chance.standard_t(2, (steps, ranks)),
    "bursts": _bursts,
    "spikes": lambda chance, steps, ranks: (
        chance.normal(0.0, 0.01, (steps, ranks)) + 0.5 * (chance.random((steps, ranks)) < 0.03)
    ),
    "many spikes": lambda chance, steps, ranks: (
        chance.normal(0.0, 0.01, (steps, ranks)) + 0.3 * (chance.random((steps, ranks)) < 0.3)
    ),
    "tokens": lambda chance, steps, ranks: (
        chance.normal(0.0, 0.01, (steps, ranks)) + 0.4 * (chance.integers(1, 65, (steps, ranks)) / 32.5 - 1.0)
    ),
    "jitter": lambda chance, steps, ranks: (
        chance.normal(0.0, 0.01, (steps, ranks)) + chance.exponential(0.1, (steps, ranks))
    ),
    "own prefills": lambda chance, steps, ranks: (
        chance.normal(0.0, 0.02, (steps, ranks)) + 3.0 * (chance.random((steps, ranks)) < 0.05)
    ),
}
"""By name: relative deviations of equal ranks, ``[step, rank]``."""


def noisy(kind: str, steps: int, ranks: int, seed: int) -> tuple[Floats, Chance]:
    """Return own compute of equal ranks in ns, ``[step, rank]``, and the source of chance after it."""
    chance = np.random.default_rng([seed, ranks, zlib.crc32(kind.encode())])
    return np.maximum(1e5, TYPICAL_NS * (1.0 + NOISE[kind](chance, steps, ranks))), chance


def of(own_ns: Floats, first: int = 0, phase: npt.NDArray[np.uint8] | None = None) -> OwnCompute:
    """Return own computes as the ledger has them; steps begin every 20 ms.

    Args:
        own_ns: ``[step, rank]``.
        first: Number of the first step.
        phase: ``[step]``; None for decode.
    """
    own = own_ns.astype(np.int64)
    number = np.arange(first, first + len(own))
    return OwnCompute(
        own,
        own.max(axis=1) + WAIT_NS,
        number,
        number * 20_000_000,
        np.full(len(own), Phase.DECODE, np.uint8) if phase is None else phase,
    )


@dataclass(frozen=True)
class Slow:
    """A case with slow ranks."""

    own_ns: Floats
    begin: int
    """The first step in which they are slow."""
    ranks: tuple[int, ...]


PATTERNS = ("constant", "set", "every 3", "every 7", "30 %", "15 %")


def slow(pattern: str, kind: str, ranks: int, gain: tuple[float, float], seed: int, steps: int = 512) -> Slow:
    """Return a case in which ranks become slow after 0 to 700 steps, and stay so for ``steps``.

    Args:
        pattern: One of :data:`PATTERNS`. In a set, up to half of the ranks are slow in all steps.
        kind: Of the noise.
        ranks: Size of the group.
        gain: Mean excess as a share of the median step, from and to.
        seed: Of all chance.
        steps: Number of steps in which the ranks are slow.
    """
    begin = int(np.random.default_rng(seed).integers(0, 700))
    own, chance = noisy(kind, begin + steps, ranks, seed)
    several = int(chance.integers(1, ranks // 2 + 1)) if pattern == "set" else 1
    who = chance.choice(ranks, several, replace=False)
    affected = np.ones(steps, np.bool_)
    if pattern.startswith("every"):
        affected = np.arange(steps) % int(pattern.split()[1]) == 0
    elif pattern.endswith("%"):
        affected = chance.random(steps) < float(pattern.split(maxsplit=1)[0]) / 100
    typical_ns = float(np.median(own.max(axis=1))) + WAIT_NS
    excess = chance.uniform(*gain) * typical_ns / affected.mean()
    own[begin:, who] += (affected * excess)[:, np.newaxis]
    return Slow(own, begin, tuple(sorted(who.tolist())))
