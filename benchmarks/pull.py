"""What sharing costs by broadcast (gloo) and by pull, next to resident weights: ``python -m benchmarks.pull``.

All three have the same layers and the same compute. Their ranks live at the same time and run in turn, so that
whatever else the machine does meets all of them. The columns of a configuration are:

- ``step``: time until every rank has run the steps of a repetition, divided by their number;
- ``of resident``: the same as a multiple of the step with resident weights in the same repetition;
- ``waiting``: how long a rank waits for other ranks' layers per step, mean of the ranks;
- ``CPU``: CPU time per step of all ranks together, with all their threads (copier, gloo);
- ``memory``: what the model adds to the host's memory per rank, counting a shared page once.

Each is the median over the repetitions, ``step`` with the smallest and the largest. ``sleep`` computes without the
cores, ``matmul`` with them. The lines with ``alone`` are of one rank that runs steps while the others idle, which
needs no lockstep. Then follows what one transfer at a time, with nothing else to do, brings a rank per second.
Results: ``benchmarks/results/pull.txt``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtrace.placement import source_rank
from tests.support.ranks import Rank, fork_server, ranks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swtrace.series import Series

LAYERS = 12
WARM_UP = 2
"""Steps of each of two runs before the first repetition."""
REPETITION_S = 0.5
"""About how long the slowest variant runs in a repetition."""
FEWEST, MOST = 2, 400
"""Steps of a repetition."""
START_NS = 20_000_000
"""From the command to run until all ranks begin."""
MIB = 1 << 20
FLOAT = 4


class Weights(StrEnum):
    """Where a rank's weights come from."""

    RESIDENT = "resident"
    BROADCAST = "broadcast"
    PULL = "pull"


class Compute(StrEnum):
    """What a rank does in a layer, after its wait."""

    NOTHING = "nothing"
    SLEEP = "sleep"
    """A product with one vector, then sleep until the layer has lasted ``amount`` ms."""
    MATMUL = "matmul"
    """A product with ``amount`` vectors."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the ranks of a set run."""

    ranks: int
    mib: int
    """Size of a layer."""
    compute: Compute
    amount: float = 0.0
    weights: Weights = Weights.RESIDENT
    prefetch_step: int = 1


@dataclass(frozen=True, slots=True)
class Ran:
    """One repetition on one rank."""

    ns: int
    """From the common beginning to this rank's end."""
    waiting_ns: int


@dataclass(frozen=True, slots=True)
class Figures:
    """One repetition on all ranks, in ns per step."""

    step: float
    waiting: float
    cpu: float


def computes(mib: int) -> list[tuple[str, Compute, float]]:
    """Return computes that hide a transfer of this size if cores are free, and computes that do not."""
    return [
        ("long", Compute.SLEEP, 3.0 * mib),
        ("short", Compute.SLEEP, 0.1 * mib),
        ("long", Compute.MATMUL, 256),
        ("short", Compute.MATMUL, 4),
    ]


# ---- in a rank -----------------------------------------------------------------------------------


def serve(rank: int, ends: Sequence[Connection], work: Work, folder: str) -> None:
    """Build the model, say how much memory the rank had before, and run steps as commanded."""
    import ctypes

    import torch

    torch.set_grad_enabled(False)
    ctypes.CDLL(None).prctl(29, 1000, 0, 0, 0)  # timers of sleeps are exact to 1 us instead of 50
    connection = ends[rank]
    connection.send(memory(os.getpid()))
    series, linears = _build(work, folder)
    width = linears[0].in_features
    tokens = int(work.amount) if work.compute is Compute.MATMUL else 1
    inputs = torch.ones(tokens, width)
    connection.send("ready")
    while (order := connection.recv()) is not None:
        steps, begin_ns = order
        time.sleep(max(0, begin_ns - time.monotonic_ns()) * 1e-9)
        waiting_ns = sum(_step(rank, series, linears, inputs, work) for _ in range(steps))
        connection.send(Ran(time.monotonic_ns() - begin_ns, waiting_ns))
    if series is not None:
        series.close()


def _build(work: Work, folder: str) -> tuple[Series | None, list[nn.Linear]]:
    import torch
    from torch import nn

    from swtrace.series import RankGroup, Series
    from swtrace.settings import Settings

    series = None
    if work.weights is not Weights.RESIDENT:
        settings = Settings(directory=Path(folder), transport=work.weights.value)
        step = work.prefetch_step
        series = Series("pull", RankGroup.world(), 0, LAYERS, prefetch_step=step, settings=settings)
    generator = torch.Generator().manual_seed(1)
    width = round((work.mib * MIB / FLOAT) ** 0.5)
    linears = []
    for layer in range(LAYERS):
        linear = nn.Linear(width, width, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.randn(width, width, generator=generator), requires_grad=False)
        if series is not None:
            series.register(layer, linear)
        linears.append(linear)
    if series is not None:
        series.post_process()
    return series, linears


def _step(rank: int, series: Series | None, linears: list[nn.Linear], inputs: Tensor, work: Work) -> int:
    """Run one step; return how long it waited for other ranks' layers, in ns."""
    now, waiting = time.monotonic_ns, 0
    with series.step() if series is not None else nullcontext():
        for layer, linear in enumerate(linears):
            begin = now()
            if series is not None:
                series.reach(layer)
                reached = now()
                series.wait(layer)
                begin = now()
                if source_rank(layer, work.ranks) != rank:
                    waiting += begin - reached
            if work.compute is not Compute.NOTHING:
                linear(inputs)
            if work.compute is Compute.SLEEP and (left := begin + work.amount * 1e6 - now()) > 0:
                time.sleep(left * 1e-9)
    return waiting


# ---- in the parent -------------------------------------------------------------------------------


def memory(pid: int) -> int:
    """Return a process's bytes of heap and shared memory; a shared page that n processes map counts 1/n in each."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Anonymous:", "Pss_Shmem:")))


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process's threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks)


class RankSet:
    """The ranks of one variant, which wait for orders."""

    def __init__(self, started: Sequence[Rank], ends: Sequence[Connection]) -> None:
        """Wait until the ranks are ready."""
        self._started = started
        self._ends = ends
        self._pids = [rank.process.pid or 0 for rank in started]
        self._before = [self._answer(rank) for rank in range(len(ends))]
        for rank in range(len(ends)):
            self._answer(rank)

    def run(self, steps: int, running: int | None = None) -> Figures:
        """Run steps on the first ``running`` ranks, by default on all."""
        ends = self._ends[:running]
        cpu = sum(map(cpu_ns, self._pids))
        begin_ns = time.monotonic_ns() + START_NS
        for end in ends:
            end.send((steps, begin_ns))
        ran: list[Ran] = [self._answer(rank) for rank in range(len(ends))]
        cpu = sum(map(cpu_ns, self._pids)) - cpu
        waiting = statistics.fmean(rank.waiting_ns for rank in ran)
        return Figures(max(rank.ns for rank in ran) / steps, waiting / steps, cpu / steps)

    def memory(self) -> float:
        """Return what the model added to the host's memory, per rank, in bytes."""
        return statistics.fmean(memory(pid) - before for pid, before in zip(self._pids, self._before, strict=True))

    def end(self) -> None:
        """Let the ranks end."""
        for end in self._ends:
            end.send(None)
        for rank in self._started:
            rank.result()
        for rank in self._started:
            rank.process.join()

    def _answer(self, rank: int) -> Any:
        while not self._ends[rank].poll(0.1):
            if self._started[rank].connection.poll():
                self._started[rank].result()
        return self._ends[rank].recv()


@contextmanager
def rank_set(work: Work, folder: str) -> Iterator[RankSet]:
    """Start the ranks of a variant."""
    pipes = [fork_server().Pipe() for _ in range(work.ranks)]
    theirs = [end for _, end in pipes]
    with ranks(work.ranks, serve, theirs, work, folder) as started:
        made = RankSet(started, [end for end, _ in pipes])
        yield made
        made.end()


def in_turn(sets: Sequence[tuple[RankSet, int | None]], repetitions: int) -> list[list[Figures]]:
    """Run sets in turn, each on so many of its ranks; return their figures by repetition."""
    slowest = max(each.run(WARM_UP, running).step for each, running in sets for _ in range(2))
    steps = min(MOST, max(FEWEST, round(REPETITION_S * 1e9 / slowest)))
    return [[each.run(steps, running) for each, running in sets] for _ in range(repetitions)]


def compare(work: Work, repetitions: int, folder: str) -> Iterator[str]:
    """Yield a line on each variant of a configuration."""
    with ExitStack() as stack:
        sets = {each: stack.enter_context(rank_set(replace(work, weights=each), folder)) for each in Weights}
        variants: list[tuple[Weights, int | None]] = [(each, None) for each in Weights]
        variants += [(Weights.RESIDENT, 1), (Weights.PULL, 1)]
        repeated = in_turn([(sets[weights], running) for weights, running in variants], repetitions)
        for i, (weights, running) in enumerate(variants):
            resident = variants.index((Weights.RESIDENT, running))
            ran = [figures[i] for figures in repeated]
            step = [figures.step / 1e6 for figures in ran]
            spread = f"[{min(step):.2f}, {max(step):.2f}]"
            multiple = statistics.median(figures[i].step / figures[resident].step for figures in repeated)
            yield (
                f"  {weights + (', alone' if running else ''):<16}{statistics.median(step):>9.2f} {spread:<18}"
                f"{multiple:>8.2f}"
                f"{statistics.median(figures.waiting for figures in ran) / 1e6:>10.2f}"
                f"{statistics.median(figures.cpu for figures in ran) / 1e6:>9.1f}"
                f"{'' if running else format(sets[weights].memory() / MIB, '8.0f')}"
            )


def transfers(work: Work, repetitions: int, folder: str) -> Iterator[str]:
    """Yield a line on each way to read, with one transfer at a time per rank and no compute."""
    received = LAYERS * (work.ranks - 1) / work.ranks * work.mib * MIB
    with ExitStack() as stack:
        broadcast, pull = (
            stack.enter_context(rank_set(replace(work, weights=weights), folder))
            for weights in (Weights.BROADCAST, Weights.PULL)
        )
        repeated = in_turn([(broadcast, None), (pull, None), (pull, 1)], repetitions)
        names = ("broadcast, all ranks", "pull, all ranks at once", "pull, one rank reads")
        for i, name in enumerate(names):
            rates = [received / figures[i].step for figures in repeated]
            each = statistics.median(figures[i].step / (received / work.mib / MIB) / 1e6 for figures in repeated)
            yield (
                f"  {name:<24}{statistics.median(rates):>6.2f} GB/s [{min(rates):.2f}, {max(rates):.2f}]"
                f"{each:>8.2f} ms per layer"
            )


def lines(number: int, sizes: Sequence[int], repetitions: int) -> Iterator[str]:
    """Yield the report."""
    cores = len(os.sched_getaffinity(0))
    crowded = f": the ranks share {cores} cores, so more than these can compute is waiting" if number > cores else ""
    yield f"{number} ranks, {LAYERS} layers, prefetch step 1, {cores} cores, {repetitions} repetitions{crowded}"
    with tempfile.TemporaryDirectory(prefix="swtrace-pull-", dir="/dev/shm") as folder:
        for mib in sizes:
            for what, compute, amount in computes(mib):
                unit = "ms per layer" if compute is Compute.SLEEP else "vectors"
                yield ""
                yield f"layers of {mib} MiB, {what} compute: {compute} of {amount:g} {unit}"
                yield f"{'':18}{'step':>9} {'':18}{'of':>8}{'waiting':>10}{'CPU':>9}{'memory':>8}"
                yield f"{'':18}{'ms':>9} {'':18}{'resident':>8}{'ms':>10}{'ms':>9}{'MiB':>8}"
                yield from compare(Work(number, mib, compute, amount), repetitions, folder)
            yield ""
            yield f"layers of {mib} MiB, no compute, one transfer at a time: what a rank receives"
            yield from transfers(Work(number, mib, Compute.NOTHING, prefetch_step=0), repetitions, folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 16], help="sizes of a layer; powers of 4")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"$ {' '.join(['python -m benchmarks.pull', *sys.argv[1:]])}")
    for line in lines(arguments.ranks, arguments.mib, arguments.repetitions):
        print(line.rstrip(), flush=True)


if __name__ == "__main__":
    main()
