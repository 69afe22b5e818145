"""What the planner predicts, compared with what then happens: ``python -m benchmarks.plan``, or ``make bench-plan``.

A configuration is a model of real linears on real ranks of this machine, with a transport, a size of layer and a
compute. It runs under several settings (share and prefetch step), one after the other in random order, within a
minute. Each pair of two runs is a case: the planner gets the records of the first, and predicts the second. Half of the
configurations compute less than their transfers take. ``sleep`` computes without the cores, ``matmul`` with them.

Columns, each over the cases of a line:

- ``step``: mean, median and 95th percentile of the error of the predicted mean step time, as a share of what happened;
- ``stall``: mean error of the predicted stall ratio, in percentage points;
- ``as before``: the same errors if nothing is assumed to change;
- ``within``: share of the outcomes within the predicted 90 % interval, for step time and stall ratio;
- ``refused``: cases that the planner did not predict.

The last lines compare a setting's run with another run of the same setting: what no planner can know.

``--simulate`` has the same settings on simulated ranks (``tests/support/simulated_contention.py``), where the same
settings give the same times: what is missed there is the model's part, not the machine's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import swtrace
from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.planner import Planner
from swtrace.ledger.planning.prediction import Candidate
from swtrace.profile import Profile
from swtrace.share import Share
from tests.support.ranks import fork_server, ranks

RANKS = 2
SETTINGS = tuple(
    (Share(share), k)
    for share, k in (
        ("all", 0),
        ("all", 1),
        ("all", 2),
        ("all", 4),
        ("3/4", 2),
        ("2/3", 1),
        ("1/2", 0),
        ("1/2", 1),
        ("1/2", 2),
        ("1/3", 1),
        ("1/4", 0),
    )
)
RUNS = 4
"""Settings of a configuration."""
CASES = 6
"""Cases of a configuration, of the twelve that four runs make."""
WARM_UP = 10
FEWEST, MOST = 32, 400
"""Steps of a run."""
START_NS = 20_000_000
"""From the command to run until all ranks begin."""
SHORTEST_STEP_MS = 6.0
MIB = 1 << 20
TRANSFER_MS = {"broadcast": {1.0: 0.6, 2.25: 1.3, 4.0: 2.5}, "pull": {1.0: 0.1, 2.25: 0.25, 4.0: 0.6}}
"""About how long a transfer takes here, by size in MiB: only to choose computes."""
FLOPS = 6e10
"""About what a core computes per second: likewise."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A model and how it computes. Times in ms."""

    transport: str
    layers: int
    mib: float
    compute: str
    """``sleep``: a product with one vector, then sleep for ``amount``. ``matmul``: a product with ``amount`` vectors."""
    amount: float
    jitter: float
    """Mean of an exponentially distributed extra sleep per layer."""
    late: float
    """Extra sleep per layer on the last rank."""
    gap: float
    """Sleep between steps."""
    bound: bool
    """Whether computes are meant to be shorter than transfers."""
    seed: int


Setting = tuple[Share, int]
"""Share and prefetch step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave."""

    steps: tuple[StepFacts, ...]
    step_ns: float
    """Mean time of a step, on the rank with the longest."""
    stall_ratio: float
    """On the most stalled rank."""

    @classmethod
    def of(cls, steps: Sequence[StepFacts]) -> Outcome:
        """Sum up the steps of a run."""
        by_rank: dict[int | None, list[StepFacts]] = {}
        for step in steps:
            by_rank.setdefault(step.of_rank, []).append(step)
        took, stalled = np.zeros(RANKS), np.zeros(RANKS)
        for of_rank, run in by_rank.items():
            rows = slice(None) if of_rank is None else slice(of_rank, of_rank + 1)
            took[rows] = np.mean([step.duration_ns[rows] for step in run], axis=0)
            stalled[rows] = np.mean([step.stall_ns[rows].sum(axis=1) for step in run], axis=0)
        return cls(tuple(steps), float(took.max()), float((stalled / took).max()))


@dataclass(frozen=True, slots=True)
class Case:
    """A prediction and what happened."""

    configuration: Configuration
    recorded: Setting
    predicted: Setting
    before: Outcome
    after: Outcome
    planner: Planner | None

    def errors(self) -> tuple[float, ...] | None:
        """Return the errors of step time and stall ratio, and whether each was within its interval; None if refused."""
        if self.planner is None:
            return None
        share, k = self.predicted
        found = self.planner.predict(Candidate(share, k, self.configuration.transport, "static", RANKS))
        if found.step_ns is None or found.stall_ratio is None:
            return None
        step, stall = self.after.step_ns, self.after.stall_ratio
        return (
            found.step_ns.value / step - 1,
            found.stall_ratio.value - stall,
            found.step_ns.low <= step <= found.step_ns.high,
            found.stall_ratio.low <= stall <= found.stall_ratio.high,
        )

    @property
    def across(self) -> bool:
        """Whether one of the two prefetch steps is 0."""
        return (self.recorded[1] == 0) != (self.predicted[1] == 0)

    @property
    def partial(self) -> bool:
        """Whether one of the two shares only a part of the layers."""
        return {str(self.recorded[0]), str(self.predicted[0])} != {"all"}


def configurations(count: int, seed: int) -> Iterator[tuple[Configuration, list[Setting]]]:
    """Yield random configurations, each with its settings in the order in which they run; the last repeats one."""
    chance = random.Random(seed)  # noqa: S311 - reproducible
    for index in range(count):
        transport = ("broadcast", "pull")[index // 2 % 2]
        mib = chance.choice(list(TRANSFER_MS[transport]))
        bound = index % 2 == 0
        layers = chance.choice((12, 16, 24))
        times = chance.uniform(0.2, 0.9) if bound else chance.uniform(1.2, 4.0)
        target = max(times * TRANSFER_MS[transport][mib], SHORTEST_STEP_MS / layers)
        compute = chance.choice(("sleep", "matmul"))
        vectors = max(1, round(target * 1e-3 * FLOPS / (2 * mib * MIB / 4)))
        configuration = Configuration(
            transport=transport,
            layers=layers,
            mib=mib,
            compute=compute,
            amount=target if compute == "sleep" else vectors,
            jitter=chance.choice((0.0, 0.0, 0.3 * target)),
            late=chance.choice((0.0, 0.0, 0.0, 0.3 * target)),
            gap=chance.choice((0.0, 0.0, 2.0)),
            bound=bound,
            seed=seed * 1000 + index,
        )
        settings = chance.sample(SETTINGS, RUNS)
        yield configuration, [*settings, chance.choice(settings)]


# ---- in a rank -----------------------------------------------------------------------------------


def serve(rank: int, ends: Sequence[Connection], work: Configuration, settings: list[Setting], folder: str) -> None:
    """Build the model once for each setting, and run steps as commanded."""
    import ctypes

    import torch
    from torch import nn

    from swtrace.series import RankGroup, Series
    from swtrace.series.recording import close, process_recorder
    from swtrace.settings import Settings

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(29, 1000, 0, 0, 0)  # timers of sleeps are exact to 1 us instead of 50
    width = round((work.mib * MIB / 4) ** 0.5)
    made = []
    for number, (share, k) in enumerate(settings):
        series = Series(
            str(number),
            RankGroup.world(),
            0,
            work.layers,
            layers=share.layers(0, work.layers),
            prefetch_step=k,
            recorder=process_recorder,
            time_every=1,
            settings=Settings(directory=Path(folder), transport=work.transport, ring_records=1 << 15, run_id="plan"),
        )
        generator = torch.Generator().manual_seed(1)
        linears = []
        for layer in range(work.layers):
            linear = nn.Linear(width, width, bias=False, device="meta")
            linear.weight = nn.Parameter(torch.randn(width, width, generator=generator), requires_grad=False)
            series.register(layer, linear)
            linears.append(linear)
        series.post_process()
        made.append((series, linears))
    inputs = torch.ones(int(work.amount) if work.compute == "matmul" else 1, width)
    chance = random.Random(work.seed * RANKS + rank)  # noqa: S311 - reproducible
    late = work.late if rank == RANKS - 1 else 0.0

    def step(number: int) -> None:
        series, linears = made[number]
        with series.step(tokens=1):
            for layer, linear in enumerate(linears):
                series.reach(layer)
                begin = time.monotonic_ns()
                linear(inputs)
                pause = late + (chance.expovariate(1 / work.jitter) if work.jitter else 0.0)
                if work.compute == "sleep":
                    pause += work.amount - (time.monotonic_ns() - begin) * 1e-6
                if pause > 0:
                    time.sleep(pause * 1e-3)
        time.sleep(work.gap * 1e-3)

    ends[rank].send("ready")
    while (order := ends[rank].recv()) is not None:
        number, steps, begin_ns = order
        time.sleep(max(0, begin_ns - time.monotonic_ns()) * 1e-9)
        for _ in range(steps):
            step(number)
        ends[rank].send((time.monotonic_ns() - begin_ns) / steps)
    for series, _ in made:
        series.close()
    close()
