"""The daemon as a container beside ranks of another user: own pid and mount namespaces, rings mounted read-only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.daemon_command import ROOT, connected, environment
from tests.support.other_user import USER, as_user, needs_other_users
from tests.support.patience import eventually, patience
from tests.support.recorded_run import RecordedRun

ENTER = """
mount --make-rprivate / && mount --bind "$1" /mnt && mount -o remount,bind,ro /mnt &&
shift && exec "$@" -m swtrace daemon --listen 127.0.0.1:0 --dir /mnt --json
"""

pytestmark = needs_other_users


@contextmanager
def contained_daemon(directory: Path) -> Iterator[tuple[httpx.Client, list[str]]]:
    """Run a daemon as another user in its own namespaces, with the rings mounted read-only.

    Yields:
        A client, and a list that has the warnings of the daemon's log once it has ended.
    """
    log: list[str] = []
    namespaces = ("unshare", "--pid", "--fork", "--mount", "--mount-proc")
    process = subprocess.Popen(
        [*namespaces, "sh", "-c", ENTER, "sh", str(directory), *as_user(USER), sys.executable],
        start_new_session=True,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with connected(process) as client:
            yield client, log
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # unshare and the daemon, which is the first process of its namespace
        log += [line for line in process.communicate(timeout=patience())[1].splitlines() if " WARNING " in line]


def samples(client: httpx.Client, name: str) -> dict[str, float]:
    """Return the value of each sample of a metric, by its text in the exposition."""
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)}


GONE = "no longer a problem"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder as Docker makes it: it belongs to root, and nobody else may write there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def share(directory: Path) -> None:
    """Give a folder to the daemon's group, as the service `rings` of docker-compose.yml does."""
    os.chown(directory, 0, USER)
    directory.chmod(0o3777)


def test_daemon_of_another_user_reads_a_folder_of_its_group(folder: Path) -> None:
    """Across users, pid namespaces and a read-only mount, records are read and living ranks recognized."""
    os.chown(folder, 0, USER)
    folder.chmod(0o2750)
    run = RecordedRun(folder)
    with contained_daemon(folder) as (client, _log):
        run.write(5)
        assert set(samples(client, "swtrace_steps_total").values()) == {5.0}
        assert set(samples(client, "swtrace_rank_up").values()) == {1.0}
        assert client.get("/healthz").text == "ok\n"
        run.write(2)
        run.close()
        assert set(samples(client, "swtrace_steps_total").values()) == {7.0}
        assert set(samples(client, "swtrace_rank_up").values()) == {0.0}


def test_a_folder_as_after_a_reboot_is_said_until_it_is_shared_again(folder: Path) -> None:
    """While no rank could be seen, health and metric say so and why; one log line each when it begins and ends."""
    with contained_daemon(folder) as (client, log):
        blind = client.get("/healthz")
        assert blind.status_code == 503
        assert "only its own user can read a ring (folder of user 0, group 0, mode 0755)" in blind.text
        assert samples(client, "swtrace_daemon_ready") == {"swtrace_daemon_ready": 0}
        assert samples(client, "swtrace_ring_problems") == {"swtrace_ring_problems": 0}
        share(folder)
        eventually(lambda: client.get("/healthz").text == "ok\n", "the daemon to notice")
        assert samples(client, "swtrace_daemon_ready") == {"swtrace_daemon_ready": 1}
        run = RecordedRun(folder)
        eventually(lambda: len(samples(client, "swtrace_rank_up")) == 2, "the ranks")
        run.close()
    assert [line.partition("/mnt: ")[2] for line in log] == [blind.text.strip().partition("/mnt: ")[2], GONE]


def test_rings_that_are_older_than_the_sharing_of_their_folder_are_named(folder: Path) -> None:
    """Rings of mode 0600 are counted, logged once, and named with what helps; then their ranks are shown."""
    run = RecordedRun(folder)
    share(folder)
    with contained_daemon(folder) as (client, log):
        problems = client.get("/api/v1/health").json()["problems"]
        assert [Path(problem["path"]).name for problem in problems] == sorted(each.path.name for each in run.recorders)
        for problem in problems:
            assert "user 9465 may not read it (owner 0, mode 0600); it was made before" in problem["message"]
            assert "run chgrp 9465 and chmod g+r on the file; or restart its rank" in problem["message"]
        assert samples(client, "swtrace_ring_problems") == {"swtrace_ring_problems": 2}
        for recorder in run.recorders:
            os.chown(recorder.path, 0, USER)
            recorder.path.chmod(0o640)
        eventually(lambda: set(samples(client, "swtrace_rank_up").values()) == {1.0}, "the ranks")
        assert samples(client, "swtrace_ring_problems") == {"swtrace_ring_problems": 0}
    run.close()
    assert [line.rpartition(GONE)[1] for line in log] == ["", "", GONE]


def test_a_folder_that_is_removed_under_its_mount_is_said(folder: Path) -> None:
    """A container keeps the removed folder, and would never see the ranks that make a new one."""
    share(folder)
    with contained_daemon(folder) as (client, _log):
        assert client.get("/healthz").text == "ok\n"
        folder.rmdir()
        folder.mkdir()
        eventually(lambda: client.get("/healthz").status_code == 503, "the daemon to notice")
        assert "was removed, but is still mounted here: restart this container" in client.get("/healthz").text
