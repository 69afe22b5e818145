"""A simulated series with noise and at most one fault, whose truth is known: what the diagnosis is judged on.

Every duration is drawn first (:func:`drawn`), and a fault changes the drawn durations (:func:`afflicted`). So the same
random numbers can run with the fault and without it, and the difference is what repairing it truly gains. A
:class:`Run` is made from durations by the recurrences of a shared series: a rank's reach issues the broadcast ``k``
layers ahead, which moves once the ranks that it needs have issued it and the channel is free, and a wait blocks until
it is there. A rank that dies or hangs has an infinite duration at that place. All ranks that depend on it then wait
forever.

Several loads with equal shapes run at once, because most of the time goes into the loop over steps and layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from swtrace.ledger.rendezvous import Rendezvous
from swtrace.trace.schema import RUN_STEPS, Phase

Floats = npt.NDArray[np.float64]

ORIGIN_NS = 1e12
"""True time at which a run begins."""
NEVER = np.inf
_BEFORE, _AFTER, _HEAD = 0.6, 0.4, 0.3
"""Shares of a layer's compute before its reach and after it; what follows the last layer, in layers."""
_PHASE_FACTOR = {Phase.DECODE: 1.0, Phase.PREFILL: 3.0, Phase.MIXED: 1.7}
_PHASE_TOKENS = {Phase.DECODE: 32, Phase.PREFILL: 2048, Phase.MIXED: 512}
_LAUNCH_SHARE = 0.35
"""Time that a host needs to launch a layer, as a share of the time that the device needs to compute it."""
_AHEAD_NS = 5_000
"""A device starts this long after a launch that it was waiting for."""


class Kind(StrEnum):
    """A kind of fault."""

    NONE = "healthy"
    STRAGGLER = "straggler"
    STRAGGLERS = "stragglers"
    """Several ranks, each by another factor."""
    INTERMITTENT = "intermittent straggler"
    PHASE = "phase-bound straggler"
    LINK = "slow link"
    SOURCE = "slow source"
    ENTRY = "entry skew"
    LAUNCH = "host-bound launches"
    RUN_DELAY = "cores taken: run delay"
    STEAL = "cores taken: steal"
    CHANNEL = "channel too slow"
    PREFETCH = "prefetch not effective"
    LOST = "records lost"
    DEAD = "dead rank"
    HUNG = "hung rank"
    DIVERGED = "diverged rank"


FINAL = frozenset({Kind.DEAD, Kind.HUNG})
"""Kinds after which the run does not go on."""


@dataclass(frozen=True)
class Shape:
    """What a run is made of, besides its noise. Ranks are group ranks; rank *r* is on host ``r * hosts // ranks``."""

    ranks: int = 4
    layers: int = 12
    steps: int = 160
    prefetch_step: int = 1
    rendezvous: str = "tree"
    queue: str = "receiver"
    hosts: int = 1
    device: bool = False
    barrier: bool = True
    """All ranks begin a step together, as an engine's workers do. Otherwise only the series holds them together."""
    compute_ns: float = 1e6
    """Compute of a layer in a decode step."""
    transfer_share: float = 0.5
    """Time of a transfer, as a share of that."""
    phases: tuple[Phase, ...] = (Phase.DECODE,)
    """Phases of the steps, drawn at random."""
    time_every: int = 1
    """The first 64 steps and then four of every ``4 * time_every`` are timed. Only timed steps are simulated and
    count among :attr:`steps`."""

    @property
    def host(self) -> npt.NDArray[np.int64]:
        """``[rank]``: number of its host."""
        return np.arange(self.ranks) * self.hosts // self.ranks

    @property
    def source(self) -> npt.NDArray[np.int64]:
        """``[position]``: the rank that stores the layer."""
        return np.arange(self.layers) % self.ranks

    @property
    def step_ns(self) -> float:
        """Compute of a decode step."""
        return self.compute_ns * self.layers

    @property
    def skipped(self) -> int:
        """Untimed steps between two runs of timed ones."""
        return RUN_STEPS * (self.time_every - 1)

    @property
    def alike(self) -> tuple[object, ...]:
        """Shapes with equal values can run at once."""
        return self.ranks, self.layers, self.steps, self.rendezvous, self.queue


@dataclass(frozen=True)
class Noise:
    """How much a healthy run varies. Sizes are shares of the compute of a layer or a step."""

    jitter: float = 0.04
    """Of each stretch of compute, lognormal."""
    tails: float = 0.001
    """Share of the stretches with a heavy tail, which begins at the compute of a layer."""
    differences: float = 0.004
    """Between ranks, constant."""
    wander: float = 0.008
    """Between steps of a rank, AR(1)."""
    memory: float = 0.8
    imbalance: float = 0.02
    """Between the batches of the ranks in a step."""
    bursts: float = 0.003
    """Chance per rank and step that the scheduler takes its core for some steps."""
    steal: float = 0.0005
    """Chance per host and step that the hypervisor takes cores."""
    slow_steps: float = 0.003
    """Share of the steps that are slow on all ranks."""
    moving: float = 0.08
    """Of each transfer, lognormal, with the same share of heavy tails."""
    entry: float = 0.004
    """Between the ranks' entries into a step, exponential."""
    idle: float = 0.0
    """Share of the steps that come after an idle period."""
    idle_s: float = 30.0
    """Mean length of one."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong. What *strength* means depends on the kind; 0 changes nothing."""

    kind: Kind = Kind.NONE
    ranks: tuple[int, ...] = ()
    begin: int = 0
    """The first step with the fault."""
    strength: float = 0.0
    weaker: float = 0.5
    """Strength for the last of several stragglers, as a share of that for the first."""
    every: int = 0
    """Intermittent: in every so many steps; 0: at random, in a share of the steps ..."""
    often: float = 0.3
    """... of this size."""
    phase: Phase = Phase.PREFILL
    """In which the ranks are slow."""
    position: int = 0
    """Where a rank stops."""
    stage: str = "compute"
    """What it does then: ``compute``, ``entry`` (it does not enter the step), ``collective`` (it is in one that the
    others do not enter), or ``peers`` (it computes, and the others wait for it in a collective)."""
    damaged: bool = False
    """Whether lost records are damaged ones, here and there, and not a lap of the ring."""
    restarted: bool = False
    """Whether a diverged rank began to count again, and did not just skip a step."""


@dataclass(frozen=True)
class Load:
    """Durations of a run, in ns; ``[step, position, rank]`` or ``[step, rank]``."""

    shape: Shape
    phase: npt.NDArray[np.uint8]
    """``[step]``"""
    tokens: npt.NDArray[np.int64]
    before: Floats
    """Compute before the reach."""
    after: Floats
    """Compute from the reach to the wait."""
    tail: Floats
    """Compute after the last wait."""
    gap: Floats
    """Before the step."""
    moving: Floats
    """Time on the channel, of a rank that does not store the layer."""
    wake: Floats
    launch: Floats
    """From the begin of the step to the launch of the reach; minus infinity on a host."""
    run_delay: Floats
    steal: Floats
    ahead: int
    """How many layers ahead broadcasts are issued."""
    skipped: npt.NDArray[np.int64]
    """``[step]``: untimed steps before it, ..."""
    jump: Floats
    """... and the time that they take, which is part of the gap."""


@dataclass(frozen=True)
class Run:
    """Instants of a run in true time, in ns; ``[step, position, rank]`` or ``[step, rank]``. Infinity: never."""

    load: Load
    begin: Floats
    end: Floats
    reach: Floats
    issued: Floats
    """The broadcast that the step and position wait for was issued; minus infinity: the window was filled before."""
    ready: Floats
    wait_begin: Floats
    wait_end: Floats
    launched: Floats
    """The broadcast's launch."""

    @property
    def step_ns(self) -> Floats:
        """``[step]``: time of the slowest rank."""
        return np.asarray((self.end - self.begin).max(axis=1))

    def gain(self, repaired: Run, since: int) -> float:
        """Return the share of step time, from a step on, that another run of the same random numbers lacks."""
        mine, theirs = float(self.step_ns[since:].sum()), float(repaired.step_ns[since:].sum())
        return 1 - theirs / mine


def drawn(shape: Shape, noise: Noise, chance: np.random.Generator) -> Load:
    """Draw the durations of a healthy run."""
    steps, layers, ranks = shape.steps, shape.layers, shape.ranks
    phase = chance.choice(np.array(shape.phases, np.uint8), steps)
    factor = np.array([_PHASE_FACTOR[Phase(each)] for each in phase])
    factor *= np.where(chance.random(steps) < noise.slow_steps, 1 + chance.exponential(0.8, steps), 1.0)
    wander = np.zeros((steps, ranks))
    shocks = chance.normal(0, noise.wander * np.sqrt(1 - noise.memory**2), (steps, ranks))
    wander[0] = chance.normal(0, noise.wander, ranks)
    for step in range(1, steps):
        wander[step] = noise.memory * wander[step - 1] + shocks[step]
    imbalance = chance.lognormal(0, noise.imbalance, (steps, ranks))
    of_rank = factor[:, np.newaxis] * (1 + wander) * imbalance * (1 + chance.normal(0, noise.differences, ranks))
    layer_ns = shape.compute_ns * of_rank[:, np.newaxis, :]

    def varied(sigma: float, *size: int) -> Floats:
        rough = chance.lognormal(0, sigma, size)
        count = chance.binomial(rough.size, noise.tails)
        where = chance.integers(0, rough.size, count)
        rough.reshape(-1)[where] += 1 + np.minimum(chance.pareto(1.5, count), 20)
        return np.asarray(rough)

    shares = np.full(layers, _BEFORE)
    shares[0] = 0.2
    before = layer_ns * shares[np.newaxis, :, np.newaxis] * varied(noise.jitter, steps, layers, ranks)
    after = layer_ns * _AFTER * varied(noise.jitter, steps, layers, ranks)
    tail = layer_ns[:, 0] * (_BEFORE + _HEAD) * varied(noise.jitter, steps, ranks)
    step_ns = shape.step_ns

    run_delay, steal = np.zeros((steps, ranks)), np.zeros((steps, ranks))
    for first, rank in np.argwhere(chance.random((steps, ranks)) < noise.bursts):
        last = first + 1 + chance.poisson(2)
        run_delay[first:last, rank] += step_ns * chance.uniform(0.02, 0.2)
    for first, host in np.argwhere(chance.random((steps, shape.hosts)) < noise.steal):
        last = first + 1 + chance.poisson(1)
        steal[first:last, shape.host == host] += step_ns * chance.uniform(0.02, 0.2)
    quiet = chance.exponential(0.0005 * step_ns, (steps, ranks))
    run_delay += quiet
    after = _spread(after, run_delay + steal)

    gap = np.broadcast_to(step_ns * chance.lognormal(np.log(0.06), 0.3, (steps, 1)), (steps, ranks)).copy()
    idle = chance.random(steps) < noise.idle
    gap += np.where(idle, 1e9 * chance.exponential(noise.idle_s, steps), 0.0)[:, np.newaxis]
    gap += chance.exponential(noise.entry * step_ns, (steps, ranks))
    moving = shape.compute_ns * shape.transfer_share * varied(noise.moving, steps, layers, ranks)
    skipped = np.where((np.arange(steps) >= 64) & (np.arange(steps) % RUN_STEPS == 0), shape.skipped, 0)
    jump = skipped * float(np.median(layer_ns)) * layers * 1.1
    gap += jump[:, np.newaxis]
    launch = np.full((steps, layers, ranks), -NEVER)
    if shape.device:
        of_host = shape.compute_ns * _LAUNCH_SHARE * chance.lognormal(0, 0.15, (steps, layers, ranks))
        launch = np.cumsum(of_host, axis=1)
    tokens = np.array([_PHASE_TOKENS[Phase(each)] for each in phase])
    return Load(
        shape=shape,
        phase=phase,
        tokens=np.maximum(1, tokens[:, np.newaxis] * imbalance).astype(np.int64),
        before=before,
        after=after,
        tail=tail,
        gap=gap,
        moving=moving,
        wake=chance.lognormal(np.log(15_000), 0.5, (steps, layers, ranks)),
        launch=launch,
        run_delay=run_delay,
        steal=steal,
        ahead=shape.prefetch_step,
        skipped=skipped,
        jump=jump,
    )


def _spread(compute: Floats, extra: Floats) -> Floats:
    """Return computes with extra time per step, spread over the layers."""
    return np.asarray(compute + extra[:, np.newaxis, :] / compute.shape[1])


def active(fault: Fault, load: Load, chance: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return in which steps a fault is felt, ``[step]``."""
    number = np.arange(load.shape.steps)
    felt = number >= fault.begin
    if fault.kind is Kind.INTERMITTENT:
        at_random = chance.random(len(number)) < fault.often
        felt &= (number - fault.begin) % fault.every == 0 if fault.every else at_random
    if fault.kind is Kind.PHASE:
        felt &= load.phase == fault.phase
    return felt


def afflicted(load: Load, fault: Fault, chance: np.random.Generator) -> Load:
    """Return the durations with a fault."""
    felt = active(fault, load, chance).astype(np.float64)[:, np.newaxis]
    change = _CHANGES.get(fault.kind)
    return load if change is None else replace(load, **change(load, fault, felt, chance))


def _slower(load: Load, fault: Fault, felt: Floats, _chance: np.random.Generator) -> dict[str, Any]:
    """Let ranks compute longer."""
    ranks = list(fault.ranks)
    factor = np.ones_like(load.tail)
    factor[:, ranks] += felt * fault.strength * np.linspace(1, fault.weaker, len(ranks))
    each = factor[:, np.newaxis, :]
    return {"before": load.before * each, "after": load.after * each, "tail": load.tail * factor}


def _without_cores(load: Load, fault: Fault, felt: Floats, chance: np.random.Generator) -> dict[str, Any]:
    """Take the cores of ranks away for a time in each step."""
    ranks = list(fault.ranks)
    extra = np.zeros_like(load.tail)
    extra[:, ranks] = felt * fault.strength * load.shape.step_ns * chance.lognormal(0, 0.3, (len(felt), len(ranks)))
    after = _spread(load.after, extra)
    if fault.kind is Kind.STEAL:
        return {"after": after, "steal": load.steal + extra}
    return {"after": after, "run_delay": load.run_delay + extra}


def _slow_transfers(load: Load, fault: Fault, felt: Floats, _chance: np.random.Generator) -> dict[str, Any]:
    """Let transfers take longer: all, those to some ranks, or those from some."""
    ranks = list(fault.ranks)
    chosen = np.ones(load.moving.shape[1:], np.bool_)
    if fault.kind is Kind.LINK:
        chosen &= np.isin(np.arange(load.shape.ranks), ranks)
    elif fault.kind is Kind.SOURCE:
        chosen &= np.isin(load.shape.source, ranks)[:, np.newaxis]
    return {"moving": load.moving * (1 + fault.strength * felt[:, :, np.newaxis] * chosen)}


def _enters_late(load: Load, fault: Fault, felt: Floats, _chance: np.random.Generator) -> dict[str, Any]:
    """Let ranks enter each step late."""
    gap = load.gap.copy()
    gap[:, list(fault.ranks)] += felt * fault.strength * load.shape.step_ns
    return {"gap": gap}


def _launches_late(load: Load, fault: Fault, felt: Floats, _chance: np.random.Generator) -> dict[str, Any]:
    """Let hosts take longer to launch."""
    launch = load.launch.copy()
    launch[:, :, list(fault.ranks)] *= 1 + felt[:, :, np.newaxis] * fault.strength
    return {"launch": launch}


def _reaches_late(load: Load, fault: Fault, _felt: Floats, _chance: np.random.Generator) -> dict[str, Any]:
    """Issue broadcasts fewer layers ahead."""
    return {"ahead": max(0, load.ahead - round(fault.strength))}


def _stops(load: Load, fault: Fault, _felt: Floats, _chance: np.random.Generator) -> dict[str, Any]:
    """Let one stretch never end."""
    before, gap = load.before.copy(), load.gap.copy()
    if fault.strength and fault.stage == "entry":
        gap[fault.begin, list(fault.ranks)] = NEVER
    elif fault.strength:
        stops = slice(None) if fault.stage == "peers" else list(fault.ranks)
        before[fault.begin, fault.position, stops] = NEVER
    return {"before": before, "gap": gap}


_CHANGES: dict[Kind, Callable[[Load, Fault, Floats, np.random.Generator], dict[str, Any]]] = {
    **dict.fromkeys((Kind.STRAGGLER, Kind.STRAGGLERS, Kind.INTERMITTENT, Kind.PHASE), _slower),
    **dict.fromkeys((Kind.RUN_DELAY, Kind.STEAL), _without_cores),
    **dict.fromkeys((Kind.LINK, Kind.SOURCE, Kind.CHANNEL), _slow_transfers),
    Kind.ENTRY: _enters_late,
    Kind.LAUNCH: _launches_late,
    Kind.PREFETCH: _reaches_late,
    **dict.fromkeys((Kind.DEAD, Kind.HUNG), _stops),
}
"""What changes in the durations. Lost records and diverged numbers change only what is recorded."""


def run(loads: Sequence[Load]) -> list[Run]:
    """Run loads with equal shapes and equal distances between reach and layer."""
    shape, ahead = loads[0].shape, loads[0].ahead
    if any((load.shape.alike, load.ahead) != (shape.alike, ahead) for load in loads):
        raise ValueError("loads that run at once must have equal shapes")
    steps, layers, ranks = shape.steps, shape.layers, shape.ranks

    def stacked(name: str) -> Floats:
        """Return ``[step, position, load, rank]`` or ``[step, load, rank]``."""
        return np.ascontiguousarray(np.stack([getattr(load, name) for load in loads], axis=-2))

    before, after, tail, gap, moving, wake, launch = map(
        stacked, ("before", "after", "tail", "gap", "moving", "wake", "launch")
    )
    devices = bool(np.isfinite(launch).any())
    barrier = np.array([load.shape.barrier for load in loads])[:, np.newaxis]
    rendezvous = Rendezvous(shape.rendezvous, ranks, shape.source)
    serial = shape.queue == "serial"
    issued, ready, launched = (np.full(before.shape, -NEVER) for _ in range(3))
    reach, wait_begin, wait_end = (np.empty(before.shape) for _ in range(3))
    begin, end = np.empty(tail.shape), np.empty(tail.shape)
    now, free = np.full(tail.shape[1:], ORIGIN_NS), np.full(tail.shape[1:], -NEVER)
    for step in range(steps):
        now = np.where(barrier, now.max(axis=1, keepdims=True), now) + gap[step]
        begin[step] = now
        for position in range(layers):
            now = now + before[step, position]
            if devices:
                now = np.maximum(now, begin[step] + launch[step, position] + _AHEAD_NS)
            reach[step, position] = now
            target_step, target = divmod(step * layers + position + ahead, layers)
            if target_step < steps:
                issued[target_step, target] = now
                if devices:
                    launched[target_step, target] = begin[step] + launch[step, position]
                arrives = np.maximum(rendezvous.last_issue_at(target, now), free) + moving[target_step, target]
                arrives[:, target % ranks] = -NEVER  # the source has it
                ready[target_step, target] = arrives
                free = np.maximum(free, arrives.max(axis=1, keepdims=True) if serial else arrives)
            now = now + after[step, position]
            wait_begin[step, position] = now
            late = ready[step, position] > now
            now = np.where(late, ready[step, position] + wake[step, position], now + 1_500)
            wait_end[step, position] = now
        now = now + tail[step]
        end[step] = now
    return [
        Run(
            load,
            *(column[..., number, :] for column in (begin, end, reach, issued, ready, wait_begin, wait_end, launched)),
        )
        for number, load in enumerate(loads)
    ]
