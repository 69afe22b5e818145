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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import swtrace
from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.planner import Planner
from swtrace.ledger.planning.prediction import Candidate, Prediction
from swtrace.ledger.planning.shared import OVERHEAD_NS, SharedPlanner
from swtrace.profile import Profile
from swtrace.share import Share
from tests.support.feeding import feed, ledger
from tests.support.ranks import Rank, fork_server, ranks
from tests.support.simulated_contention import Sharing, run

if TYPE_CHECKING:
    from torch import nn

    from swtrace.series import Series

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
        ("1/4", 1),
    )
)
RUNS = 4
"""Settings of a configuration."""
CASES = 6
"""Cases of a configuration, of the twelve that four runs make."""
WARM_UP = 10
FEWEST, MOST = 32, 400
SIMULATED_STEPS = 40
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
    """``sleep``: a product with one vector, and sleep until ``amount``. ``matmul``: one with ``amount`` vectors."""
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
        for of_rank, of_one in by_rank.items():
            rows = slice(None) if of_rank is None else slice(of_rank, of_rank + 1)
            took[rows] = np.mean([step.duration_ns[rows] for step in of_one], axis=0)
            stalled[rows] = np.mean([step.stall_ns[rows].sum(axis=1) for step in of_one], axis=0)
        return cls(tuple(steps), float(took.max()), float((stalled / took).max()))


@dataclass(frozen=True, slots=True)
class Case:
    """A prediction and what happened."""

    configuration: Configuration
    recorded: Setting
    predicted: Setting
    before: Outcome
    after: Outcome
    found: Prediction | None
    """None if there is no planner of the recorded run."""

    def errors(self) -> tuple[float, ...] | None:
        """Return the errors of step time and stall ratio, and whether each was within its interval; None if refused."""
        found = self.found
        if found is None or found.step_ns is None or found.stall_ratio is None:
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

    from swtrace.series.recording import close

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(29, 1000, 0, 0, 0)  # timers of sleeps are exact to 1 us instead of 50
    models = [_Model(str(number), work, *setting, folder) for number, setting in enumerate(settings)]
    pauses = _Pauses(rank, work)
    ends[rank].send("ready")
    while (order := ends[rank].recv()) is not None:
        number, steps, begin_ns = order
        time.sleep(max(0, begin_ns - time.monotonic_ns()) * 1e-9)
        for _ in range(steps):
            models[number].step(work, pauses)
        ends[rank].send((time.monotonic_ns() - begin_ns) / steps)
    for model in models:
        model.series.close()
    close()


class _Pauses:
    """How long a rank sleeps in each layer besides its compute."""

    def __init__(self, rank: int, work: Configuration) -> None:
        self._late = work.late if rank == RANKS - 1 else 0.0
        self._jitter = work.jitter
        self._chance = random.Random(work.seed * RANKS + rank)  # noqa: S311 - reproducible

    def next_ms(self) -> float:
        return self._late + (self._chance.expovariate(1 / self._jitter) if self._jitter else 0.0)


class _Model:
    """The model of a configuration under one setting, on one rank."""

    def __init__(self, name: str, work: Configuration, share: Share, prefetch_step: int, folder: str) -> None:
        import torch

        from swtrace.series import RankGroup, Series
        from swtrace.series.recording import process_recorder
        from swtrace.settings import Settings

        self.shared = frozenset(layers := share.layers(0, work.layers))
        self.series: Series = Series(
            name,
            RankGroup.world(),
            0,
            work.layers,
            layers=layers,
            prefetch_step=prefetch_step,
            recorder=process_recorder,
            time_every=1,
            settings=Settings(directory=Path(folder), transport=work.transport, ring_records=1 << 15, run_id="plan"),
        )
        width = round((work.mib * MIB / 4) ** 0.5)
        generator = torch.Generator().manual_seed(1)
        self.linears = [_linear(width, generator) for _ in range(work.layers)]
        for layer, linear in enumerate(self.linears):
            self.series.register(layer, linear)
        self.series.post_process()
        self.inputs = torch.ones(int(work.amount) if work.compute == "matmul" else 1, width)

    def step(self, work: Configuration, pauses: _Pauses) -> None:
        """Run a step."""
        with self.series.step(tokens=1):
            for layer, linear in enumerate(self.linears):
                self.series.reach(layer)
                if layer in self.shared:
                    self.series.wait(layer)
                begin = time.monotonic_ns()
                linear(self.inputs)
                pause = pauses.next_ms()
                if work.compute == "sleep":
                    pause += work.amount - (time.monotonic_ns() - begin) * 1e-6
                time.sleep(max(0.0, pause) * 1e-3)
        time.sleep(work.gap * 1e-3)


def _linear(width: int, generator: Any) -> nn.Linear:
    import torch
    from torch import nn

    linear = nn.Linear(width, width, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.randn(width, width, generator=generator), requires_grad=False)
    return linear


# ---- in the parent -------------------------------------------------------------------------------


def carry_out(work: Configuration, settings: list[Setting], seconds: float, folder: Path) -> list[Outcome]:
    """Run a configuration under each of its settings, in their order."""
    pipes = [fork_server().Pipe() for _ in range(RANKS)]
    with ranks(RANKS, serve, [end for _, end in pipes], work, settings, str(folder)) as started:
        ends = [end for end, _ in pipes]
        for end, rank in zip(ends, started, strict=True):
            _answer(end, rank)
        for number in range(len(settings)):
            per_step_ns = _go(ends, started, number, WARM_UP)
            _go(ends, started, number, min(MOST, max(FEWEST, round(seconds * 1e9 / per_step_ns))))
        for end in ends:
            end.send(None)
        for rank in started:
            rank.result()
            rank.process.join()
    with swtrace.open(folder) as session:
        steps: dict[int, list[StepFacts]] = {}
        for step in session.steps():
            steps.setdefault(int(step.series.name), []).append(step)
    return [Outcome.of([step for step in steps[number] if step.step >= WARM_UP]) for number in range(len(settings))]


def _go(ends: Sequence[Connection], started: Sequence[Rank], number: int, steps: int) -> float:
    """Run steps of one setting on all ranks; return ns per step."""
    begin_ns = time.monotonic_ns() + START_NS
    for end in ends:
        end.send((number, steps, begin_ns))
    took: list[float] = [_answer(end, rank) for end, rank in zip(ends, started, strict=True)]
    return max(took)


def _answer(end: Connection, rank: Rank) -> Any:
    while not end.poll(0.1):
        if rank.connection.poll():
            rank.result()
    return end.recv()


def simulate(work: Configuration, settings: list[Setting]) -> list[Outcome]:
    """Run a configuration on simulated ranks."""
    chance = random.Random(work.seed)  # noqa: S311 - reproducible
    contention, more = (0.0, 0.0) if work.compute == "sleep" else (chance.uniform(0.1, 0.5), chance.uniform(0.1, 0.5))
    crowding, beyond = chance.uniform(0.4, 0.8), chance.uniform(0.3, 0.7) if work.transport == "pull" else 0.0
    transfer_ns = 1e6 * TRANSFER_MS[work.transport][work.mib]
    vectors = work.amount * 2 * work.mib * MIB / 4 / FLOPS * 1e3
    layer_ns = 1e6 * (work.amount if work.compute == "sleep" else vectors)

    def varied(*of: object) -> float:
        return random.Random(f"{work.seed} {of}").uniform(0.8, 1.2)  # noqa: S311 - reproducible

    def compute(rank: int, step: int, layer: int) -> tuple[float, float]:
        extra = work.late if rank == RANKS - 1 else 0.0
        if work.jitter:
            extra += random.Random(f"{work.seed} {rank} {step} {layer}").expovariate(1 / work.jitter)  # noqa: S311
        return 0.0, layer_ns * varied(rank, step, layer) + 1e6 * extra

    outcomes = []
    for share, k in settings:
        schedule, _, _ = run(
            Sharing(
                compute,
                lambda *of: transfer_ns * varied("transfer", *of),
                layers=work.layers,
                shared=share.layers(0, work.layers),
                prefetch_step=k,
                ranks=RANKS,
                steps=SIMULATED_STEPS,
                pull=work.transport == "pull",
                contention=contention,
                slowdown=more + beyond,
                crowding=crowding,
                overhead=OVERHEAD_NS[work.transport],
                wake=20_000,
            )
        )
        made = ledger(schedule)
        feed(made, schedule)
        history = made.history(made.facts().series[0].key)
        outcomes.append(Outcome.of([step for step in history if step.step > 1]))
    return outcomes


def probe(folder: Path) -> Profile:
    """Time the transports between two ranks of this machine, as a user would."""
    path = folder / "profile.json"
    sizes = [part for mib in TRANSFER_MS["pull"] for part in ("--bytes", str(round(mib * MIB)))]
    command = [sys.executable, "-m", "swtrace", "probe", "--ranks", str(RANKS), *sizes, "--output", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Profile.read(path)


def cases(
    works: Sequence[tuple[Configuration, list[Setting]]],
    outcomes_of: Callable[[Configuration, list[Setting]], list[Outcome]],
    profile: Profile | None,
) -> Iterator[tuple[list[Case], tuple[Outcome, Outcome]]]:
    """Carry out configurations; yield the cases of each, and the two runs of the setting that it repeats."""
    for number, (work, settings) in enumerate(works, 1):
        outcomes = outcomes_of(work, settings)
        planners = [SharedPlanner.of(outcome.steps, profile) for outcome in outcomes[:RUNS]]
        pairs = list(itertools.permutations(range(RUNS), 2))
        random.Random(work.seed).shuffle(pairs)  # noqa: S311 - reproducible
        found = [
            Case(work, settings[a], settings[b], outcomes[a], outcomes[b], planned(planners[a], work, settings[b]))
            for a, b in pairs[:CASES]
        ]
        print(f"{number} of {len(works)} configurations", file=sys.stderr)
        yield found, (outcomes[settings.index(settings[-1])], outcomes[-1])


def planned(planner: Planner | None, work: Configuration, setting: Setting) -> Prediction | None:
    """Return what a planner predicts for a setting."""
    share, k = setting
    return None if planner is None else planner.predict(Candidate(share, k, work.transport, "static", RANKS))


def line(name: str, chosen: Sequence[Case]) -> str:
    """Return a line of the table."""
    errors = [(case, found) for case in chosen if (found := case.errors()) is not None]
    refused = f"{len(chosen) - len(errors):>5} ({(len(chosen) - len(errors)) / max(1, len(chosen)):.0%})"
    if not errors:
        return f"{name:<34}{len(chosen):>6}{refused:>12}"
    step = np.abs([found[0] for _, found in errors]) * 100
    stall = np.abs([found[1] for _, found in errors]) * 100
    same_step = np.abs([case.before.step_ns / case.after.step_ns - 1 for case, _ in errors]) * 100
    same_stall = np.abs([case.before.stall_ratio - case.after.stall_ratio for case, _ in errors]) * 100
    within = [float(np.mean([found[which] for _, found in errors])) for which in (2, 3)]
    return (
        f"{name:<34}{len(chosen):>6}{refused:>12}"
        f"{step.mean():>8.2f} {np.median(step):>6.2f} {np.quantile(step, 0.95):>6.1f}{same_step.mean():>10.1f}"
        f"{stall.mean():>10.2f}{same_stall.mean():>10.2f}{within[0]:>10.0%}{within[1]:>7.0%}"
    )


def table(found: Sequence[Case]) -> Iterator[str]:
    """Yield the report on all cases."""
    above = f"{'step, error in %':>22}{'as':>10}{'stall,':>10}{'as':>10}{'within 90 %':>17}"
    yield f"{'':<52}{above}"
    names = f"{'mean':>8} {'median':>6} {'p95':>6}{'before':>10}{'points':>10}{'before':>10}{'step':>10}{'stall':>7}"
    yield f"{'':<34}{'cases':>6}{'refused':>12}{names}"
    yield line("all", found)
    for transport in TRANSFER_MS:
        for compute in ("sleep", "matmul"):
            name = f"{transport}, {compute}"
            kind = transport, compute
            yield line(name, [c for c in found if (c.configuration.transport, c.configuration.compute) == kind])
    yield line("computes shorter than transfers", [c for c in found if c.configuration.bound])
    yield line("computes longer", [c for c in found if not c.configuration.bound])
    yield line("from or to prefetch step 0", [c for c in found if c.across])
    yield line("with a partial series", [c for c in found if c.partial])
    yield line("the same share", [c for c in found if c.recorded[0] == c.predicted[0]])


def repeats(pairs: Sequence[tuple[Outcome, Outcome]]) -> str:
    """Return a line on how much two runs of one setting differ."""
    step = np.array([abs(first.step_ns / second.step_ns - 1) for first, second in pairs]) * 100
    stall = np.array([abs(first.stall_ratio - second.stall_ratio) for first, second in pairs]) * 100
    return (
        f"{'the same settings again':<34}{len(pairs):>6}{'':>12}{step.mean():>8.2f} {np.median(step):>6.2f} "
        f"{np.quantile(step, 0.95):>6.1f}{'':>10}{stall.mean():>10.2f}"
    )


def main() -> None:
    """Measure, predict and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", type=int, default=36, help="six cases each (default 36)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run (default 1.5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--simulate", action="store_true", help="simulated ranks instead of real ones")
    parser.add_argument("--no-profile", action="store_true", help="predict from the records alone, without a probe")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"], os.environ["GLOO_SOCKET_IFNAME"] = "1", "lo"
    works = list(configurations(arguments.configurations, arguments.seed))
    with tempfile.TemporaryDirectory(prefix="swtrace-plan-", dir="/dev/shm") as folder:
        profile = None if arguments.simulate or arguments.no_profile else probe(Path(folder))

        def outcomes_of(work: Configuration, settings: list[Setting]) -> list[Outcome]:
            if arguments.simulate:
                return simulate(work, settings)
            with tempfile.TemporaryDirectory(dir=folder) as rings:
                return carry_out(work, settings, arguments.seconds, Path(rings))

        results = list(cases(works, outcomes_of, profile))
    print(f"$ {' '.join(['python -m benchmarks.plan', *sys.argv[1:]])}")
    found = [case for of_work, _ in results for case in of_work]
    for text in table(found):
        print(text.rstrip())
    print(repeats([pair for _, pair in results]).rstrip())


if __name__ == "__main__":
    main()
