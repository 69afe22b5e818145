"""Cost of the terminal's heat map while ranks write, compared with a naive one that updates every cell of a DataTable.

``python -m benchmarks.heatmap``. Ranks are simulated (:mod:`benchmarks.simulated_ranks`): another process copies
prepared records into rings at the given rate, and its share of a core is printed. Each viewer runs in its own
terminal (a pty) and reads the same rings. CPU shares are of one core. Frames are those that were drawn. The share of
records read is of those written in the meantime: a viewer that cannot keep up skips some, says so, and keeps drawing.
"Screen alone" excludes the thread that reads rings and keeps the ledger; a process with only that thread is measured
for comparison. All of them take turns, so that they see the same machine.
``--beside FOLDER`` also runs the heat map of another checkout, to compare before and after.
``--memory 600`` measures the resident memory of the viewer instead.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import queue
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.text import Text
from swtrace_tui.app import TopApp
from swtrace_tui.feed import Feed
from swtrace_tui.palette import DARK
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views.heat_map import METRICS, level, values
from textual.app import App, ComposeResult
from textual.coordinate import Coordinate
from textual.widgets import DataTable

from swtrace.observing import Observation, watch_rings
from swtrace.trace.directory import ring_paths

ROOT = Path(__file__).resolve().parents[1]
SIZE = (150, 84)
"""Columns and lines. A DataTable with 64 rows fits."""
ROUNDS = 3
NEWEST_STEPS = 72
SETTLE_S = 3.0
"""Time for a viewer to catch up after its first steps, before it is measured."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Viewer:
    """A program in a terminal. Its output is read and discarded at once, like by a fast terminal."""

    arguments: list[str]
    checkout: Path | None = None
    """The checkout whose terminal to run; None for this one."""
    pid: int = 0
    descriptor: int = -1
    written: int = 0
    cpu_s: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Run it in a new pty."""
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm-256color"
            os.environ["COLORTERM"] = "truecolor"
            if self.checkout is not None:
                os.environ["PYTHONPATH"] = f"{self.checkout}:{self.checkout / 'tui'}"
            os.execv(sys.executable, [sys.executable, *self.arguments])  # noqa: S606 - our own programs
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0))

    def read(self) -> None:
        """Read and discard its output."""
        try:
            self.written += len(os.read(self.descriptor, 1 << 20))
        except OSError:
            return

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        numbers = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rsplit(") ", 1)[1].split()
        return (int(numbers[11]) + int(numbers[12])) / _TICKS

    def resident(self) -> int:
        """Return the resident memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.descriptor)


def serve(viewers: list[Viewer], seconds: float) -> None:
    """Read the viewers' output for a while."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([viewer.descriptor for viewer in viewers], [], [], left)
        for viewer in viewers:
            if viewer.descriptor in ready:
                viewer.read()


def writer(directory: Path, ranks: int, layers: int, rate: float, seconds: float) -> subprocess.Popen[bytes]:
    """Start the simulated ranks."""
    arguments = ["--ranks", ranks, "--layers", layers, "--rate", rate, "--seconds", seconds]
    command = [sys.executable, "-m", "benchmarks.simulated_ranks", str(directory), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(ring_paths(directory)) < ranks and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


def compare(ranks: int, layers: int, rate: float, seconds: float, beside: Path | None) -> None:
    """Print the cost of each viewer."""
    kinds: list[tuple[str, str, Path | None]] = [("heat map", "--ours", None)]
    if beside is not None:
        kinds.append((f"heat map of {beside}", "--ours", beside))
    kinds += [("reading alone", "--reading", None), ("DataTable", "--naive", None)]
    print(f"{ranks} ranks x {layers} layers x {rate:g} steps/s, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    reports_by_name: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in kinds}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        ranks_process = writer(Path(folder), ranks, layers, rate, 10 * len(kinds) * (seconds + 10))
        time.sleep(2)
        try:
            for _ in range(ROUNDS):
                for name, kind, checkout in kinds:
                    report = measure(folder, kind, seconds, checkout)
                    if report is None:
                        print(f"  {name} showed no steps in time: the machine is too busy")
                    else:
                        reports_by_name[name].append(report)
        finally:
            ranks_process.terminate()
            ranks_process.wait()
    for name, reports in reports_by_name.items():
        if reports:
            print(
                f"  {name}: CPU {shares(reports, 'cpu_s')} % of a core, screen alone {shares(reports, 'screen_s')} %,"
            )
            frames = statistics.median(each["frames"] / each["wall_s"] for each in reports)
            read = [100 * each["read"] / each["written"] for each in reports]
            print(
                f"    {frames:.1f} frames/s, {cpu_ms_a_frame(reports):.1f} ms CPU a frame, of that, screen"
                f" {cpu_ms_a_frame(reports, 'screen_s'):.1f} ms, {statistics.median(read):.1f} % of the records read"
                f" ({min(read):.1f} to {max(read):.1f})"
            )


def shares(reports: list[dict[str, float]], of: str) -> str:
    """Return the median share of a core and its range over the turns."""
    share = [100 * each[of] / each["wall_s"] for each in reports]
    return f"{statistics.median(share):.1f} ({min(share):.1f} to {max(share):.1f})"


def cpu_ms_a_frame(reports: list[dict[str, float]], of: str = "cpu_s") -> float:
    """Return the median."""
    return statistics.median(1e3 * each[of] / max(1, each["frames"]) for each in reports)


def measure(folder: str, kind: str, seconds: float, checkout: Path | None) -> dict[str, float] | None:
    """Run a viewer and return its report."""
    report = Path(folder) / "report.json"
    viewer = Viewer([__file__, kind, folder, "--seconds", str(seconds), "--report", str(report)], checkout)
    viewer.start()
    try:
        deadline = time.monotonic() + seconds + 60
        while not report.exists() and time.monotonic() < deadline:
            serve([viewer], 0.2)
    finally:
        viewer.stop()
    if not report.exists():
        return None
    figures: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    report.unlink()
    return figures


def watch_memory(ranks: int, layers: int, rate: float, seconds: float) -> None:
    """Print the viewer's resident memory over time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        ranks_process = writer(Path(folder), ranks, layers, rate, seconds + 60)
        time.sleep(2)
        viewer = Viewer(["-m", "swtrace", "top", "--dir", folder, "--view", "heatmap"])
        viewer.start()
        sizes = []
        try:
            serve([viewer], 30)
            for _ in range(10):
                sizes.append(viewer.resident() / 2**20)
                serve([viewer], seconds / 10)
            sizes.append(viewer.resident() / 2**20)
        finally:
            viewer.stop()
            ranks_process.terminate()
            ranks_process.wait()
    print(f"{ranks} ranks x {layers} layers x {rate:g} steps/s, resident MiB every {seconds / 10:.0f} s:")
    print("  " + " ".join(f"{size:.1f}" for size in sizes) + f"  (last to first: {sizes[-1] / sizes[0]:.3f})")


class Meter:
    """Counts frames, CPU and records once the viewer has caught up, and then ends the application.

    Args:
        seconds: How long to count.
        report: Where to write the counts.
    """

    def __init__(self, seconds: float, report: Path) -> None:
        self._seconds, self._report = seconds, report
        self._frames = 0
        self._first_s = 0.0
        self._began: tuple[float, float, float, int, int] | None = None

    def frame(self, observation: Observation) -> bool:
        """Count a frame. Return whether it was the last one."""
        now = time.monotonic()
        statistics = [rank.ring.statistics for rank in observation.ranks]
        written, read = sum(each.written for each in statistics), sum(each.delivered for each in statistics)
        if self._began is None:
            if any(observation.history.values()):
                self._first_s = self._first_s or now
                if now - self._first_s >= SETTLE_S:
                    self._began = (now, time.process_time(), reading_s(), written, read)
            return False
        self._frames += 1
        began_s, cpu_s, reading_before_s, written_before, read_before = self._began
        if now - began_s < self._seconds:
            return False
        cpu_s = time.process_time() - cpu_s
        figures = {
            "frames": self._frames,
            "wall_s": now - began_s,
            "cpu_s": cpu_s,
            "screen_s": cpu_s - (reading_s() - reading_before_s),
            "written": written - written_before,
            "read": read - read_before,
        }
        partial = self._report.with_suffix(".partial")
        partial.write_text(json.dumps(figures), encoding="utf-8")
        partial.rename(self._report)
        return True


def reading_s() -> float:
    """Return the CPU seconds of the thread that reads rings and keeps the ledger."""
    (feed,) = (thread.ident for thread in threading.enumerate() if thread.name == "swtrace-feed")
    return time.clock_gettime(time.pthread_getcpuclockid(feed or 0))


def reading(directory: Path, meter: Meter) -> None:
    """Read the rings and keep the ledger as the terminal does, without a screen."""
    arrived: queue.SimpleQueue[Observation] = queue.SimpleQueue()
    feed = Feed(lambda: watch_rings(directory, newest_steps=NEWEST_STEPS), arrived.put, print)
    feed.start()
    while not meter.frame(arrived.get()):
        feed.taken()
    feed.stop()


def ours(directory: Path, meter: Meter) -> None:
    """Run the terminal with its heat map and count frames."""

    class Counted(TopApp):
        def on_top_app_arrived(self, message: TopApp.Arrived) -> None:
            # No super(): Textual calls the handlers of every class.
            if meter.frame(message.observation):
                self.exit()

    Counted(lambda: watch_rings(directory, newest_steps=NEWEST_STEPS), view="heatmap").run()


class Naive(App[None]):
    """The naive viewer. It has the same source and values, but updates every cell of a DataTable in every frame."""

    def __init__(self, directory: Path, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self._cells = [Text("  ", style=f"on {colour}") for colour in DARK.ramp("stall")]
        self._feed = Feed(
            lambda: watch_rings(directory, newest_steps=NEWEST_STEPS),
            lambda observation: self.call_from_thread(self._draw, observation),
            lambda error: self.call_from_thread(self.exit, return_code=1, message=str(error)),
        )

    def compose(self) -> ComposeResult:
        """Show the table."""
        yield DataTable(show_header=False)

    def on_mount(self) -> None:
        """Begin to watch."""
        self._feed.start()

    def _draw(self, observation: Observation) -> None:
        series = picture(observation, Filter()).focus
        if series is not None:
            self._fill(self.query_one(DataTable), level(values(series, METRICS[0], "mean")[0], 2e6).tolist())
        if self._meter.frame(observation):
            self.exit()
        self.call_after_refresh(self._feed.taken)

    def _fill(self, table: DataTable[Text], levels: list[list[int]]) -> None:
        if not table.row_count:
            for position in range(len(levels[0])):
                table.add_column(str(position), width=2)
            for _ in levels:
                table.add_row(*[self._cells[0]] * len(levels[0]))
        for row, line in enumerate(levels):
            for column, each in enumerate(line):
                table.update_cell_at(Coordinate(row, column), self._cells[each])


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout of swtrace")
    parser.add_argument("--memory", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reading", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--naive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, default=Path("report.json"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        ours(arguments.ours, Meter(arguments.seconds, arguments.report))
    elif arguments.reading:
        reading(arguments.reading, Meter(arguments.seconds, arguments.report))
    elif arguments.naive:
        Naive(arguments.naive, Meter(arguments.seconds, arguments.report)).run()
    elif arguments.memory:
        watch_memory(8, 61, 50.0, arguments.memory)
    else:
        compare(8, 61, 50.0, arguments.seconds, arguments.beside)
        compare(64, 128, 50.0, arguments.seconds, arguments.beside)


if __name__ == "__main__":
    main()
