"""Error of the alignment of clocks: real gloo ranks on three hosts whose clocks differ by a known offset.

The hosts are namespaces of this machine (``tests/support/hosts.py``), so all their clocks are one clock of the kernel
plus an offset that is known to the nanosecond. Each of the three ranks keeps a third of 12 layers of 1 MiB. The error
is that of the offset that the ledger uses in a step, over all steps and both clocks that it aligns to the first.
``python -m benchmarks.hosts``. With ``--stragglers N``, instead: how often the stragglers of *N* simulated runs are
named if all ranks are on one host, and if they are on two or three. Results: ``benchmarks/results/hosts.txt``.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from tests.support import feeding
from tests.support.host_clocks import HostClock, Hosts
from tests.support.host_series import LAYERS, HostSeries, run
from tests.support.hosts import Delay
from tests.support.schedules import simulate

HOUR_S = 3600
AHEAD_S = (2 * HOUR_S, 5 * HOUR_S, 0)
FAR = 2
"""The host whose link ``--towards`` and ``--back`` delay."""
US = 1_000


def line(name: str, shown: HostSeries, first: int) -> str:
    """Return the figures of the steps from ``first`` on, as text."""
    steps = sum(step.step >= first for step in shown.steps)
    compared = [step for step in shown.compared if step.step >= first]
    error = np.abs(np.array([shown.error_ns(step)[1:] for step in compared])) / US
    bound = np.array([step.clock_bound_ns[1:] for step in compared]) / US
    duration = np.array([step.duration_ns.max() for step in compared]) / US / 1000
    by_clock = ", ".join(f"{value:.1f}" for value in np.median(error, axis=0))
    return (
        f"{name:<12} {len(compared):5} of {steps:<5} {np.median(duration):6.1f}"
        f" {np.median(error):9.1f} {np.quantile(error, 0.99):9.1f}   ({by_clock})"
        f" {np.median(bound):9.1f} {100 * np.mean(error <= bound):9.2f} %"
    )


def stragglers(runs: int) -> Counter[str]:
    """Simulate runs, most of them with a slow rank, and count whom the ledger names on one and on several clocks."""
    counts = Counter({"runs": runs})
    for seed in range(runs):
        chance = random.Random(seed)  # noqa: S311 - repeatable
        ranks, hosts = chance.choice([3, 4, 6]), chance.choice([2, 3])
        slow_us, slow_rank = chance.choice([0, 0, 1, 1, 1]) * chance.randrange(60, 700), chance.randrange(ranks)
        counts["slow"] += slow_us > 0

        schedule = simulate(
            ranks=ranks,
            layers=8,
            k=chance.choice([1, 2]),
            steps=48,
            queue="receiver",
            compute=partial(_compute, chance, slow_rank, slow_us),
            latency=chance.choice([30, 100, 300]) * US,
            occupancy=chance.choice([100, 400, 900]) * US,
            origin=10**9,
        )
        clocks = [HostClock(777 * 10**9 * host, (host - 1) * 45e-6) for host in range(hosts)]
        of_hosts = Hosts(schedule, tuple(chance.randrange(hosts) for _ in range(ranks)), clocks).fed()
        of_one = feeding.ledger(schedule)
        feeding.feed(of_one, schedule)
        for name, ledger in (("one host", of_one), ("several hosts", of_hosts)):
            for straggler in ledger.facts().series[0].stragglers:
                right = slow_us and [rank.rank for rank in straggler.ranks] == [slow_rank]
                counts[f"{name}: {'right' if right else 'wrong'}"] += 1
    return counts


def _compute(chance: random.Random, slow_rank: int, slow_us: int, rank: int, _step: int, _position: int) -> int:
    return (int(chance.gauss(1500, 150)) + (slow_us if rank == slow_rank else 0)) * US


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--settled", type=int, default=20, help="first step of the second line")
    parser.add_argument("--compute", type=float, default=0.5, help="of each layer, in ms")
    parser.add_argument("--towards", type=float, default=0.0, help="delay of packets to the third host, in ms")
    parser.add_argument("--back", type=float, default=0.0, help="delay of packets from the third host, in ms")
    parser.add_argument("--stragglers", type=int, default=0, help="simulate so many runs, and measure nothing else")
    arguments = parser.parse_args()
    if arguments.stragglers:
        print(dict(sorted(stragglers(arguments.stragglers).items())))
        return
    delay = Delay(towards_s=arguments.towards / 1e3, back_s=arguments.back / 1e3)
    delays = {FAR: delay} if delay != Delay() else None
    print(f"3 hosts, {LAYERS} layers of 1 MiB, {len(os.sched_getaffinity(0))} cores")
    print(
        f"{'':12} {'compared steps':>14} {'step ms':>7} {'|error| us':>10} {'99 %':>7}   (each clock)"
        f" {'bound us':>9} {'within':>9}"
    )
    for repetition in range(1, arguments.repetitions + 1):
        with tempfile.TemporaryDirectory() as folder:
            shown = run(Path(folder), AHEAD_S, steps=arguments.steps, compute_s=arguments.compute / 1e3, delays=delays)
        print(line(f"{repetition}: all", shown, 0))
        print(line(f"   from {arguments.settled}", shown, arguments.settled))
        print(f"   load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
