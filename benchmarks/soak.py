"""Keep a daemon busy for long, and fail if it grows, slows down, loses a record or says anything untrue.

``make soak MINUTES=30``. All of this happens at once, to one daemon with limits on its memory and its open files:

- A healthy run writes as fast as this program can, many times faster than a real one. Other runs come and go.
- Rings beside it are removed, replaced and damaged (``tests/support/storm.py``).
- Writers are killed in the middle of their work. Every record that they committed must be delivered.
- The calendar clock of the healthy ranks is set back and forth, by up to an hour.
- Two hundred scrapers, clients that never finish their request, and clients that hardly read their stream.
- A recorder whose disk is full, if this user may mount a tmpfs.

At every check, the healthy ranks are shown whole, each ring's account is exact (``written = delivered + lapped +
damaged + skipped + pending``), and no counter of the healthy ranks has decreased. At the end, memory and
open files must not have grown. Both vary with the clients that do not read, so these leave before each measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np

from swtrace.trace import schema
from tests.support.daemon_command import DaemonCommand, daemon, environment
from tests.support.patience import eventually
from tests.support.recorded_run import RecordedRun
from tests.support.storm import Storm, check
from tests.support.writer_process import Order, Writers

MEMORY = "/dev/shm"  # noqa: S108 (a folder with a random name is made inside)
BURST_STEPS = 8000
"""Fewer records than the ring of a healthy rank holds."""
SCRAPE_EVERY_S = 10.0
MOST_IDLE = 20
"""Clients that misbehave at once."""
OPEN_FILES = 1024
"""Limit of the daemon, and so is the next one."""
ADDRESS_SPACE = 4 << 30
REST_S = 2.0
"""A rest ends once no file was closed for so long."""
RESTS = 6
"""How often the clients leave, so that memory and open files are those of the daemon alone. The first time, the daemon
has not seen everything yet, so the others are compared with the second."""
GROWN_BYTES = 16 << 20
GROWN_FILES = 24
"""By how much they may grow from the second rest to the last."""
KILLED_RANK = 10_000
KILLED_AT_ONCE = 10
VICTIM_RECORDS = 4000
MOST_STEP_NS = 3600 * 10**9
USUAL_RECORDS_PER_S = 62 * 50
"""What a rank of one series of 61 layers writes at 50 steps/s."""
DISK_BYTES = 1 << 16
UNFINISHED = (
    b"",
    b"GET /met",
    b"GET /api/v1/recording HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 9\r\nHost: x\r\n\r\nab",
)
"""Requests whose client then waits, or does not read the answer."""


class Broken(Exception):  # noqa: N818 (of what is tested)
    """The daemon did what it must not do."""


@dataclass
class Crowd:
    """Clients of a daemon: scrapers in a thread of their own, and clients that misbehave."""

    host: str
    port: int
    scrapers: int
    answers: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    idle: list[socket.socket] = field(default_factory=list)

    def start(self) -> threading.Thread:
        """Start scraping."""
        thread = threading.Thread(target=lambda: asyncio.run(self._scrape_all()), name="scrapers")
        thread.start()
        return thread

    async def _scrape_all(self) -> None:
        await asyncio.gather(*(self._scrape(index / max(1, self.scrapers)) for index in range(self.scrapers)))

    async def _scrape(self, phase: float) -> None:
        request = f"GET /metrics HTTP/1.1\r\nHost: {self.host}\r\nAccept-Encoding: gzip\r\n\r\n".encode()
        await asyncio.sleep(phase * SCRAPE_EVERY_S)
        while not self.stop.is_set():
            try:
                began = time.monotonic()
                reader, writer = await asyncio.open_connection(self.host, self.port)
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").lower().split("\r\n")
                (length,) = (int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
                await reader.readexactly(length)
                writer.close()
                self.answers[lines[0].split()[1]] += 1
                self.latencies_s.append(time.monotonic() - began)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.answers[type(error).__name__] += 1
            for _ in range(int(SCRAPE_EVERY_S * 2)):
                if not self.stop.is_set():
                    await asyncio.sleep(0.5)

    def misbehave(self, chance: random.Random) -> None:
        """Open a connection that never finishes its request or reads its answer. Close the oldest one."""
        if len(self.idle) >= MOST_IDLE:
            self.idle.pop(0).close()
        client = socket.create_connection((self.host, self.port), 60)
        self.idle.append(client)
        text = chance.choice(UNFINISHED)
        with suppress(OSError):
            client.sendall(text)
            if chance.random() < 0.3:
                client.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """Close the connections of clients that misbehave."""
        for client in self.idle:
            client.close()
        self.idle.clear()


@dataclass
class Soak:
    """One run of everything."""

    folder: Path
    watching: DaemonCommand
    writers: Writers
    chance: random.Random
    storm: Storm
    crowd: Crowd
    counters: dict[str, float] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    rested_memory: list[int] = field(default_factory=list)
    rested_files: list[int] = field(default_factory=list)
    passing: list[RecordedRun] = field(default_factory=list)
    checks: int = 0
    kills: int = 0
    killed_records: int = 0
    runs: int = 0
    clock_steps: int = 0

    def kill_writers(self, count: int) -> None:
        """Kill writers at random instants. The daemon must deliver all that their rings hold."""
        committed: dict[int, int] = {}
        paths = []
        for rank in range(KILLED_RANK + self.kills, KILLED_RANK + self.kills + count):
            pid, path = self.writers.start(Order(str(self.folder), records=4096, rank=rank, count=VICTIM_RECORDS))
            spin_ns = time.monotonic_ns() + self.chance.randrange(0, 15_000_000)
            while time.monotonic_ns() < spin_ns:
                pass
            self.writers.kill(pid)
            slots = np.fromfile(path, "<u8", offset=schema.HEADER_BYTES).reshape(-1, schema.RECORD_WORDS)
            committed[rank] = int(slots[:, schema.SEQUENCE_WORD].max())
            paths.append(path)
        eventually(lambda: not any(rank["up"] for rank in self._ranks(committed)), "the killed ranks to be down")
        for found in self._ranks(committed):
            expected = committed[found["rank"]]
            if (found["ring"]["written"], found["ring"]["delivered"], found["records"]) != (expected,) * 3:
                raise Broken(f"a killed writer committed {expected} records; the daemon has {found}")
        for path in paths:
            path.unlink()
        self.kills += count
        self.killed_records += sum(committed.values())

    def _ranks(self, wanted: Collection[int]) -> list[dict[str, Any]]:
        document = self.watching.client.get("/api/v1/ranks").json()
        found = [rank for rank in document["ranks"] if rank["rank"] in wanted]
        if len(found) != len(wanted):
            raise Broken(f"of ranks {sorted(wanted)} the daemon shows {sorted(rank['rank'] for rank in found)}")
        return found

    def let_runs_come_and_go(self) -> None:
        """Begin a run of two ranks, or end the oldest one and remove its rings."""
        if len(self.passing) < 3:
            self.runs += 1
            self.passing.append(RecordedRun(self.folder, run_id=f"passing-{self.runs}", records=1024))
        else:
            run = self.passing.pop(0)
            run.close()
            for recorder in run.recorders:
                recorder.path.unlink(missing_ok=True)
        for run in self.passing:
            run.write(20)

    def step_clock(self) -> None:
        """Let the healthy ranks find CLOCK_REALTIME set to another time. What is counted depends on no calendar."""
        true_ns = time.time_ns
        step_ns = self.chance.randrange(-MOST_STEP_NS, MOST_STEP_NS)
        with mock.patch.object(time, "time_ns", side_effect=lambda: true_ns() + step_ns):
            for recorder in self.storm.run.recorders:
                recorder.renew_anchor()
        self.clock_steps += 1

    def check(self) -> None:
        """Check everything that must hold at any time, and note what the daemon uses."""
        check(self.storm, self.watching)
        for rank in self.watching.client.get("/api/v1/ranks").json()["ranks"]:
            ring = rank["ring"]
            if ring is not None and ring["written"] != sum(
                ring[name] for name in ("delivered", "lapped", "damaged", "skipped", "pending")
            ):
                raise Broken(f"the account of rank {rank['rank']} does not add up: {ring}")
        for line in self.watching.client.get("/metrics").text.splitlines():
            name, _, text = line.rpartition(" ")
            counted = name.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket"))
            if not counted or "run_id" in name or not any(f'rank="{rank}"' in name for rank in (0, 1)):
                continue
            if float(text) < self.counters.get(name, 0.0):
                raise Broken(f"{name} decreased from {self.counters[name]} to {text}")
            self.counters[name] = float(text)
        self.memory.append(self._memory())
        self.files.append(self._files())
        self.checks += 1

    def _memory(self) -> int:
        pages = Path(f"/proc/{self.watching.process.pid}/statm").read_text("ascii").split()[1]
        return int(pages) * resource.getpagesize()

    def _files(self) -> int:
        return len(list(Path(f"/proc/{self.watching.process.pid}/fd").iterdir()))

    def rest(self) -> None:
        """Let the clients that misbehave leave, and measure the daemon once their streams have ended."""
        self.crowd.leave()
        fewest, since = self._files(), time.monotonic()
        while time.monotonic() < since + REST_S:
            time.sleep(0.5)
            if (files := self._files()) < fewest:
                fewest, since = files, time.monotonic()
        self.rested_memory.append(self._memory())
        self.rested_files.append(fewest)

    def go(self, seconds: float, kills: int) -> None:
        """Do all of it for so long, and until so many writers were killed."""
        began = said = time.monotonic()
        while (now := time.monotonic()) < began + seconds or self.kills < kills:
            for _ in range(self.chance.randrange(1, 4)):
                self.storm.step()
            self.step_clock()
            self.storm.run.write(BURST_STEPS)
            self.crowd.misbehave(self.chance)
            self.let_runs_come_and_go()
            if self.kills < kills * min(1.0, (now - began) / seconds):
                self.kill_writers(min(KILLED_AT_ONCE, kills - self.kills))
            self.check()
            if now >= began + seconds * (len(self.rested_memory) + 1) / RESTS:
                self.rest()
            if now >= said + 60:
                said = now
                print(
                    f"{(now - began) / 60:5.0f} min: {self.checks} checks, {self.kills} kills,"
                    f" {self.storm.run.written:,} records a rank,"
                    f" memory {self.memory[-1] >> 20} MiB, {self.files[-1]} open files",
                    flush=True,
                )


def grown(name: str, values: list[int], most: int) -> str:
    """Return what has grown by more than ``most`` from the second rest to the last; empty if nothing."""
    before, after = values[:2][-1], values[-1]
    return f"{name} grew from {before:,} to {after:,}" if after > before + most else ""


def record_on_a_full_disk(folder: Path, address: str) -> str:
    """Record from the daemon onto a tmpfs without room: the recorder must say so, and its file must be readable."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "swtrace-soak", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, check=False).returncode != 0:
        return "not tried: this user may not mount a tmpfs"
    try:
        file = str(disk / "full.swrec")
        command = [sys.executable, "-m", "swtrace", "record", "--connect", address, "--duration", "60", "-o", file]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 1 or "No space left on device" not in done.stderr or "Traceback" in done.stderr:
            raise Broken(f"a recorder on a full disk ended with {done.returncode}: {done.stderr}")
        shown = [sys.executable, "-m", "swtrace", "stats", file, "--json"]
        read = subprocess.run(shown, env=environment(), capture_output=True, text=True, check=False, timeout=600)
        if read.returncode != 0:
            raise Broken(f"a recording of a full disk cannot be read: {read.stderr}")
        return "said so, and its recording could be read"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)  # noqa: S607 - found where mount was


def soak(seconds: float, seed: int, scrapers: int, kills: int) -> None:
    """Run everything, and print what was done."""
    parent = MEMORY if os.access(MEMORY, os.W_OK) else None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swtrace-soak-", dir=parent)))
        run = RecordedRun(folder / "rings", run_id="healthy", records=1 << 16)
        stack.callback(run.close)
        writers = stack.enter_context(Writers())
        watching = stack.enter_context(daemon(run.directory))
        run.write(1)
        pid, url = watching.process.pid, watching.client.base_url
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        resource.prlimit(pid, resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        chance = random.Random(seed)  # noqa: S311 - a soak that can be repeated
        crowd = Crowd(url.host, url.port or 80, scrapers)
        made = Soak(run.directory, watching, writers, chance, Storm(run, writers, chance), crowd)
        scraping = crowd.start()
        began, cpu = time.monotonic(), _cpu_s(pid)
        try:
            made.go(seconds, kills)
            made.rest()
            disk = record_on_a_full_disk(folder, f"{url.host}:{url.port}")
            made.check()
        finally:
            crowd.stop.set()
            crowd.leave()
            scraping.join()
        took, used = time.monotonic() - began, _cpu_s(pid) - cpu
        said = watching.end()
        problems = [
            grown("memory", made.rested_memory, GROWN_BYTES),
            grown("open files", made.rested_files, GROWN_FILES),
        ]
        if "Traceback" in said:
            problems.append(f"the daemon logged:\n{said}")
        if set(crowd.answers) - {"200"}:
            problems.append(f"scrapes ended as {dict(crowd.answers)}")
    _report(made, took, used, disk)
    if any(problems):
        raise Broken("; ".join(filter(None, problems)))


def _report(made: Soak, took_s: float, used_s: float, disk: str) -> None:
    written = made.storm.run.written
    rate = written / took_s
    latencies = sorted(made.crowd.latencies_s) or [0.0]
    quarters = [quarter for quarter in np.array_split(made.memory, 4) if len(quarter)]
    memory = [statistics.median(quarter) / (1 << 20) for quarter in quarters]
    print(f"{took_s / 60:.1f} min, {made.checks} checks; the daemon took {100 * used_s / took_s:.0f} % of a core")
    print(
        f"healthy run: {written:,} records a rank, {rate / USUAL_RECORDS_PER_S:.0f} times the usual rate,"
        f" as many as in {written / USUAL_RECORDS_PER_S / 3600:.1f} h; all delivered"
    )
    print(f"rings harmed: {dict(sorted(made.storm.done.items()))}")
    print(f"runs that came and went: {made.runs}; steps of the healthy ranks' calendar clock: {made.clock_steps}")
    print(f"writers killed: {made.kills}, with {made.killed_records:,} committed records; all delivered")
    print(
        f"scrapes by {made.crowd.scrapers} scrapers: {dict(made.crowd.answers)},"
        f" median {statistics.median(latencies):.2f} s, 99 % below {latencies[int(len(latencies) * 0.99)]:.2f} s"
    )
    print("memory in MiB, median of each quarter: " + ", ".join(f"{each:.0f}" for each in memory))
    rested = ", ".join(f"{each / (1 << 20):.0f}" for each in made.rested_memory)
    print(f"memory in MiB, without clients that misbehave: {rested}; open files: {made.rested_files}")
    print(f"open files: at most {max(made.files)} of {OPEN_FILES}")
    print(f"recorder on a full disk: {disk}")


def _cpu_s(pid: int) -> float:
    return time.clock_gettime(~pid << 3 | 2)


def main() -> int:
    """Run it. Return 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--scrapers", type=int, default=200)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    try:
        soak(arguments.minutes * 60, arguments.seed, arguments.scrapers, arguments.kills)
    except (Broken, AssertionError, httpx.HTTPError):
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
