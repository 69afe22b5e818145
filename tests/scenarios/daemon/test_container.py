"""The daemon as a container beside ranks of another user: own pid and mount namespaces, rings mounted read-only."""

from __future__ import annotations

import os
import shutil
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
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun

USER = 9465
"""User and group of the image: neither a user of this machine nor that of the ranks."""
ENTER = """
mount --make-rprivate / && mount --bind "$1" /mnt && mount -o remount,bind,ro /mnt &&
shift && exec "$@" -m swtrace daemon --listen 127.0.0.1:0 --dir /mnt --json
"""

AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs")


def can_be_another_user() -> bool:
    """Return whether this process can make namespaces and another user can run this interpreter."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    command = ["unshare", "--pid", "--fork", "--mount", *AS_USER, sys.executable, "-c", "import swtrace, starlette"]
    return subprocess.run(command, env=environment(), cwd="/", capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    not can_be_another_user(), reason="needs root, namespaces, and an interpreter that any user can run"
)


@contextmanager
def contained_daemon(directory: Path) -> Iterator[httpx.Client]:
    """Run a daemon as another user in its own namespaces, with the rings mounted read-only."""
    namespaces = ("unshare", "--pid", "--fork", "--mount", "--mount-proc")
    process = subprocess.Popen(
        [*namespaces, "sh", "-c", ENTER, "sh", str(directory), *AS_USER, sys.executable],
        start_new_session=True,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with connected(process) as client:
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # unshare and the daemon, which is the first process of its namespace
        process.communicate(timeout=patience())


def samples(client: httpx.Client, name: str) -> dict[str, float]:
    """Return the value of each sample of a metric, by its text in the exposition."""
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)}


def test_daemon_of_another_user_reads_a_folder_of_its_group() -> None:
    """Across users, pid namespaces and a read-only mount, records are read and living ranks recognized."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        os.chown(directory, 0, USER)
        directory.chmod(0o2750)
        run = RecordedRun(directory)
        with contained_daemon(directory) as client:
            run.write(5)
            assert set(samples(client, "swtrace_steps_total").values()) == {5.0}
            assert set(samples(client, "swtrace_rank_up").values()) == {1.0}
            run.write(2)
            run.close()
            assert set(samples(client, "swtrace_steps_total").values()) == {7.0}
            assert set(samples(client, "swtrace_rank_up").values()) == {0.0}


def test_daemon_of_another_user_sees_nothing_of_rings_that_are_not_shared() -> None:
    """Rings in a folder that all users may list, but that was given to no group, stay private to their user."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        Path(name).chmod(0o755)
        run = RecordedRun(Path(name))
        run.write(5)
        with contained_daemon(Path(name)) as client:
            assert samples(client, "swtrace_steps_total") == {}
            problems = client.get("/api/v1/health").json()["problems"]
            assert len(problems) == 2
        run.close()
