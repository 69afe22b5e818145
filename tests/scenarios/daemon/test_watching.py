"""Daemons of two hosts and one that watches them, as separate processes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.commands import Swtrace
from tests.support.daemon_command import DaemonCommand, daemon
from tests.support.patience import eventually
from tests.support.recorded_run import HostRun


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[HostRun]]:
    """Two ranks of one run on each of two hosts."""
    runs = [HostRun(tmp_path / host, host=host, first=2 * number) for number, host in enumerate(("host-a", "host-b"))]
    yield runs
    for run in runs:
        run.close()


def address(command: DaemonCommand) -> str:
    """Return where a daemon serves."""
    return f"127.0.0.1:{command.client.base_url.port}"


def test_every_reader_of_a_watching_daemon_sees_all_hosts(
    hosts: list[HostRun], swtrace: Swtrace, tmp_path: Path
) -> None:
    """Metrics, API, ``top`` and ``record`` show four ranks on two hosts, through one daemon that ends in order."""
    with ExitStack() as stack:
        commands = [stack.enter_context(daemon(run.directory)) for run in hosts]
        watched = ",".join(map(address, commands))
        watcher = stack.enter_context(daemon(None, SWTRACE_WATCH=watched, SWTRACE_WATCH_EVERY="1"))
        eventually(lambda: watcher.metric("swtrace_rank_up") == 4, "the ranks of both hosts")
        for run in hosts:
            run.write(20)
        eventually(lambda: watcher.metric("swtrace_steps_total", host="host-b", rank="3") >= 20, "the steps")
        once = swtrace("top", "--once", "--connect", address(watcher))
        assert once.returncode == 0, once.stderr
        shown = json.loads(swtrace("top", "--json", "--connect", address(watcher)).stdout)
        assert [rank["rank"] for rank in shown["ranks"]] == [0, 1, 2, 3]
        for run in hosts:
            run.close()
        file = tmp_path / "run.swrec"
        recorded = swtrace("record", "--connect", address(watcher), "--until-end", "--json", "-o", str(file))
        said = json.loads(recorded.stdout)
        assert (said["ranks"], said["records"]) == (4, 4 * hosts[0].written), recorded.stderr
        assert watcher.end() == ""
        assert watcher.process.returncode == 0


def test_a_source_that_is_killed_and_started_again_is_read_again(hosts: list[HostRun]) -> None:
    """A daemon that dies takes its ranks with it; the watching daemon says so, and shows them once it is back."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(daemon(run.directory)) for run in hosts)
        port = int(address(second).rpartition(":")[2])
        watcher = stack.enter_context(daemon(None, SWTRACE_WATCH=f"{address(first)},{address(second)}"))
        eventually(lambda: watcher.metric("swtrace_rank_up") == 4, "the ranks of both hosts")
        second.end(signal.SIGKILL)
        eventually(lambda: watcher.metric("swtrace_watched_up") == 1, "the loss")
        eventually(lambda: watcher.metric("swtrace_rank_up") == 2, "the ranks that remain")
        stack.enter_context(daemon(hosts[1].directory, port))
        eventually(lambda: watcher.metric("swtrace_rank_up") == 4, "the ranks that return")
        said = watcher.end()
    assert f"{address(second)}: no longer a problem" in said
