"""Cost of viewing through a daemon: network bytes and the daemon's CPU, for documents and for the stream.

``python -m benchmarks.streaming``. Simulated ranks write at the given rate, and one daemon reads their rings. Three
clients take turns: one requests ``/api/v1/snapshot`` four times a second (gzip, only new steps), one
reads ``/api/v1/recording?newest=72`` as ``swtrace top --connect`` does, and one requests nothing. Bytes are those
of bodies. CPU is that of the daemon, minus that of the unwatched turns.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.heatmap import writer
from benchmarks.scraping import cpu_s

ASK_EVERY_S = 0.25
NEWEST_STEPS = 72


def documents(host: str, seconds: float) -> int:
    """Request the steps since the last answer. Return the bytes of all answers but the first."""
    connection, cursor, received = HTTPConnection(host), 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        due = time.monotonic() + ASK_EVERY_S
        connection.request("GET", f"/api/v1/snapshot?since={cursor}&limit=64", headers={"Accept-Encoding": "gzip"})
        body = connection.getresponse().read()
        received += len(body) if cursor else 0
        cursor = json.loads(gzip.decompress(body))["cursor"]
        time.sleep(max(0.0, due - time.monotonic()))
    connection.close()
    return received


def stream(host: str, seconds: float) -> int:
    """Read the stream. Return its bytes after the first half second, in which the newest steps arrive."""
    connection, received = HTTPConnection(host), 0
    connection.request("GET", f"/api/v1/recording?newest={NEWEST_STEPS}")
    answer = connection.getresponse()
    begin = time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        size = len(answer.read1(1 << 16))
        received += size if elapsed > 2 * ASK_EVERY_S else 0
    connection.close()
    return received


def unwatched(_host: str, seconds: float) -> int:
    """Wait."""
    time.sleep(seconds)
    return 0


WAYS: dict[str, Callable[[str, float], int]] = {"unwatched": unwatched, "documents": documents, "stream": stream}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--rate", type=float, default=50.0, help="steps per second")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    seconds, rounds = arguments.seconds, arguments.rounds
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        total = (rounds + 1) * len(WAYS) * seconds + 60
        ranks = writer(Path(folder), arguments.ranks, arguments.layers, arguments.rate, total)
        command = [sys.executable, "-m", "swtrace", "daemon", "--listen", "127.0.0.1:0", "--dir", folder]
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert daemon.stdout is not None  # noqa: S101
            host = urlsplit(daemon.stdout.readline().strip()).netloc
            time.sleep(seconds)
            sizes: dict[str, list[float]] = {way: [] for way in WAYS}
            shares: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, watch in WAYS.items():
                    before = cpu_s(daemon.pid)
                    sizes[way].append(watch(host, seconds) / seconds / 1e3)
                    shares[way].append((cpu_s(daemon.pid) - before) / seconds)
        finally:
            for process in (daemon, ranks):
                process.terminate()
                process.wait(30)
    print(f"{arguments.ranks} ranks x {arguments.layers} layers x {arguments.rate:g} steps/s, {rounds} rounds")
    alone = statistics.median(shares["unwatched"])
    print(f"  unwatched   daemon {100 * alone:5.1f} % of a core")
    for way in ("documents", "stream"):
        size, share = statistics.median(sizes[way]), statistics.median(shares[way])
        print(
            f"  {way:<10}  {size:7.0f} kB/s ({min(sizes[way]):.0f} .. {max(sizes[way]):.0f}), daemon "
            f"{100 * (share - alone):+5.1f} % of a core ({100 * min(shares[way]):.1f} .. {100 * max(shares[way]):.1f})"
        )


if __name__ == "__main__":
    main()
