"""A storm: rings beside a healthy run are removed, replaced and damaged in every way, at random."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from swtrace.trace.schema import HEADER_BYTES
from tests.support.daemon_command import DaemonCommand
from tests.support.recorded_run import RecordedRun
from tests.support.writer_process import Order, Writers

MOST_BAD = 12
FIRST_BAD_RANK = 100


@dataclass
class Storm:
    """The healthy run, the rings to damage, and what was done to them."""

    run: RecordedRun
    writers: Writers
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    living: dict[int, tuple[int, Path]] = field(default_factory=dict)
    """Process and ring of ranks that are not damaged yet."""
    survivors: list[int] = field(default_factory=list)
    """Processes that go on although their ring was damaged. Readers keep a removed ring open for as long."""
    unreadable: set[int] = field(default_factory=set)
    """Ranks whose rings were damaged so that none of their figures may be shown."""
    next_rank: int = FIRST_BAD_RANK

    def step(self) -> None:
        """Do one thing: mostly damage a ring, sometimes add a new one."""
        if len(self.living) < 2 or self.chance.random() < 0.3:
            rank, self.next_rank = self.next_rank, self.next_rank + 1
            order = Order(str(self.run.directory), rank=rank, count=self.chance.choice([0, 100, 3000]))
            self.living[rank] = self.writers.start(order)
            return
        harm = self.chance.choice(HARMS)
        self.done[harm.__name__.strip("_")] += 1
        rank = self.chance.choice(sorted(self.living))
        pid, path = self.living.pop(rank)
        if harm(self, path):
            self.unreadable.add(rank)
        if self.chance.random() < 0.5:
            self.writers.kill(pid)
        else:
            self.survivors.append(pid)
        if len(self.survivors) > MOST_BAD:
            self.writers.kill(self.survivors.pop(0))
        if len(list(self.run.directory.iterdir())) > MOST_BAD:
            self.clear()

    def clear(self) -> None:
        """Remove what the storm has left, but not the rings of its living ranks."""
        kept = {path for _, path in self.living.values()}
        for path in self.run.directory.iterdir():
            if path.name.startswith(("ring-run-", "ring-renamed-")) and path not in kept:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _removed(_storm: Storm, path: Path) -> bool:
    path.unlink()
    return False


def _renamed(storm: Storm, path: Path) -> bool:
    path.rename(path.with_name(f"ring-renamed-{storm.next_rank}.swt"))
    return False


def _replaced_by_a_folder(_storm: Storm, path: Path) -> bool:
    path.unlink()
    path.mkdir()
    return False


def _replaced_by_a_pipe(_storm: Storm, path: Path) -> bool:
    path.unlink()
    os.mkfifo(path)
    return False


def _replaced_by_a_link(storm: Storm, path: Path) -> bool:
    path.unlink()
    path.symlink_to(storm.chance.choice(["/dev/zero", str(path), "/nowhere", str(storm.run.recorders[0].path)]))
    return False


def _replaced_by_a_copy_of_a_healthy_ring(storm: Storm, path: Path) -> bool:
    path.unlink()
    shutil.copyfile(storm.chance.choice(storm.run.recorders).path, path)
    return False


def _replaced_by_another_name_of_a_healthy_ring(storm: Storm, path: Path) -> bool:
    path.unlink()
    os.link(storm.chance.choice(storm.run.recorders).path, path)
    return False


def _made_unreadable(_storm: Storm, path: Path) -> bool:
    path.chmod(0)
    return False


def _cut_short(storm: Storm, path: Path) -> bool:
    size = storm.chance.choice([0, 1, 4096, HEADER_BYTES, path.stat().st_size - 1])
    os.truncate(path, size)
    return True


def _made_longer(_storm: Storm, path: Path) -> bool:
    os.truncate(path, path.stat().st_size + 4096)
    return True


def _overwritten(storm: Storm, path: Path) -> bool:
    with path.open("r+b") as file:
        file.write(storm.chance.randbytes(storm.chance.choice([64, 4096, HEADER_BYTES, path.stat().st_size])))
    return True


def _overwritten_behind_its_header(storm: Storm, path: Path) -> bool:
    with path.open("r+b") as file:
        file.seek(storm.chance.randrange(256, path.stat().st_size - 512))
        file.write(storm.chance.randbytes(512))
    return False


HARMS: tuple[Callable[[Storm, Path], bool], ...] = (
    _removed,
    _renamed,
    _replaced_by_a_folder,
    _replaced_by_a_pipe,
    _replaced_by_a_link,
    _replaced_by_a_copy_of_a_healthy_ring,
    _replaced_by_another_name_of_a_healthy_ring,
    _made_unreadable,
    _cut_short,
    _made_longer,
    _overwritten,
    _overwritten_behind_its_header,
)
"""What can happen to a ring; true if nothing of the ring may be shown afterwards."""


def check(storm: Storm, watching: DaemonCommand) -> None:
    """Fail unless the daemon shows all current records of the healthy ranks, and nothing that it cannot read."""
    asked_ns = time.monotonic_ns()
    document = watching.client.get("/api/v1/snapshot", params={"limit": 0})
    assert document.status_code == 200, document.text
    assert document.json()["taken_ns"] >= asked_ns
    assert [rank for rank in document.json()["ranks"] if rank["rank"] in storm.unreadable] == []
    for rank in document.json()["ranks"]:
        if rank["run_id"] == storm.run.run_id:
            assert (rank["up"], rank["records"]) == (True, storm.run.written)
            assert rank["ring"]["delivered"] == rank["ring"]["written"] == storm.run.written
            assert not any(rank["oddities"].values())
    (series,) = (series for series in document.json()["series"] if series["run_id"] == storm.run.run_id)
    assert [rank["totals"]["steps"] for rank in series["ranks"]] == [storm.run.steps] * storm.run.ranks
    for rank in map(str, range(storm.run.ranks)):
        assert watching.metric("swtrace_rank_up", rank=rank, run_id="") == 1
        assert watching.metric("swtrace_steps_total", rank=rank, run_id="") == storm.run.steps
    assert watching.metric("swtrace_daemon_ready") == 1
    assert watching.metric("swtrace_daemon_poll_errors_total") == 0
    assert watching.client.get("/healthz").text == "ok\n"
