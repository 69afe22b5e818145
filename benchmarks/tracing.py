"""Cost of tracing in a rank: real vLLM on two gloo ranks, with tracing switched step by step within one run.

Each decode step runs untraced, timed, or only counted. Steps form groups of three, one of each kind in random
order, which is the same on both ranks. The benchmark compares the time from the beginning of one step to that of
the next, with everything in it: records, window table, and the completion callbacks on gloo's thread. For each group
it computes the difference to the untraced step, as the mean of both ranks. The result is the mean over all groups
without the upper and lower tenth, with a 95 % bootstrap interval.

A run that times one step in n costs (timed + (n - 1) x counted) / n, which gives the curve. Needs vLLM:
``make bench-tracing``. The result is written to ``benchmarks/results/tracing.txt``.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swtrace.cli.vllm_ranks import TinyLlama, Workload, run_ranks

UNTRACED, TIMED, COUNTED = KINDS = ("untraced", "timed", "counted")
EVERY = (1, 2, 4, 8, 16, 32, 64)
SERIES = "self_attn.o_proj"
TOKENS = 240
REQUESTS = 3
RESULT = Path(__file__).parent / "results" / "tracing.txt"

Step = tuple[str, int]
"""Kind and beginning in ns. The kind is empty if the step is not measured."""
Group = dict[str, float]
"""Duration by kind, in ns."""


def measure(llm: Any) -> list[Step]:
    """Generate in a rank that shares and traces one series, and return its steps."""
    from vllm import SamplingParams

    from swtrace.series.circle import Batch
    from swtrace.series.journal import Journal
    from swtrace.series.operations import numbered
    from swtrace.trace.schema import Phase

    (series,) = numbered()
    circle: Any = series._circle  # noqa: SLF001 - no public switch exists
    untraced: Journal[Any] = Journal()
    traced, begin = circle._journal, circle.begin_step  # noqa: SLF001
    chance = random.Random(1)  # noqa: S311 - the same order on both ranks
    steps: list[Step] = []
    plan: list[str] = []

    def begin_step(batch: Batch) -> None:
        kind = ""
        if batch.phase is not Phase.DECODE or batch.requests < REQUESTS:
            plan.clear()
        else:
            if not plan:
                plan.extend(chance.sample(KINDS, len(KINDS)))
            kind = plan.pop()
        circle._journal = untraced if kind == UNTRACED else traced  # noqa: SLF001
        traced._first_steps, traced._period = (1 << 32) * (kind == TIMED), 1 << 32  # noqa: SLF001
        steps.append((kind, time.monotonic_ns()))
        begin(batch)

    circle.begin_step = begin_step
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [7 + request, 9, 11]} for request in range(REQUESTS)]
    for _ in range(int(os.environ["BENCHMARK_ROUNDS"])):
        llm.generate(prompts, sampling, use_tqdm=False)
        steps.append(("", time.monotonic_ns()))
    return steps


def groups(ranks: list[list[Step]]) -> list[Group]:
    """Return the complete groups, each as a mean over the ranks."""
    kinds = [kind for kind, _ in ranks[0]]
    found, at = [], 0
    while at + len(KINDS) < len(kinds):
        if sorted(kinds[at : at + len(KINDS)]) != sorted(KINDS):
            at += 1
            continue
        spans = range(at, at + len(KINDS))
        found.append({kinds[i]: statistics.mean(rank[i + 1][1] - rank[i][1] for rank in ranks) for i in spans})
        at += len(KINDS)
    return found


def trimmed(values: list[float]) -> float:
    """Return the mean without the upper and lower tenth."""
    tenth = len(values) // 10
    return statistics.mean(sorted(values)[tenth : len(values) - tenth])


def with_interval(found: list[Group], value: Callable[[Group], float], resamples: int = 2000) -> str:
    """Return the trimmed mean of a value over all groups, with its interval, as text."""
    values = [value(group) for group in found]
    chance = random.Random(2)  # noqa: S311 - a bootstrap
    means = sorted(trimmed(chance.choices(values, k=len(values))) for _ in range(resamples))
    low, high = means[resamples // 40], means[-resamples // 40]
    return f"{trimmed(values):+8.2f} % [{low:+.2f}, {high:+.2f}]"


def report(found: list[Group], layers: int) -> list[str]:
    """Return the lines of the result."""
    base = statistics.median(group[UNTRACED] for group in found)

    def cost(every: int) -> Callable[[Group], float]:
        def of_group(group: Group) -> float:
            timed, counted = (group[kind] - group[UNTRACED] for kind in (TIMED, COUNTED))
            return 100 * (timed + (every - 1) * counted) / every / base

        return of_group

    counted = with_interval(found, lambda group: 100 * (group[COUNTED] - group[UNTRACED]) / base)
    return [
        f"{layers} layers, {len(found)} groups of three steps, an untraced step takes {base / 1e6:.1f} ms (median)",
        "",
        f"{'SWTRACE_TIME_EVERY':>20}  of step time [95 %]",
        *(f"{every:>20}  {with_interval(found, cost(every))}" for every in EVERY),
        f"{'counted steps only':>20}  {counted}",
    ]


def main() -> None:
    """Measure, print and save the result."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10, help=f"of {TOKENS} steps")
    parser.add_argument("--save", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swtrace-tracing-") as name:
        folder = Path(name)
        (folder / "rings").mkdir(mode=0o700)
        TinyLlama(layers=options.layers, hidden=options.hidden).save(folder / "model")
        environment = {
            "SWTRACE": "1",
            "SWTRACE_DIR": str(folder / "rings"),
            "SWTRACE_SERIES": SERIES,
            "SWTRACE_STRICT": "1",
            "BENCHMARK_ROUNDS": str(options.rounds),
        }
        workload = Workload(folder / "model", tokens=1, inspect=measure)
        ranks = run_ranks(workload, folder, environment=environment)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    model = f"random Llama of width {options.hidden}, eager, {REQUESTS} requests, k = 1"
    lines = [
        f"$ python -m benchmarks.tracing {' '.join(sys.argv[1:])}".rstrip(),
        f"{machine}; two ranks of vLLM on gloo; {model}",
        *report(groups([rank.inspected for rank in ranks]), options.layers),
    ]
    print("\n".join(lines))
    options.save.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
