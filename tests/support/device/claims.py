"""Tests of what a series on a device claims about itself, for a simulated rig and a GPU alike.

Each function runs a scenario and returns what was found, next to what must be found. The judgement is the
caller's: a simulated device is exact, a GPU is held to :func:`close_enough`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swtrace.trace import records as columns
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import Clock, Kind, Observed, TransferFlag, Untimed
from tests.support.device.expected import Durations
from tests.support.device.lone_rank import BEFORE, TRANSFER, ForwardDiedError, Program
from tests.support.device.rig import Rig, Task

US, MS = 1_000, 1_000_000
LAYERS = 7
"""No multiple of 2 or 3: with k of 1 and 2, L % (k + 1) is not 0."""
STEPS = 6
"""Fewer than a series has sheets: the host may be ahead of all of them."""
HEAD_START_NS = 100 * MS
"""What the device is given to do first, so that the host is never late after."""
TOLERANCE_NS = 5 * US
TOLERANCE = 0.01


def close_enough(told_ns: int, true_ns: int) -> bool:
    """Return whether a duration is recorded within 5 us or 1 %."""
    return abs(told_ns - true_ns) <= max(TOLERANCE_NS, TOLERANCE * true_ns)


@dataclass(frozen=True, slots=True)
class Told:
    """One wait, as recorded and as it really was."""

    step: int
    position: int
    stall_ns: int
    slack_ns: int
    true_stall_ns: int
    true_slack_ns: int

    @property
    def close_enough(self) -> bool:
        """Whether both are told within the tolerance."""
        return close_enough(self.stall_ns, self.true_stall_ns) and close_enough(self.slack_ns, self.true_slack_ns)

    @property
    def error_ns(self) -> int:
        """The larger of the two errors."""
        return max(abs(self.stall_ns - self.true_stall_ns), abs(self.slack_ns - self.true_slack_ns))


@dataclass(frozen=True, slots=True)
class Timing:
    """A run with transfers of one duration."""

    transfer_ns: int
    compute_ns: int
    """Between one wait and the next."""
    prefetch_step: int
    replayed: bool
    waits: tuple[Told, ...]
    stall_ns: int
    """Recorded, over all steps."""
    naive_ns: int
    """What a host timer around each wait, or around the replay, would have called stall."""
    untimed: int
    """Steps without instants."""
    readings: tuple[int, int]
    """Comparisons of what a linear read with its own layer's bytes, and how many of them failed."""

    @property
    def worst_ns(self) -> int:
        """The largest error."""
        return max(wait.error_ns for wait in self.waits)


def timing(
    rig: Rig,
    folder: Path,
    transfer_ns: int,
    *,
    prefetch_step: int = 1,
    replayed: bool = False,
    make: Callable[..., Program] = Program,
) -> Timing:
    """Inject transfers of one duration into forwards of a known one, and compare each wait with what it was."""
    before, linear = 500 * US, 500 * US
    durations = Durations.even(LAYERS, before=before, linear=linear, transfer=transfer_ns)
    program = make(rig, folder, durations, prefetch_step=prefetch_step)
    if replayed:
        program.capture()
    rig.compute(Task("head start", 0), HEAD_START_NS)
    if replayed:
        program.replay(STEPS)
    else:
        program.eager(STEPS)
    readings = rig.readings()
    program.close()
    facts = program.facts()
    steps = _steps(program)
    return Timing(
        transfer_ns=transfer_ns,
        compute_ns=before + linear,
        prefetch_step=prefetch_step,
        replayed=replayed,
        waits=tuple(_told(program, facts, replayed=replayed)),
        stall_ns=sum(int(step.stall_ns.sum()) for step in facts),
        naive_ns=program.naive_ns,
        untimed=int((steps["untimed"] != Untimed.TIMED).sum()),
        readings=readings,
    )


def _steps(program: Program) -> Any:
    records = program.records()
    return records[records["kind"] == Kind.STEP].view(columns.STEP)


def _told(program: Program, facts: Any, *, replayed: bool) -> list[Told]:
    """Pair each recorded wait with the spans of the compute before it and of its transfer.

    Of captured tasks the rig knows the last replay only, and the first k transfers are none of them.
    """
    row, k = program.series.info.rank_in_group, program.prefetch_step
    told = []
    for position in range(k if replayed else 0, LAYERS):
        if program.owned[position]:
            continue
        befores = program.rig.spans(Task(BEFORE, position))
        transfers = program.rig.spans(Task(TRANSFER, position))
        for step in range(STEPS - 1 if replayed else 1, STEPS):
            at = -1 if replayed else step
            needed_ns = befores[at].end_ns
            # What the first k positions of a step wait for was issued by the step before it.
            there_ns = transfers[at if replayed or position >= k else step - 1].end_ns
            told.append(
                Told(
                    step,
                    position,
                    int(facts[step].stall_ns[row, position]),
                    int(facts[step].slack_ns[row, position]),
                    max(0, there_ns - needed_ns),
                    max(0, needed_ns - there_ns),
                )
            )
    return told


def uneven(layers: int, seed: int) -> Durations:
    """Return durations of which some transfers take no time, and some longer than a step."""
    chance = random.Random(seed)  # noqa: S311 - reproducible durations
    before = tuple(chance.randrange(1, 30_000) for _ in range(layers))
    linear = tuple(chance.randrange(1, 30_000) for _ in range(layers))
    step = sum(before) + sum(linear)
    transfer = tuple(chance.choice([0, chance.randrange(60_000), chance.randrange(3 * step)]) for _ in range(layers))
    return Durations(before, linear, transfer)


def check(program: Program, *observed: Observed) -> None:
    """Compare every wait of every step with the truth, and that there are no others."""
    facts, truth = program.facts(), program.truth.waits
    row = program.series.info.rank_in_group
    seen = set()
    first_arrival = int(facts[0].arrival_ns[row])
    for wait in truth:
        step, p = facts[wait.step], wait.position
        seen.add((wait.step, p))
        where = f"step {wait.step}, position {p}"
        assert step.present[row, p], where
        assert step.clock[row, p] == Clock.DEVICE, where
        assert int(step.wait_begin_ns[row, p]) - first_arrival == wait.begin_ns, where
        assert bool(step.flags[row, p] & TransferFlag.PREFILLED) == wait.prefilled, where
        if wait.prefilled:
            continue
        assert int(step.issued_ns[row, p]) - first_arrival == wait.issued_ns, where
        assert int(step.ready_ns[row, p]) - first_arrival == wait.ready_ns, where
        assert int(step.wait_end_ns[row, p]) - first_arrival == max(wait.begin_ns, wait.ready_ns), where
        assert step.stall_ns[row, p] == wait.stall_ns, where
        assert step.slack_ns[row, p] == wait.slack_ns, where
        assert step.wake_ns[row, p] == 0, where
        assert Observed(int(step.observed[row, p])) in observed, where
    received = {(s.step, int(p)) for s in facts for p in np.flatnonzero(s.receiver[row])}
    assert received == {(w.step, w.position) for w in truth if not w.prefilled}
    assert len(seen) == len(truth)


def mixture(
    rig: Rig,
    folder: Path,
    *,
    layers: int,
    prefetch_step: int,
    transfer_ns: int,
    steps: int,
    rank: int = 0,
    make: Callable[..., Program] = Program,
) -> tuple[int, int, int]:
    """Mix eager steps, replays of two graphs, new captures and forwards that die.

    Returns:
        Comparisons that must have been made, that were made, and that failed.
    """
    chance = random.Random(layers * 10 + prefetch_step)  # noqa: S311 - reproducible order
    durations = Durations.even(layers, before=20 * US, linear=30 * US, transfer=transfer_ns)
    program = make(rig, folder, durations, prefetch_step=prefetch_step, rank=rank)
    program.capture()
    graphs = [program.graph]
    reads = 0
    for _ in range(steps):
        what = chance.choice(["eager", "eager", "replay", "replay", "replay", "die", "capture"])
        if what == "eager":
            program.eager(1)
        elif what == "replay":
            program.graph = chance.choice(graphs)
            program.replay(1)
        elif what == "capture":
            program.capture()
            graphs = [graphs[-1], program.graph]
        else:
            stop_at = chance.randrange(1, layers)
            try:
                with program.series.step():
                    program.forward(stop_at=stop_at)
            except ForwardDiedError:
                reads += stop_at
        reads += layers * (what in {"eager", "replay"})
        rig.pause(chance.choice([0, 0, 2 * MS]))
    made, failed = rig.readings()
    program.close()
    return 2 * reads, made, failed


@dataclass(frozen=True, slots=True)
class LongRun:
    """Many replays of one graph."""

    replays: int
    layers: int
    comparisons: int
    failed: int
    timed: int
    """Steps with instants, of those that were read meanwhile."""
    outside_ns: int
    """How far the worst step's beginning, as recorded, lies outside of when it must have been by the host's clock."""


def long_run(rig: Rig, folder: Path, *, replays: int, layers: int = 61) -> LongRun:
    """Replay a graph many times; compare every read, and every step's beginning with the host's clock."""
    rig.keep = False
    durations = Durations.even(layers, before=5 * US, linear=5 * US, transfer=8 * US)
    program = Program(rig, folder, durations, prefetch_step=2)
    program.capture()
    bounds: list[tuple[int, int]] = []
    timed = outside_ns = 0
    assert program.recorder is not None
    with RingReader.open(program.recorder.path) as reader:
        for replay in range(0, replays, 4):
            launched = []
            for _ in range(min(4, replays - replay)):
                launched.append(rig.device.host_ns())
                program.replay(1)
            rig.catch_up()
            bounds += [(at, rig.device.host_ns()) for at in launched]
            if replay % 100 == 0 or replay + 4 >= replays:
                records = reader.read()
                for step in records[records["kind"] == Kind.STEP].view(columns.STEP):
                    if step["untimed"] == Untimed.TIMED:
                        timed += 1
                        low_ns, high_ns = bounds[step["step"]]
                        begin_ns = int(step["begin_ns"])
                        outside_ns = max(outside_ns, low_ns - begin_ns, begin_ns - high_ns)
    comparisons, failed = rig.readings()
    program.close()
    return LongRun(replays, layers, comparisons, failed, timed, outside_ns)


def sampled(rig: Rig, folder: Path) -> tuple[list[bool], int]:
    """Run eager and replayed steps of which one in three is timed.

    Returns:
        Of each step, whether it was timed; and how far the worst one of the others lies outside of when it must have
        been by the host's clock, in ns.
    """
    durations = Durations.even(LAYERS, before=50 * US, linear=50 * US, transfer=80 * US)
    program = Program(rig, folder, durations, time_every=3)
    program.capture()
    bounds = []
    for step in range(24):
        launched_ns = rig.device.host_ns()
        if step % 2:
            program.eager(1)
        else:
            program.replay(1)
        rig.catch_up()
        bounds.append((launched_ns, rig.device.host_ns()))
    program.close()
    steps = _steps(program)
    outside_ns = 0
    for step, (low_ns, high_ns) in zip(steps, bounds, strict=True):
        if step["untimed"] == Untimed.SAMPLED:
            begin_ns, arrival_ns, end_ns = (int(step[name]) for name in ("begin_ns", "arrival_ns", "end_ns"))
            assert begin_ns <= arrival_ns <= end_ns
            outside_ns = max(outside_ns, low_ns - begin_ns, end_ns - high_ns)
    return [bool(step["untimed"] == Untimed.TIMED) for step in steps], outside_ns


class Cost(NamedTuple):
    """What the series' own calls cost in one round, in ns. Moving the bytes is left out."""

    layer_ns: float
    """Of the launching thread for one layer: reach and wait, eager."""
    step_ns: float
    """Of the launching thread for one step besides: its beginning and end, and the records of the one before."""
    replay_ns: float
    """Of the launching thread for one replayed step, without the launch of the graph."""
    replayed_ns: float
    """From one replay's launch to the next one's, host and device together, for one layer."""


def cost(
    rig: Rig, folder: Path, variants: Mapping[str, Mapping[str, Any]], *, layers: int = 61, rounds: int = 12
) -> dict[str, list[Cost]]:
    """Return what variants of a series cost, measured in turn.

    Args:
        rig: the device.
        folder: for rings.
        variants: by name, what their :class:`Program` is made with.
        layers: of each.
        rounds: of some eager and some replayed steps each; one more goes first and does not count.
    """
    rig.keep = False
    durations = Durations.even(layers, before=1 * US, linear=1 * US, transfer=1 * US)
    programs = {name: Program(rig, folder / name, durations, **options) for name, options in variants.items()}
    costs: dict[str, list[Cost]] = {name: [] for name in programs}
    for program in programs.values():
        program.capture()
    for number in range(rounds + 1):
        for name, program in programs.items():
            found = _round(program)
            if number:
                costs[name].append(found)
    for program in programs.values():
        program.close()
    return costs


def _round(program: Program, steps: int = 4) -> Cost:
    """Measure one variant. Each step ends on the device before the next, which writes its records, is launched."""
    rig, layers = program.rig, len(program.layers)

    def launched(run: Callable[[int], None]) -> tuple[float, float]:
        run(1)
        rig.catch_up()
        layer_ns, frame_ns = program.launch_ns, program.frame_ns
        for _ in range(steps):
            run(1)
            rig.catch_up()
        return (program.launch_ns - layer_ns) / steps / layers, (program.frame_ns - frame_ns) / steps

    layer_ns, step_ns = launched(program.eager)
    _, replay_ns = launched(program.replay)
    begun_ns = rig.device.host_ns()
    program.replay(steps)
    rig.catch_up()
    return Cost(layer_ns, step_ns, replay_ns, (rig.device.host_ns() - begun_ns) / steps / layers)
