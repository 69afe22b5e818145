"""Daemons and ranks are killed, rings are damaged, and two daemons read one folder: no record is lost."""

from __future__ import annotations

import fcntl
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swtrace.daemon.observer import SAID_PROBLEMS
from tests.support.daemon_command import ROOT, daemon, environment
from tests.support.patience import eventually, patience
from tests.support.recorded_run import RecordedRun

RANK = """
import sys, time
from pathlib import Path
from tests.support.recorded_run import RecordedRun
run = RecordedRun(Path(sys.argv[1]), run_id=sys.argv[2], ranks=2, records=1 << 17)
for _ in range(int(sys.argv[3])):
    run.write()
print(run.written, flush=True)
while True:
    time.sleep(0.01)
    run.write()
"""


@contextmanager
def ranks_process(directory: Path, steps: int) -> Iterator[subprocess.Popen[str]]:
    """Run a process that writes two ranks. It has written ``steps`` and continues until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(directory), "run-1", str(steps)],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_killed_daemon_loses_nothing_that_is_in_the_rings(tmp_path: Path) -> None:
    """A daemon that is killed and restarted reads every record, while the ranks keep writing."""
    with ranks_process(tmp_path, 50):
        with daemon(tmp_path) as first:
            assert first.metric("swtrace_ring_records_total", rank="0") >= 50 * 6
            first.process.kill()
        with daemon(tmp_path) as second:
            eventually(lambda: second.metric("swtrace_steps_total", rank="0") > 0, "the ranks to go on")
            assert second.metric("swtrace_ring_lost_records_total") == 0
            ring = second.client.get("/api/v1/ranks").json()["ranks"][0]["ring"]
            assert ring["written"] == ring["delivered"] + ring["pending"] >= 50 * 6


def test_killed_rank_is_down_and_its_records_are_counted(tmp_path: Path) -> None:
    """After SIGKILL a rank is down and not closed, and every record that it committed has been counted."""
    with ranks_process(tmp_path, 50) as ranks, daemon(tmp_path) as command:
        assert command.metric("swtrace_rank_up") == 2
        ranks.kill()
        ranks.wait(patience())
        eventually(lambda: command.metric("swtrace_rank_up") == 0, "the ranks to be down")
        for rank in command.client.get("/api/v1/ranks").json()["ranks"]:
            assert (rank["up"], rank["closed"]) == (False, False)
            ring = rank["ring"]
            assert (ring["pending"], ring["lapped"], ring["damaged"]) == (0, 0, 0)
            assert ring["written"] == ring["delivered"] == rank["records"] >= 50 * 6


def test_two_daemons_at_once_see_the_same(run: RecordedRun) -> None:
    """Readers do not disturb each other: two daemons over one folder report the same."""
    with daemon(run.directory) as one, daemon(run.directory) as other:
        for _ in range(5):
            run.write(10)
            for command in (one, other):
                assert command.metric("swtrace_ring_records_total", rank="0") == run.written
                assert command.metric("swtrace_steps_total", rank="1") == run.steps
                assert command.metric("swtrace_ring_lost_records_total") == 0


def test_daemon_survives_hostile_rings(run: RecordedRun) -> None:
    """Rings damaged at random, before and while they are read, harm neither the daemon nor the intact ranks."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201 (pytest shows it when the test fails)
    chance = random.Random(seed)  # noqa: S311
    run.write(5)
    written_before = run.steps
    sound = (run.recorders[0].path).read_bytes()
    victims = []
    for number in range(12):
        damaged = bytearray(sound)
        for _ in range(chance.choice((1, 20, 2000))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        victim = run.directory / f"ring-hostile-{number}-00000000.swt"
        victim.write_bytes(damaged[: chance.choice((len(damaged), len(damaged) // 2))])
        victims.append(victim)
    with daemon(run.directory) as command:
        for _ in range(10):
            victim = chance.choice(victims)
            with victim.open("r+b") as ring:
                ring.seek(chance.randrange(max(1, victim.stat().st_size)))
                ring.write(chance.randbytes(chance.choice((8, 64, 4096))))
            run.write(5)
            assert command.client.get("/healthz").text == "ok\n"
            assert command.client.get("/api/v1/snapshot").status_code == 200
            assert command.metric("swtrace_steps_total", rank="1") == run.steps - written_before
        assert "Traceback" not in command.end()
        assert command.process.returncode == 0


def test_a_log_that_nobody_reads_does_not_stop_the_daemon(run: RecordedRun) -> None:
    """A daemon whose stderr is a full pipe keeps reading and answering; it says later how many lines it lost."""
    with daemon(run.directory) as watching:
        assert watching.process.stderr is not None
        fcntl.fcntl(watching.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        for number in range(60):
            for index in range(SAID_PROBLEMS):
                (run.directory / f"ring-bad-{number}-{index}.swt").write_bytes(b"no ring")
            run.write()
            assert watching.metric("swtrace_steps_total", rank="0") == run.steps
            for path in run.directory.glob("ring-bad-*"):
                path.unlink()
            assert watching.client.get("/healthz").text == "ok\n"
        said = watching.end()
    assert "WARNING swtrace.daemon.observer: /" in said
