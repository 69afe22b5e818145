"""CPU and memory of one daemon that watches the daemons of many hosts, and whether its figures are right.

``python -m benchmarks.watching``. Two processes stand in for the daemons, on one port per host. One answers requests
for the hosts' clocks, so promptly as idle daemons would. The other one sends the streams of records of simulated ranks,
whose hosts have clocks of their own (``benchmarks/watched_run.py``). One real ``swtrace daemon --watch`` reads them
all. At the end, its figures are compared with those of a ledger that reads the same steps, all on one clock. Results:
``benchmarks/results/watching.txt``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.recordings import identity
from benchmarks.scraping import cpu_s
from benchmarks.watched_run import RUN, TRANSPORTS, WatchedRun
from swtrace.ledger import Ledger
from swtrace.ledger.alignment import Probe
from swtrace.ledger.facts import CAUSES, Cause, StepFacts
from swtrace.observing.events import RankJoined, RecordsRead, RingsSeen, RingState, SeriesListed
from swtrace.recording.writer import StreamWriter
from swtrace.trace.identity import RankKey
from swtrace.trace.ring_reader import RingStatistics
from swtrace.trace.schema import RUN_STEPS
from tests.support.host_clocks import on_clock

WARM_S = 30.0
"""The daemon starts, probes all clocks, and fills its history of 64 steps within this time."""
_QUIET_S = 60.0
_FLUSH_S = 0.25
"""How long after its end the daemons send a run of steps."""
_SAMPLED_STEPS = 4
_SCRAPE_EVERY_S = 15.0
_PARTS = ("compute_ns", "entry_ns", "transfer_ns", "wake_ns")
"""Of a critical path."""

_Int = npt.NDArray[np.int64]


async def _answer_clocks(run: WatchedRun, sockets: list[socket.socket], streams: socket.socket) -> None:
    """Serve all hosts. Answer for their clocks, and pass connections that ask for records on to the other process."""

    async def serve(host: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock = run.clock(host)
        try:
            while line := (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0]:
                path = line.split(b" ")[1]
                if path.startswith(b"/api/v1/recording"):
                    connection = writer.get_extra_info("socket")
                    socket.send_fds(streams, [host.to_bytes(4)], [connection.fileno()])
                    return
                shown_ns = clock.at(time.monotonic_ns())
                document = {"clock": f"boot-{host}", "arrived_ns": shown_ns, "monotonic_ns": shown_ns}
                body = json.dumps(document).encode("ascii")
                head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                writer.write((head % len(body)).encode("ascii") + body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for host, each in enumerate(sockets):

            def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: int = host) -> Any:
                return serve(host, reader, writer)

            server = await asyncio.start_server(served, sock=each)
            group.create_task(server.serve_forever())


class _Stream:
    """The stream of one host's daemon."""

    def __init__(self, run: WatchedRun, host: int, connection: socket.socket) -> None:
        self._run, self._clock, self._connection = run, run.clock(host), connection
        self._ranks = [rank for rank in range(run.ranks) if run.host(rank) == host]
        self._frames = StreamWriter(flush_s=0.0)
        self._sent = 0
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.swtrace.recording\r\n\r\n")
        for rank in self._ranks:
            self._frames.take(RankJoined(run.identity(rank)))
            self._frames.take(SeriesListed(RankKey(RUN, rank), (run.info(rank),)))

    def send_run(self, number: int) -> None:
        """Send the records of a run of steps."""
        batches = ((rank, on_clock(self._run.records(rank, number), self._clock)) for rank in self._ranks)
        self._frames.take(RecordsRead(tuple((RankKey(RUN, rank), records) for rank, records in batches)))
        self._sent = (number + 1) * RUN_STEPS * (self._run.layers + 1)
        self.send_state()

    def send_state(self) -> None:
        """Send the state of the rings."""
        now_ns = self._clock.at(time.monotonic_ns())
        statistics = RingStatistics(self._sent, self._sent, 0, 0, 0)
        rings = (
            RingState(RankKey(RUN, rank), alive=True, closed=False, statistics=statistics, taken_ns=now_ns)
            for rank in self._ranks
        )
        self._frames.take(RingsSeen(tuple(rings)))
        self._connection.sendall(self._frames.frames())


def _send_records(run: WatchedRun, streams: socket.socket) -> None:
    """Send the records of all hosts, from when the daemon reads them all."""
    opened: dict[int, _Stream] = {}
    state_at_s = time.monotonic()
    while len(opened) < run.hosts:
        if select.select([streams], [], [], 0.5)[0]:
            name, (descriptor, *_), *_ = socket.recv_fds(streams, 4, 1)
            host, connection = int.from_bytes(name), socket.socket(fileno=descriptor)
            connection.settimeout(None)
            opened[host] = _Stream(run, host, connection)
        if time.monotonic() >= state_at_s:
            for stream in opened.values():
                stream.send_state()
            state_at_s = time.monotonic() + 0.5
    run.began_ns = time.monotonic_ns()
    streams.sendall(run.began_ns.to_bytes(8))
    number = 0
    while True:
        for stream in opened.values():
            stream.send_run(number)
        number += 1
        while (left_s := run.ends_s(number) + _FLUSH_S - time.monotonic()) > 0:
            time.sleep(min(1.0, left_s))
            if left_s > 1.0:
                for stream in opened.values():
                    stream.send_state()


def measure(run: WatchedRun, seconds: float, said_every_s: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Print CPU and memory of the daemon, and return what it knew before and after."""
    fork = multiprocessing.get_context("fork")
    sockets = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(run.hosts)]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sender = fork.Process(target=_send_records, args=(run, theirs), daemon=True)
    clocks = fork.Process(target=lambda: asyncio.run(_answer_clocks(run, sockets, ours)), daemon=True)
    sender.start()
    clocks.start()
    theirs.close()
    urls = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    command = [sys.executable, "-m", "swtrace", "daemon", "--listen", "127.0.0.1:0", "--watch", ",".join(urls)]
    command += ["--watch-every", str(run.every)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout is not None  # noqa: S101
        url = daemon.stdout.readline().strip()
        run.began_ns = int.from_bytes(ours.recv(8))
        time.sleep(WARM_S)
        before = _between_runs(run, url)
        shares, memory = [], []
        end, scrape_at_s = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end:
            used, since = cpu_s(daemon.pid), time.monotonic()
            if since >= scrape_at_s:
                scrape_at_s += _SCRAPE_EVERY_S
                with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:  # noqa: S310 - this machine's
                    answer.read()
            time.sleep(said_every_s)
            shares.append((cpu_s(daemon.pid) - used) / (time.monotonic() - since))
            pages = int(Path(f"/proc/{daemon.pid}/statm").read_text("ascii").split()[1])
            memory.append(pages * resource.getpagesize() >> 20)
        sampled = _fetch(f"{url}/api/v1/steps?limit={_SAMPLED_STEPS}&fields=cause_ns")["steps"]
        after = {**_between_runs(run, url), "sampled": sampled}
    finally:
        daemon.terminate()
        daemon.wait(60)
        for process in (clocks, sender):
            process.kill()
            process.join()
    print(
        f"{run.ranks} ranks on {run.hosts} hosts, {run.layers} layers, {run.rate:g} steps/s, one in {run.every} read,"
        f" {run.transport}, {seconds:.0f} s on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  CPU     {100 * statistics.median(shares):.0f} % of a core"
        f" ({100 * min(shares):.0f} .. {100 * max(shares):.0f})"
    )
    quarters = [statistics.median(each) for each in np.array_split(memory, 4)]
    print("  memory  " + ", ".join(f"{each:.0f}" for each in quarters) + " MiB, median of each quarter")
    return before, after


def _between_runs(run: WatchedRun, url: str) -> dict[str, Any]:
    """Return the daemon's facts of the series at a moment when all steps that it has read are finished."""
    give_up_s = time.monotonic() + _QUIET_S
    while time.monotonic() < give_up_s:
        # In the middle between the ends of two runs of steps.
        since_s = (time.monotonic() - run.ends_s(0) - _FLUSH_S) % run.period_s
        time.sleep((0.6 * run.period_s - since_s) % run.period_s)
        try:
            (series,) = _fetch(f"{url}/api/v1/series")["series"]
        except urllib.error.HTTPError:  # other work keeps the machine so busy that there is no answer in time
            continue
        steps = {rank["totals"]["steps"] for rank in series["ranks"]}
        if len(steps) == 1 and not series["pending_steps"]:
            return {**series, "ranks_steps": steps.pop()}
    raise SystemExit(f"the daemon has not finished all steps that it read at any moment for {_QUIET_S:g} s")


def _fetch(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - this machine's daemon
        document: dict[str, Any] = json.load(answer)
    return document


def compare(run: WatchedRun, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print how the daemon's figures differ from those of ledgers that read the same steps themselves.

    One reads them on the hosts' clocks, with probes of the daemon's median bound, and one on a single clock.
    """
    bounds_ns = [clock["bound_ns"] for clock in after["alignment"] if clock["bound_ns"] is not None]
    ledger, of_hosts = Ledger(), Ledger()
    for rank in range(run.ranks):
        for each, who in ((ledger, identity(rank)), (of_hosts, run.identity(rank))):
            each.add_rank(who)
            each.set_series(RankKey(RUN, rank), (run.info(rank),))
    fed = 0
    found: list[list[int]] = []
    direct: list[list[int]] = []
    expected: list[list[int]] = []
    for document in (before, after):
        runs = document["ranks_steps"] // RUN_STEPS
        for number in range(fed, runs):
            records = [(RankKey(RUN, rank), run.records(rank, number)) for rank in range(run.ranks)]
            for probe in _probes(run, number, statistics.median(bounds_ns) / 2):
                of_hosts.add_probe(probe)
            of_hosts.add_batches([(key, on_clock(each, run.clock(run.host(key.rank)))) for key, each in records])
            ledger.add_batches(records)
        fed = runs
        (truth,), (of_clocks,) = ledger.facts().series, of_hosts.facts().series
        totals = [rank["totals"] for rank in document["ranks"]]
        found.append([sum(each["cause_ns"][cause] for each in totals) for cause in CAUSES])
        found[-1].append(sum(each["stall_ns"] for each in totals))
        for sums, facts in ((direct, of_clocks), (expected, truth)):
            sums.append([sum(rank.totals.cause_ns[cause] for rank in facts.ranks) for cause in CAUSES])
            sums[-1].append(sum(rank.totals.stall_ns for rank in facts.ranks))
    seen, same, true = (np.diff(np.array(each), axis=0)[0] for each in (found, direct, expected))
    bounds = [each / 1e3 for each in bounds_ns]
    methods = [clock["method"] for clock in after["alignment"]]
    print(
        f"  clocks  {len(bounds)} of {len(methods)} known, {methods.count('probes')} by probes, bound"
        f" {statistics.median(bounds):.0f} us ({min(bounds):.0f} .. {max(bounds):.0f})"
    )
    of_ledger = [clock.bound_ns / 1e3 for clock in of_clocks.alignment]
    print(f"          the ledger on the hosts' clocks knows them to {statistics.median(of_ledger):.0f} us")
    steps = after["ranks_steps"] - before["ranks_steps"]
    print(f"  stall of {steps} steps by cause, in % of it: watched, one ledger on the hosts' clocks, one on one clock")
    names = [*CAUSES, "all causes"]
    shares = [[100 * value / each[-1] for value in (*each[:-1], each[:-1].sum())] for each in (seen, same, true)]
    for name, *row in zip(names, *shares, strict=True):
        print(f"    {name:<13}" + "".join(f" {share:7.2f}" for share in row))
    print("    stall        " + "".join(f" {each[-1] / 1e9:.3f} s" for each in (seen, same, true)))
    _compare_steps(after["sampled"], {step.step: step for step in ledger.history(truth.key)})
    stragglers = [(each["ranks"], each["excess_ns"]) for each in after["stragglers"]]
    on_one = [([rank.rank for rank in each.ranks], each.excess_ns) for each in truth.stragglers]
    for title, slow in (("stragglers", stragglers), ("on one clock", on_one)):
        print(f"  {title:<12} " + ("; ".join(f"{ranks}, {ns / 1e6:.3f} ms" for ranks, ns in slow) or "none"))


def _probes(run: WatchedRun, number: int, half_ns: float) -> Iterator[Probe]:
    """Yield what a watcher that knows each clock to ``half_ns`` finds about all, in the second before a run's end."""
    chance = random.Random(number)  # noqa: S311 - repeatable
    end_ns = run.began_ns + round((run.ends_s(number) - run.began_ns / 1e9) * 1e9)
    for host in range(run.hosts):
        at_ns = end_ns - chance.randrange(10**9)
        yield Probe(
            f"boot-{host}", "watcher", run.clock(host).at(at_ns), round(at_ns - half_ns), round(at_ns + half_ns)
        )


def _compare_steps(sampled: list[dict[str, Any]], truth: dict[int, StepFacts]) -> None:
    """Print how the causes of single waits differ, and whether the bounds explain it; and critical paths."""
    unattributed = CAUSES.index(Cause.UNATTRIBUTED)
    stall = more = explained = too_much = short = 0.0
    same_end, same_excess, off_us = 0, 0, []
    for document in sampled:
        step = truth[document["step"]]
        bound = np.array(document["clock_bound_ns"], np.int64)[:, np.newaxis]
        extra = np.array(document["cause_ns"], np.int64) - step.cause_ns
        # A stall is split in up to three places, and each may be off by the bounds of two clocks in either direction.
        open_ns = 3 * 2 * (bound + bound.max())
        stall += step.stall_ns.sum()
        short += step.stall_ns[step.stall_ns < 2 * (bound + bound.max())].sum()
        more += extra[unattributed].clip(0).sum()
        explained += np.minimum(extra[unattributed].clip(0), open_ns).sum()
        too_much += np.delete(extra, unattributed, axis=0).clip(0).sum()
        path, true_path = document["path"], step.path
        if path is not None and true_path is not None:
            same_end += path["last_rank"] == true_path.last_rank
            same_excess += np.argmax(path["excess_ns"]) == true_path.excess_ns.argmax()
            off_us += [abs(np.sum(path[name]) - np.sum(getattr(true_path, name))) / 1e3 for name in _PARTS]
    print(f"  the last {len(sampled)} of these steps, wait by wait, in % of the stall")
    print(f"    without a cause only when watched   {100 * more / stall:7.2f}")
    print(f"      of which the bounds explain       {100 * explained / stall:7.2f}")
    print(f"    more of a cause than on one clock   {100 * too_much / stall:7.2f}")
    print(f"    stalls shorter than two bounds      {100 * short / stall:7.2f}")
    print(
        f"  critical paths of {len(off_us) // len(_PARTS)} steps: {same_end} end at the same rank, {same_excess}"
        f" have the most excess at the same rank; parts differ by {statistics.median(off_us):.0f} us"
        f" (at most {max(off_us):.0f})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--hosts", type=int, default=128)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--rate", type=float, default=50.0, help="steps per second")
    parser.add_argument("--every", type=int, default=16, help="the daemon reads one step in so many")
    parser.add_argument("--transport", choices=TRANSPORTS, default="nccl", help="what a broadcast waits for")
    parser.add_argument("--seconds", type=float, default=120.0)
    arguments = parser.parse_args()
    run = WatchedRun(
        *(arguments.ranks, arguments.hosts, arguments.layers, arguments.rate, arguments.every, arguments.transport)
    )
    before, after = measure(run, arguments.seconds, 5.0)
    compare(run, before, after)


if __name__ == "__main__":
    main()
