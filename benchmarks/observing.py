"""Cost of observing, in ns per layer: reach, wait and what the end of the step adds.

Each forward reaches a layer and calls what its linear calls before it begins, but computes nothing: caches are warm,
and beside a real forward it costs more (``benchmarks/tracing.py``). *Direct* is plain torch; *operators* are what
vLLM's models call, compiled or not. In a *timed* step each layer also has a record, which is written at the step's end.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from swtrace.series import RankGroup, Series, operations
from swtrace.settings import Settings
from swtrace.share import Share
from swtrace.trace.identity import RankIdentity
from swtrace.trace.recorder import Recorder
from swtrace.trace.schema import RUN_STEPS

STEPS = 2000


@contextmanager
def observed(folder: Path, layers: int, time_every: int) -> Iterator[Series]:
    """Yield a series of linears that are observed on one rank."""
    recorder = Recorder.create(folder, RankIdentity("bench", 0, "host", "boot", os.getpid(), time.time_ns()))
    series = Series(
        f"every {time_every}",
        RankGroup((0,), 0),
        0,
        layers,
        recorder=recorder,
        hook_forward=False,
        time_every=time_every,
        settings=Settings(share=Share("none")),
    )
    for layer in range(layers):
        series.register(layer, nn.Linear(1, 1))
    series.post_process()
    yield series
    series.close()
    recorder.close()


def per_layer_ns(series: Series, layers: int, mark: Callable[[int], None]) -> tuple[float, float]:
    """Return the lower quartile of what marking a layer takes, and of what the step's begin and end add."""
    marking, rest = [], []
    for step in range(STEPS):
        begun_ns = time.perf_counter_ns()
        with series.step():
            first_ns = time.perf_counter_ns()
            for layer in range(layers):
                mark(layer)
            last_ns = time.perf_counter_ns()
        ended_ns = time.perf_counter_ns()
        if step >= RUN_STEPS:  # the first steps are timed in any case
            marking.append((last_ns - first_ns) / layers)
            rest.append((first_ns - begun_ns + ended_ns - last_ns) / layers)
    return statistics.quantiles(marking)[0], statistics.quantiles(rest)[0]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=61)
    layers: int = parser.parse_args().layers
    torch.set_num_threads(1)
    order = torch.zeros(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {layers} layers; ns per layer")
    print(f"{'':24}{'reach and wait':>16}{'end of step':>14}")
    for timed, time_every in (("timed", 1), ("untimed", 1 << 20)):
        with (
            tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
            observed(Path(folder), layers, time_every) as series,
        ):

            def direct(layer: int, series: Series = series) -> None:
                series.reach(layer)
                series.wait(layer)

            def through_operators(layer: int, number: int = series.number) -> None:
                operations.reach(order, number, layer)
                operations.wait(order, number, layer)

            for name, mark in (("direct", direct), ("operators", through_operators)):
                marking, rest = per_layer_ns(series, layers, mark)
                print(f"{f'{name}, {timed} step':24}{marking:16,.0f}{rest:14,.0f}")


if __name__ == "__main__":
    main()
