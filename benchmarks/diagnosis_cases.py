"""Draw the cases of the simulated campaign: which series, how noisy, which fault, how strong.

Cases come in groups of one shape, because these run at once. A group depends on the seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from swtrace.trace.schema import Phase
from tests.support.faulty_series import FINAL, Fault, Floats, Kind, Load, Noise, Run, Shape, afflicted, drawn, run

CASES = 8
"""Cases of a group."""
KINDS = tuple(kind for kind in Kind if kind is not Kind.NONE)
_LASTS = 96
"""Fewest steps that a fault lasts."""
_CELLS, _FEW = 512, 8
"""Most ranks times layers, and ranks that run for long, because a case must not take a second."""
_IDLE_NS = 1e9
"""A longer time between two steps is an idle period."""
_STRENGTH = {
    Kind.STRAGGLER: (0.02, 0.8),
    Kind.STRAGGLERS: (0.04, 0.8),
    Kind.INTERMITTENT: (0.1, 1.5),
    Kind.PHASE: (0.05, 1.0),
    Kind.LINK: (0.3, 20),
    Kind.SOURCE: (0.3, 20),
    Kind.ENTRY: (0.01, 0.6),
    Kind.LAUNCH: (0.8, 7.0),
    Kind.RUN_DELAY: (0.02, 0.6),
    Kind.STEAL: (0.02, 0.6),
    Kind.CHANNEL: (0.2, 8.0),
    Kind.LOST: (0.02, 0.6),
}
"""Weakest and strongest, between which the logarithm is uniform."""


@dataclass(frozen=True)
class Case:
    """A run with a fault, and what would have happened without it."""

    name: str
    """``GROUP.NUMBER``, under which it can be repeated."""
    shape: Shape
    noise: Noise
    fault: Fault
    run: Run
    repaired: Run
    seed: tuple[int, ...]
    """Of what is drawn later."""

    @property
    def gain(self) -> float | None:
        """Share of step time that repairing the fault gains, from when it began; None if the run does not go on."""
        if self.fault.kind in FINAL | {Kind.LOST, Kind.DIVERGED, Kind.NONE}:
            return None
        return self.run.gain(self.repaired, self.fault.begin)

    @property
    def busy_ns(self) -> float:
        """Simulated time without idle periods."""
        ends = self.run.end.max(axis=1)
        ends = ends[np.isfinite(ends)]
        begins, jumps = self.run.begin.min(axis=1)[: len(ends)], self.run.load.jump[1 : len(ends)]
        between = begins[1:] - ends[:-1] - jumps
        return float(ends[-1] - begins[0] - between[between > _IDLE_NS].sum())

    def late_gain(self, steps: int = 64) -> float:
        """Return the same over the last steps of the run, which predictions are about."""
        return self.run.gain(self.repaired, -steps)

    def excess(self, at_ns: float, steps: int = 64) -> Floats:
        """Return how much longer each rank computes than the others' median in the last steps, in steps; ``[rank]``."""
        ended = int(np.searchsorted(self.run.end.max(axis=1), at_ns, side="right"))
        load, recent = self.run.load, slice(max(0, ended - steps), ended)
        compute = (load.before + load.after)[recent].sum(axis=(0, 1)) + load.tail[recent].sum(axis=0)
        others = [np.median(np.delete(compute, rank)) for rank in range(len(compute))]
        return np.asarray((compute - others) / max(1.0, float(np.median(compute))))

    def taken(self, at_ns: float, steps: int = 64) -> Floats:
        """Return the share of the last steps for which each rank's core was taken; ``[rank]``."""
        ended = int(np.searchsorted(self.run.end.max(axis=1), at_ns, side="right"))
        load, recent = self.run.load, slice(max(0, ended - steps), ended)
        took = (self.run.end - self.run.begin)[recent].sum(axis=0)
        return np.asarray((load.run_delay + load.steal)[recent].sum(axis=0) / np.maximum(1.0, took))

    def stall_share(self) -> float:
        """Return the largest share of step time that a faulty rank stalls, while the fault lasts."""
        done, since, ranks = self.run, self.fault.begin, list(self.fault.ranks)
        stall = np.maximum(0, done.ready - done.wait_begin)[since:, :, ranks].sum(axis=(0, 1))
        return float((stall / (done.end - done.begin)[since:, ranks].sum(axis=0)).max(initial=0))

    @property
    def channel_share(self) -> float:
        """Time of a transfer as a share of a layer's compute, while the fault lasts."""
        load, goes_on = self.run.load, self.gain is not None
        during = slice(self.fault.begin, None) if goes_on else slice(0, max(1, self.fault.begin))
        moving = load.moving[during][np.isfinite(self.run.ready[during])]
        return float(np.median(moving) / np.median((load.before + load.after)[during]))


def healthy(seed: int, number: int, steps: int) -> Case:
    """Return a long healthy run."""
    chance = np.random.default_rng([seed, 1, number])
    ranks = int(chance.choice((2, 3, 4, 8)))
    shape = replace(
        _shape(chance),
        ranks=ranks,
        hosts=int(chance.choice((1, 1, max(1, ranks // 2)))),
        layers=int(chance.choice((8, 12))),
        steps=steps,
        compute_ns=float(np.exp(chance.uniform(np.log(1e6), np.log(3e7)))),
        time_every=int(chance.choice((1, 8, 32, 32, 32))),
        barrier=bool(chance.random() < 0.7),
    )
    noise = replace(_noise(chance), idle=float(chance.choice((0.0, 0.002))))
    load = drawn(_sound(shape), noise, chance)
    (done,) = run([load])
    return Case(f"h{number}", shape, noise, Fault(begin=steps), done, done, (seed, 1, number))


def group_shape(seed: int, number: int) -> Shape:
    """Return what the cases of a group have in common."""
    return _shape(np.random.default_rng([seed, 0, number]))


def group(seed: int, number: int, kinds: Sequence[Kind]) -> list[Case]:
    """Return a group of cases of some kinds, in turn."""
    chance = np.random.default_rng([seed, 0, number])
    shape = _shape(chance)
    wanted = [kinds[(number * CASES + each) % len(kinds)] for each in range(CASES)]
    drafts = [_draft(shape, kind, chance) for kind in wanted]
    cases = []
    runs: dict[int, Run] = {}
    loads: list[tuple[int, Load]] = []
    for at, (of_shape, noise, fault, load) in enumerate(drafts):
        del of_shape, noise
        loads += [(2 * at, load), (2 * at + 1, afflicted(load, fault, chance))]
    # What runs at once must be alike.
    together: dict[tuple[object, ...], list[tuple[int, Load]]] = {}
    for key, load in loads:
        together.setdefault((load.shape.alike, load.ahead), []).append((key, load))
    for each in together.values():
        runs |= dict(zip((key for key, _ in each), run([load for _, load in each]), strict=True))
    for at, (of_shape, noise, fault, _) in enumerate(drafts):
        seeds = (seed, 2, number, at)
        cases.append(Case(f"{number}.{at}", of_shape, noise, fault, runs[2 * at + 1], runs[2 * at], seeds))
    return cases


def _shape(chance: np.random.Generator) -> Shape:
    ranks = int(chance.choice((2, 2, 3, 4, 4, 4, 6, 8, 8, 8, 12, 16, 16, 24, 32, 64)))
    device = bool(chance.random() < 0.3)
    return Shape(
        ranks=ranks,
        layers=int(chance.choice([layers for layers in (8, 8, 10, 12, 16, 24) if ranks * layers <= _CELLS])),
        steps=int(chance.choice((136, 160, 192))) if ranks <= _FEW else 128,
        prefetch_step=int(chance.choice((0, 1, 1, 1, 2, 3))),
        rendezvous="group" if device else str(chance.choice(("tree", "tree", "source"))),
        queue="serial" if device else "receiver",
        hosts=int(chance.choice([hosts for hosts in (1, 1, 2, 4, 8) if 2 * hosts <= ranks or hosts == 1])),
        device=device,
    )


def _noise(chance: np.random.Generator) -> Noise:
    """Return little noise to much."""
    more = float(np.exp(chance.uniform(np.log(0.3), np.log(2.0))))
    plain = Noise()
    return Noise(
        jitter=plain.jitter * more,
        tails=plain.tails * more,
        differences=plain.differences * more,
        wander=plain.wander * more,
        memory=float(chance.uniform(0, 0.9)),
        imbalance=float(chance.choice((0.0, 0.01, 0.03))),
        bursts=plain.bursts * more,
        steal=plain.steal * more,
        slow_steps=plain.slow_steps * more,
        moving=plain.moving * more,
        entry=plain.entry * more,
    )


def _sound(shape: Shape) -> Shape:
    """Return the shape with transfers that fit."""
    most = 0.7 if shape.prefetch_step else 0.35
    return replace(shape, transfer_share=min(most, shape.transfer_share))


def _draft(group_shape: Shape, kind: Kind, chance: np.random.Generator) -> tuple[Shape, Noise, Fault, Load]:
    """Draw a case of a kind in a group."""
    shape = replace(
        group_shape,
        # Ranks that store no layer would fall behind without limit.
        barrier=bool(chance.random() < 0.6) or group_shape.ranks > group_shape.layers,
        compute_ns=float(np.exp(chance.uniform(np.log(2e5), np.log(4e6)))),
        transfer_share=float(chance.uniform(0.2, 0.7)),
        phases=((Phase.DECODE,), (Phase.DECODE,) * 4 + (Phase.PREFILL,), (Phase.DECODE, Phase.MIXED))[
            chance.integers(3)
        ],
        prefetch_step=max(1, group_shape.prefetch_step)
        if kind in {Kind.PREFETCH, Kind.CHANNEL}
        else group_shape.prefetch_step,
    )
    if kind is Kind.LAUNCH:
        shape = replace(shape, device=True, rendezvous="group", queue="serial")
    if kind is Kind.PHASE:
        shape = replace(shape, phases=(Phase.DECODE, Phase.DECODE, Phase.PREFILL))
    shape = _sound(shape)
    begin = 0 if chance.random() < 0.2 else int(chance.integers(8, shape.steps - _LASTS))
    if kind in FINAL:
        begin = int(chance.integers(20, 64))  # in its first 16 steps, a series is given time to compile
        shape = replace(shape, steps=begin + 4)
    noise = _noise(chance)
    fault = _fault(shape, kind, begin, chance)
    load = drawn(shape, noise, chance)
    return shape, noise, fault, load


def _fault(shape: Shape, kind: Kind, begin: int, chance: np.random.Generator) -> Fault:
    strength = float(np.exp(chance.uniform(*np.log(_STRENGTH.get(kind, (1.0, 1.0))))))
    some: tuple[int, ...] = (int(chance.integers(shape.ranks)),)
    if kind is Kind.STRAGGLERS and shape.ranks > 3:
        count = int(chance.integers(2, max(2, shape.ranks // 4) + 1))
        some = tuple(chance.permutation(shape.ranks)[:count].tolist())
    elif kind is Kind.STEAL:
        some = tuple(np.flatnonzero(shape.host == chance.integers(shape.hosts)).tolist())
    elif kind is Kind.LAUNCH and chance.random() < 0.5:
        some = tuple(range(shape.ranks))
    elif kind is Kind.SOURCE:
        some = (int(chance.integers(min(shape.ranks, shape.layers))),)
    elif kind in {Kind.CHANNEL, Kind.PREFETCH}:
        some = ()
    if kind is Kind.PREFETCH:
        begin, strength = 0, float(chance.integers(1, shape.prefetch_step + 1))
    stages = ("compute", "compute", "entry", *(() if shape.device or kind is Kind.DEAD else ("collective", "peers")))
    stage = str(chance.choice(stages))
    return Fault(
        kind=kind,
        ranks=some,
        begin=begin,
        strength=strength,
        weaker=float(chance.uniform(0.4, 1.0)),
        every=int(chance.choice((0, 2, 3, 5, 8))),
        often=float(chance.uniform(0.15, 0.6)),
        phase=Phase(int(chance.choice((Phase.DECODE, Phase.PREFILL)))),
        position=int(chance.integers(shape.layers)),
        stage=stage,
        damaged=bool(chance.random() < 0.5),
        restarted=kind is Kind.DIVERGED and begin > 0 and bool(chance.random() < 0.5),
    )
