"""Tables of a series on a GPU with known durations. ``make test-gpu`` prints them after the tests.

``python -m benchmarks.device``. Transfers of 0.1, 1 and 10 ms run beside computes of 1 ms per layer, eagerly and
in replayed graphs. Spinning kernels record when they began and ended. These instants are the truth with which
recorded stalls and slacks are compared, beside a host timer around the same waits. Further tables show what every
linear read, many replays of a 61-layer graph, the cost of timing, and the uncertainty of the clocks.

``--simulated`` runs the same on a simulated device in virtual time. Its figures show that the program is correct and
say nothing about any GPU. Its costs count calls at an invented price.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from swtrace.series.device.accelerator import TorchDevice
from swtrace.series.device.event_clock import EventClock
from tests.support.device.claims import LAYERS, MS, STEPS, US, Timing, cost, long_run, mixture, timing
from tests.support.device.cuda_rig import CudaRig
from tests.support.device.rig import Rig, SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import DeviceClock

NewRig = Callable[[], Rig]
S = 1_000_000_000


def simulated() -> Rig:
    """Return a simulated device whose clock drifts and is as coarse as that of a GPU."""
    return SimulatedRig(SimulatedDevice(clock=DeviceClock(tick_ns=32), exact_events=False, call_ns=5 * US))


def milliseconds(ns: float) -> str:
    """Return a duration as text, in ms."""
    return f"{ns / MS:.3f}"


def microseconds(ns: float) -> str:
    """Return a short duration as text, in us."""
    return f"{ns / US:.2f}"


def mean(values: list[int]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def timings(new_rig: NewRig, folder: Path) -> tuple[Table, bool]:
    """Return a table of recorded and true stalls and slacks."""
    table = Table(title=f"stall and slack of a wait, mean, in ms ({LAYERS} layers of 1 ms, {STEPS} steps)")
    for column in ("transfer", "k", "how", "stall", "true", "slack", "true", "worst error us", "host timer", "verdict"):
        table.add_column(column, justify="right")
    good = True
    for transfer_ns in (100 * US, 1 * MS, 10 * MS):
        for prefetch_step in (1, 2):
            for replayed in (False, True):
                at = folder / f"{transfer_ns}-{prefetch_step}-{replayed}"
                found = timing(new_rig(), at, transfer_ns, prefetch_step=prefetch_step, replayed=replayed)
                kept = holds(found)
                good &= kept
                waits = found.waits
                every_wait = STEPS * LAYERS // 2
                table.add_row(
                    f"{transfer_ns / MS:g}",
                    str(prefetch_step),
                    "replayed" if replayed else "eager",
                    milliseconds(mean([wait.stall_ns for wait in waits])),
                    milliseconds(mean([wait.true_stall_ns for wait in waits])),
                    milliseconds(mean([wait.slack_ns for wait in waits])),
                    milliseconds(mean([wait.true_slack_ns for wait in waits])),
                    microseconds(found.worst_ns),
                    "none to see" if replayed else milliseconds(found.naive_ns / every_wait),
                    "within" if kept else "NOT WITHIN",
                )
    return table, good


def holds(found: Timing) -> bool:
    """Return whether a run is within 5 us or 1 %, with no untimed step and no stale read."""
    reads, failed = found.readings
    within = all(wait.close_enough for wait in found.waits)
    return within and not found.untimed and reads == 2 * STEPS * LAYERS and not failed


def bytes_read(new_rig: NewRig, folder: Path, replays: int) -> tuple[Table, bool]:
    """Return a table of how often linears read their own weight."""
    table = Table(title="bytes that linears read, compared on the device")
    for column in ("scenario", "comparisons", "failed", "verdict"):
        table.add_column(column, justify="right")
    good = True
    for layers, prefetch_step, transfer_ns in ((7, 1, 1 * US), (7, 1, 200 * US), (8, 2, 1 * US), (8, 2, 200 * US)):
        at = folder / f"mix-{layers}-{transfer_ns}"
        expected, made, failed = mixture(
            new_rig(), at, layers=layers, prefetch_step=prefetch_step, transfer_ns=transfer_ns, steps=100
        )
        kept = made == expected and not failed
        good &= kept
        what = f"eager, replayed, aborted: {layers} layers, k = {prefetch_step}, {transfer_ns // US} us"
        table.add_row(what, str(made), str(failed), "all right" if kept else "WRONG")
    run = long_run(new_rig(), folder / "long", replays=replays)
    kept = run.comparisons == 2 * run.layers * replays and not run.failed and run.outside_ns < 5 * US
    good &= kept
    what = (
        f"{replays} replays of {run.layers} layers; {run.timed} timed steps begin at most "
        f"{max(0, run.outside_ns) / US:.1f} us outside of what the host's clock allows"
    )
    table.add_row(what, str(run.comparisons), str(run.failed), "all right" if kept else "WRONG")
    return table, good


VARIANTS: dict[str, dict[str, Any]] = {
    "not traced": {"traced": False},
    "traced, no step timed": {"time_every": 1 << 20},
    "traced, every step timed": {},
}


def costs(new_rig: NewRig, folder: Path) -> Table:
    """Return a table of the cost of timing, with its spread."""
    table = Table(title="cost of a series in us: median (least to most), 61 layers, k = 1, 12 rounds in turn")
    for column in ("", "eager, a layer", "eager, a step besides", "replay, a step", "replay, a layer in all"):
        table.add_column(column, justify="right")
    for name, found in cost(new_rig(), folder / "cost", VARIANTS).items():
        table.add_row(name, *map(spread, zip(*found, strict=True)))
    return table


def calls() -> Table:
    """Return a table of what single calls, timed in loops, cost the launching thread."""
    device = TorchDevice(torch.device("cuda", torch.cuda.current_device()))
    stream, side = device.current_stream(), device.prefetch_stream()
    timed, plain = device.event(timed=True), device.event(timed=False)
    stamps = device.stamps(1)

    def on_side() -> None:
        with device.on(side):
            pass

    table = Table(title="a call in us: median (least to most) of 9 loops of 400")
    table.add_column("")
    table.add_column("launching thread", justify="right")
    for name, call in (
        ("current stream", device.current_stream),
        ("make a stream current, and back", on_side),
        ("record an event", lambda: plain.record(stream)),
        ("record a timed event", lambda: timed.record(stream)),
        ("let a stream wait for an event", lambda: side.wait_event(plain)),
        ("ask for an event", timed.query),
        ("elapsed time between events", lambda: timed.elapsed_time(timed)),
        ("a stamp, outside of a graph", lambda: stamps.stamp(0)),
    ):
        lasted = []
        for _ in range(9):
            torch.cuda.synchronize()
            begun_ns = device.host_ns()
            for _ in range(400):
                call()
            lasted.append((device.host_ns() - begun_ns) / 400)
        table.add_row(name, spread(lasted))
    return table


def clocks() -> Table:
    """Return a table of the uncertainty of both device clocks after four seconds."""
    device = TorchDevice(torch.device("cuda", torch.cuda.current_device()))
    stamps, events = device.stamps(1).clock, EventClock(device)
    until_ns = device.host_ns() + 4 * S
    while (now_ns := device.host_ns()) < until_ns:
        stamps.renew_if_due(now_ns)
        events.renew_if_due(now_ns)
        time.sleep(0.01)
    table = Table(title="clocks of the device after 4 s")
    for column in ("", "tick, ns", "bound, us", "anchors passed over"):
        table.add_column(column, justify="right")
    table.add_row("events", "", microseconds(events.error_ns), str(events.passed_over))
    table.add_row("stamps", str(stamps.tick_ns), microseconds(stamps.error_ns), str(stamps.passed_over))
    return table


def spread(values: Sequence[float]) -> str:
    """Return a median and its range as text, in us."""
    low, middle, high = (value / US for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def main() -> int:
    """Print the tables. Return 1 if a run missed its limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", action="store_true", help="on a simulated device: says nothing about a GPU")
    parser.add_argument("--replays", type=int, default=10_000, help="of the 61-layer graph (default: %(default)s)")
    options = parser.parse_args()
    console = Console(width=max(120, Console().width))
    if options.simulated:
        console.print("SIMULATED DEVICE, virtual time: no figure here is of a GPU")
    elif torch.cuda.is_available():
        console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    else:
        console.print(f"torch {torch.__version__} finds no CUDA device here; nothing was measured")
        return 2
    new_rig: NewRig = simulated if options.simulated else CudaRig
    with tempfile.TemporaryDirectory() as folder:
        table, timed_well = timings(new_rig, Path(folder))
        console.print(table)
        table, read_well = bytes_read(new_rig, Path(folder), options.replays)
        console.print(table)
        console.print(costs(new_rig, Path(folder)))
    if not options.simulated:
        console.print(calls())
        console.print(clocks())
    return 0 if timed_well and read_well else 1


if __name__ == "__main__":
    sys.exit(main())
