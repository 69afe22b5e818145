"""CPU and memory of one daemon that watches the daemons of many hosts, and whether its figures are right.

``python -m benchmarks.watching``. This process stands in for the daemons: it serves, on one port per host, the stream
of records and the clock of simulated ranks, whose hosts have clocks of their own. One real ``swtrace daemon --watch``
reads them all. At the end, its totals are compared with those of a ledger that saw all records, on one clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recordings import batch, identity, info
from benchmarks.scraping import cpu_s
from swtrace.ledger import Ledger
from swtrace.observing.events import RankJoined, RecordsRead, RingsSeen, RingState, SeriesListed
from swtrace.recording.writer import StreamWriter
from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import Records
from swtrace.trace.ring_reader import RingStatistics
from swtrace.trace.schema import RUN_STEPS, Kind
from tests.support.host_clocks import HostClock, on_clock

RUN = "bench"
WARM_S = 20.0
"""The daemon starts and probes all clocks within this time."""
TEMPLATES = 4
"""Different runs of steps, sent in turn."""


@dataclass
class Fleet:
    """The simulated ranks."""

    ranks: int
    hosts: int
    layers: int
    rate: float
    every: int
    seed: int = 1
    began_ns: int = 0
    templates: list[list[Records]] = field(default_factory=list)
    """``[template][rank]``, on a clock that shows 0 at the begin of the first step."""

    def __post_init__(self) -> None:
        """Make the records."""
        chance = np.random.default_rng(self.seed)
        for _ in range(TEMPLATES):
            made = [batch(rank, 0, RUN_STEPS, chance, self.ranks, self.layers) for rank in range(self.ranks)]
            self.templates.append([_moved(each, -(10**12), 0, self.layers) for each in made])
        self.began_ns = time.monotonic_ns()

    @property
    def period_s(self) -> float:
        """Time from one run of steps to the next."""
        return RUN_STEPS * self.every / self.rate

    def clock(self, host: int) -> HostClock:
        """Return a host's clock; the first one is this machine's."""
        return HostClock(host * 61 * 10**9, (host % 21) * 4e-6 if host else 0.0)

    def host(self, rank: int) -> int:
        """Return the host of a rank."""
        return rank * self.hosts // self.ranks

    def identity(self, rank: int) -> RankIdentity:
        """Return the identity of a rank on its host."""
        host = self.host(rank)
        return replace(identity(rank), host=f"host-{host}", boot_id=f"boot-{host}")

    def info(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it."""
        return info(rank, self.ranks, self.layers)

    def records(self, rank: int, number: int) -> Records:
        """Return a rank's records of the run of steps with this number, on the first host's clock."""
        begin_ns = self.began_ns + round(number * self.period_s * 1e9)
        template = self.templates[number % TEMPLATES][rank]
        return _moved(template, begin_ns, number * RUN_STEPS * self.every, self.layers)


def _moved(records: Records, by_ns: int, steps: int, layers: int) -> Records:
    """Return records of later steps."""
    moved = on_clock(records, HostClock(by_ns))
    moved["sequence"] += steps * (layers + 1)
    moved["step"] += steps
    moved["operation"][moved["kind"] != Kind.STEP] += steps * layers
    return moved


class Host:
    """The stand-in for one host's daemon."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self._fleet, self._clock = fleet, fleet.clock(number)
        self._number = number
        self._ranks = [rank for rank in range(fleet.ranks) if fleet.host(rank) == number]
        self.sent = 0
        """Runs of steps sent so far."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while line := (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0]:
                path = line.split(b" ")[1]
                if path.startswith(b"/api/v1/recording"):
                    await self._stream(writer)
                    return
                body = json.dumps(self._document(path.decode("ascii"))).encode("ascii")
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                )
                writer.write(body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _document(self, path: str) -> dict[str, Any]:
        if path.startswith("/api/v1/clock"):
            shown_ns = self._clock.at(time.monotonic_ns())
            return {"clock": f"boot-{self._number}", "arrived_ns": shown_ns, "monotonic_ns": shown_ns}
        return {}

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        fleet, frames = self._fleet, StreamWriter(flush_s=0.0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.swtrace.recording\r\nConnection: close\r\n\r\n")
        for rank in self._ranks:
            frames.take(RankJoined(fleet.identity(rank)))
            frames.take(SeriesListed(RankKey(RUN, rank), (fleet.info(rank),)))
        while True:
            due = fleet.began_ns / 1e9 + (self.sent + 1) * fleet.period_s
            while (left_s := due - time.monotonic()) > 0:
                await self._put(writer, frames)
                await asyncio.sleep(min(1.0, left_s))
            batches = tuple(
                (RankKey(RUN, rank), on_clock(fleet.records(rank, self.sent), self._clock)) for rank in self._ranks
            )
            frames.take(RecordsRead(batches))
            self.sent += 1
            await self._put(writer, frames)

    async def _put(self, writer: asyncio.StreamWriter, frames: StreamWriter) -> None:
        written = self.sent * RUN_STEPS * (self._fleet.layers + 1)
        now_ns = self._clock.at(time.monotonic_ns())
        rings = (
            RingState(
                RankKey(RUN, rank),
                alive=True,
                closed=False,
                statistics=RingStatistics(written, written, 0, 0, 0),
                taken_ns=now_ns,
            )
            for rank in self._ranks
        )
        frames.take(RingsSeen(tuple(rings)))
        writer.write(frames.frames())
        await writer.drain()


async def _watched(fleet: Fleet, seconds: float, said_every_s: float) -> None:
    hosts = [Host(fleet, number) for number in range(fleet.hosts)]
    servers = [await asyncio.start_server(host.serve, "127.0.0.1", 0) for host in hosts]
    urls = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    command = [sys.executable, "-m", "swtrace", "daemon", "--listen", "127.0.0.1:0", "--watch", ",".join(urls)]
    command += ["--watch-every", str(fleet.every)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - short
    try:
        assert daemon.stdout is not None  # noqa: S101
        url = (await asyncio.to_thread(daemon.stdout.readline)).strip()
        await asyncio.sleep(WARM_S)
        before_all = await asyncio.to_thread(_fetch, f"{url}/api/v1/series")
        shares, memory = [], []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            before, since = cpu_s(daemon.pid), time.monotonic()
            await asyncio.sleep(said_every_s)
            shares.append((cpu_s(daemon.pid) - before) / (time.monotonic() - since))
            pages = int(Path(f"/proc/{daemon.pid}/statm").read_text("ascii").split()[1])  # noqa: ASYNC240 - of memory
            memory.append(pages * resource.getpagesize() >> 20)
        document = await asyncio.to_thread(_fetch, f"{url}/api/v1/series")
    finally:
        daemon.terminate()
        await asyncio.to_thread(daemon.wait, 60)
        for server in servers:
            server.close()
    print(
        f"{fleet.ranks} ranks on {fleet.hosts} hosts, {fleet.layers} layers, {fleet.rate:g} steps/s, one in "
        f"{fleet.every} read, {seconds:.0f} s on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  CPU     {100 * statistics.median(shares):.0f} % of a core"
        f" ({100 * min(shares):.0f} .. {100 * max(shares):.0f})"
    )
    quarters = [statistics.median(each) for each in np.array_split(memory, 4)]
    print("  memory  " + ", ".join(f"{each:.0f}" for each in quarters) + " MiB, median of each quarter")
    compare(fleet, before_all, document)


def _fetch(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - this machine's daemon
        document: dict[str, Any] = json.load(answer)
    return document


def compare(fleet: Fleet, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print how the causes that the daemon counted differ from those of a ledger that saw the steps on one clock."""
    ledger = Ledger()
    for rank in range(fleet.ranks):
        ledger.add_rank(identity(rank))
        ledger.set_series(RankKey(RUN, rank), (fleet.info(rank),))
    sent = 0
    moments: list[tuple[dict[str, int], dict[str, int]]] = []
    for document in (before, after):
        (series,) = document["series"]
        steps = max(rank["totals"]["steps"] for rank in series["ranks"])
        for number in range(sent, steps // RUN_STEPS):
            ledger.add_batches([(RankKey(RUN, rank), fleet.records(rank, number)) for rank in range(fleet.ranks)])
        sent = steps // RUN_STEPS
        (truth,) = ledger.facts().series
        found: dict[str, int] = {}
        expected: dict[str, int] = {}
        for one, other in zip(series["ranks"], truth.ranks, strict=True):
            for cause, true_ns in other.totals.cause_ns.items():
                expected[cause.value] = expected.get(cause.value, 0) + true_ns
                found[cause.value] = found.get(cause.value, 0) + one["totals"]["cause_ns"][cause.value]
        moments.append((found, expected))
    (found_before, expected_before), (found_after, expected_after) = moments
    total = sum(expected_after.values()) - sum(expected_before.values())
    for name in expected_after:
        share = 100 * (found_after[name] - found_before[name]) / total
        true_share = 100 * (expected_after[name] - expected_before[name]) / total
        print(f"  {name:<13} {share:6.2f} % of the stall; on one clock {true_share:6.2f} %")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--hosts", type=int, default=128)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--rate", type=float, default=50.0, help="steps per second")
    parser.add_argument("--every", type=int, default=16, help="the daemon reads one step in so many")
    parser.add_argument("--seconds", type=float, default=300.0)
    arguments = parser.parse_args()
    fleet = Fleet(arguments.ranks, arguments.hosts, arguments.layers, arguments.rate, arguments.every)
    asyncio.run(_watched(fleet, arguments.seconds, 5.0))


if __name__ == "__main__":
    main()
