"""Cost of a scrape: CPU, bytes and latency for 8 and 64 ranks with 4 series each (`make bench-scrape`).

Real recorders write the rings: groups of eight ranks, 61 layers per series, some steps of one phase. The daemon is
its own process and is scraped as by Prometheus (OpenMetrics, gzip, one connection). `cpu ms` is the CPU time of the
daemon's process from request to answer, compression included; `ms` is the client's wait. Before each "busy" scrape
every rank writes a step and the daemon has time to read it, so every value changes. Before an "idle" one nothing
happens. The table shows the median, lowest and highest of all scrapes but the first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from swtrace.trace.clocks import boot_id
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.schema import NO_WINDOW, Observed, Phase, TransferFlag

SERIES = ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.down_proj", "mlp.gate_up_proj")
LAYERS = 61
GROUP = 8
LAYER_NS = 300_000
STEP_NS = LAYERS * LAYER_NS
MEMORY = "/dev/shm"  # noqa: S108 (a folder with a random name is made inside)
READ_S = 1.0
"""Time within which the daemon reads a step of all ranks."""
HEADERS = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}


class Rank:
    """One rank's ring, with all its series."""

    def __init__(self, directory: Path, rank: int) -> None:
        """Make the ring."""
        about = RankIdentity("bench", rank, "host", boot_id(), os.getpid(), time.time_ns(), "a model", "bench")
        self.recorder = Recorder.create(directory, about, records=1 << 13)
        self.in_group = rank % GROUP
        first = rank - self.in_group
        self.series: list[SeriesRecorder] = [
            self.recorder.add_series(self._info(name, tuple(range(first, first + GROUP)))) for name in SERIES
        ]

    def _info(self, name: str, group: tuple[int, ...]) -> SeriesInfo:
        return SeriesInfo(
            name=name,
            start_layer=0,
            stack_layers=LAYERS,
            layers=tuple(range(LAYERS)),
            prefetch_step=1,
            windows="static",
            window_count=3,
            group_ranks=group,
            rank_in_group=self.in_group,
            transport="nccl",
            rendezvous="group",
            clock="host",
            layer_bytes=117 << 20,
            owned_layers=len([layer for layer in range(LAYERS) if layer % GROUP == self.in_group]),
        )

    def write(self, step: int, begin_ns: int) -> None:
        """Write one step of every series."""
        for series in self.series:
            for layer in range(LAYERS):
                at = begin_ns + layer * LAYER_NS
                own = layer % GROUP == self.in_group
                ready = at + (layer * 7919 + step * 104_729) % 60_000
                series.transfer(
                    at - LAYER_NS,
                    ready,
                    at + 20_000,
                    max(ready, at + 20_000) + 3_000,
                    step,
                    step * LAYERS + layer,
                    layer,
                    (layer - 1) % LAYERS,
                    layer % GROUP,
                    NO_WINDOW if own else layer % 3,
                    Observed.CALLBACK,
                    TransferFlag.OWN if own else 0,
                )
            series.step(
                begin_ns=begin_ns,
                arrival_ns=begin_ns,
                end_ns=begin_ns + STEP_NS,
                step=step,
                tokens=64,
                requests=4,
                phase=Phase.DECODE,
                waits=LAYERS,
            )


def measure(ranks: int, scrapes: int) -> dict[str, float]:
    """Return the figures of one daemon over this many ranks."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as name:
        made = [Rank(Path(name), rank) for rank in range(ranks)]
        base = time.monotonic_ns()
        steps = 0

        def write(count: int) -> None:
            nonlocal steps
            for step in range(steps, steps + count):
                for rank in made:
                    rank.write(step, base + step * STEP_NS)
            steps += count

        write(8)
        command = [sys.executable, "-m", "swtrace", "daemon", "--listen", "127.0.0.1:0", "--dir", name]
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            if daemon.stdout is None:
                raise RuntimeError("the daemon has no output")
            host = urlsplit(daemon.stdout.readline().strip()).netloc
            connection = HTTPConnection(host)
            _, *first = _scrape(connection, daemon.pid)
            idle = [_scrape(connection, daemon.pid)[1:] for _ in range(scrapes)]
            busy = []
            for _ in range(scrapes):
                write(1)
                time.sleep(READ_S)
                body, *spent = _scrape(connection, daemon.pid)
                busy.append(tuple(spent))
            text = gzip.decompress(body).decode()
        finally:
            daemon.terminate()
            daemon.wait(30)
            for rank in made:
                rank.recorder.close()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    figures: dict[str, float] = {
        "ranks": ranks,
        "samples": len(samples),
        "samples per rank and series": len(samples) / ranks / len(SERIES),
        "bytes": len(text),
        "bytes gzipped": len(body),
        "cpu ms first": first[0] * 1e3,
    }
    for state, scraped in (("idle", idle), ("busy", busy)):
        for what, seconds in zip(("cpu ms", "ms"), zip(*scraped, strict=True), strict=True):
            figures[f"{what} {state}"] = statistics.median(seconds) * 1e3
            figures[f"{what} {state}, lowest"] = min(seconds) * 1e3
            figures[f"{what} {state}, highest"] = max(seconds) * 1e3
    return figures


def _scrape(connection: HTTPConnection, pid: int) -> tuple[bytes, float, float]:
    """Return the answer, the daemon's CPU time for it, and its latency.

    If the machine is too busy, the daemon reports that it cannot read its rings in time. Such answers do not count.
    """
    while True:
        cpu, began = cpu_s(pid), time.perf_counter()
        connection.request("GET", "/metrics", headers=HEADERS)
        body = connection.getresponse().read()
        waited, spent = time.perf_counter() - began, cpu_s(pid) - cpu
        if b"swtrace_daemon_ready 1.0" in gzip.decompress(body):
            return body, spent, waited


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, from the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--scrapes", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = [measure(ranks, arguments.scrapes) for ranks in arguments.ranks]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name in results[0]:
        print(f"{name:>28}" + "".join(f"{result[name]:>14,.1f}" for result in results))


if __name__ == "__main__":
    main()
