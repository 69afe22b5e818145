"""Effect of viewers on ranks: the demo's step time with 0, 1 and 5 terminals on its rings, in one run.

``python -m benchmarks.viewers``. Turns of a few seconds with each number of viewers alternate for several rounds, over
one demo that hides its broadcasts behind sleeping compute. Step times are medians per turn, and the figures are ratios
to the preceding turns without viewers. Viewers that need more cores than are free slow down all processes, so their
CPU use is printed too.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.heatmap import Viewer, serve
from swtrace.observing import watch_rings

COUNTS = (0, 1, 5)


def main() -> None:
    """Run the demo, with viewers on its rings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turn", type=float, default=6.0, help="seconds of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    # Starting viewers costs CPU, so a turn begins once all of them have settled.
    settle = arguments.turn / 2
    duration = arguments.rounds * len(COUNTS) * (arguments.turn + settle) + 20
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        demo = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "swtrace",
                "demo",
                "--scenario",
                "hidden",
                "--no-daemon",
                "--duration",
                f"{duration}",
            ],
            env={**os.environ, "SWTRACE_DIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _measure(Path(folder), arguments.turn, settle, arguments.rounds)
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(60)


def _measure(directory: Path, turn_s: float, settle_s: float, rounds: int) -> None:
    watch = watch_rings(directory, keep_steps=True)
    deadline = time.monotonic() + 60
    while not watch.take_steps():
        if time.monotonic() > deadline:
            raise SystemExit("the demo finished no step")
        watch.drain()
        time.sleep(0.2)
    medians: dict[int, list[float]] = {count: [] for count in COUNTS}
    shares: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(rounds):
        for count in COUNTS:
            viewers = [Viewer(["-m", "swtrace", "top", "--dir", str(directory)]) for _ in range(count)]
            for viewer in viewers:
                viewer.start()
            try:
                _serve(viewers, settle_s)
                watch.drain()
                watch.take_steps()
                before = sum(viewer.cpu() for viewer in viewers)
                _serve(viewers, turn_s)
                shares[count].append((sum(viewer.cpu() for viewer in viewers) - before) / turn_s)
                watch.drain()
                medians[count].append(
                    statistics.median(int(step.duration_ns.max()) / 1e6 for step in watch.take_steps())
                )
            finally:
                for viewer in viewers:
                    viewer.stop()
    watch.close()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {rounds} rounds")
    for count in COUNTS:
        ratios = [with_them / without for with_them, without in zip(medians[count], medians[0], strict=True)]
        print(
            f"  {count} viewers: step {statistics.median(medians[count]):6.1f} ms, ratio to none "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), viewers' CPU "
            f"{100 * statistics.median(shares[count]):.0f} % of a core"
        )


def _serve(viewers: list[Viewer], seconds: float) -> None:
    if viewers:
        serve(viewers, seconds)
    else:
        time.sleep(seconds)


if __name__ == "__main__":
    main()
