"""Real gloo ranks for tests: processes forked from one server that has torch loaded already.

``run_ranks(2, program, arguments...)`` runs ``program(rank, arguments...)`` in two processes that share
a default process group, and returns the results by rank. A program and its arguments must be picklable,
so a program is a module-level function. Torch's import is paid once for a whole test session.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.support.patience import patience

if TYPE_CHECKING:
    from tests.support.hosts import Host

T = TypeVar("T")
PRELOADED = [
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "numpy",
    "pytest",
    "swtrace.series",
    "swtrace.series.torch_transport",
    "swtrace.recording.tee",
]


def fork_server() -> ForkServerContext:
    """Return what starts processes from the one server that has torch loaded.

    Python starts one for each test worker, with what the first user preloads: so all tests take it from here.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class RankFailedError(AssertionError):
    """A rank raised, or died without a result."""


@dataclass(slots=True)
class Rank:
    """One rank's process."""

    number: int
    process: BaseProcess
    connection: Connection

    def result(self) -> Any:
        """Return what the program returned; raise what it raised, with its traceback in words."""
        timeout = patience()
        if not self.connection.poll(timeout):
            raise RankFailedError(f"rank {self.number} gave no result within {timeout:.0f} s")
        try:
            good, value = pickle.loads(self.connection.recv_bytes())  # noqa: S301 - our own child wrote it
        except EOFError:
            self.process.join(timeout)
            raise RankFailedError(f"rank {self.number} died with exit code {self.process.exitcode}") from None
        if not good:
            raise RankFailedError(f"rank {self.number}: {value}")
        return value


@contextmanager
def ranks(
    world_size: int,
    program: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    hosts: Sequence[Host] = (),
) -> Iterator[list[Rank]]:
    """Start one process per rank and yield them. Kill those that still run at the end.

    Args:
        world_size: Number of ranks.
        program: Called as ``program(rank, *arguments)``.
        arguments: More arguments of the program.
        environment: Variables to set.
        hosts: The host of each rank; by default, all ranks run on this machine.
    """
    context = fork_server()
    with tempfile.TemporaryDirectory() as folder:
        started: list[Rank] = []
        try:
            for number in range(world_size):
                mine, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank,
                    args=(number, world_size, str(Path(folder, "meet")), theirs, program, arguments, environment or {}),
                    kwargs={"host": hosts[number] if hosts else None},
                    name=f"rank {number}",
                )
                process.start()
                theirs.close()
                started.append(Rank(number, process, mine))
            yield started
        finally:
            for rank in started:
                if rank.process.is_alive():
                    rank.process.kill()
                rank.process.join()
                rank.connection.close()


def run_ranks(
    world_size: int,
    program: Callable[..., T],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    hosts: Sequence[Host] = (),
) -> list[T]:
    """Run ``program(rank, *arguments)`` on every rank; return the results by rank, or raise the first failure."""
    with ranks(world_size, program, *arguments, environment=environment, hosts=hosts) as started:
        open_connections = {rank.connection: rank for rank in started}
        results: dict[int, T] = {}
        while open_connections:
            ready = wait(list(open_connections), timeout := patience())
            if not ready:
                missing = sorted(rank.number for rank in open_connections.values())
                raise RankFailedError(f"ranks {missing} gave no result within {timeout:.0f} s")
            for connection in ready:
                rank = open_connections.pop(connection)  # type: ignore[call-overload]
                results[rank.number] = rank.result()
        for rank in started:
            rank.process.join(patience())
            if rank.process.exitcode != 0:
                raise RankFailedError(f"rank {rank.number} ended with exit code {rank.process.exitcode}")
        return [results[number] for number in range(world_size)]


def _rank(
    number: int,
    world_size: int,
    meeting: str,
    connection: Connection,
    program: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: Mapping[str, str],
    *,
    host: Host | None,
) -> None:
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", **environment})
    if host is not None:
        host.enter()
        os.environ.update(host.settings)
    gc.freeze()  # what the fork server loaded is no garbage of ours
    import torch
    from torch import distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=number,
        world_size=world_size,
        timeout=timedelta(seconds=patience()),
    )
    try:
        answer = (True, program(number, *arguments))
    except BaseException:  # noqa: BLE001 - told to the parent, whatever it is
        answer = (False, traceback.format_exc())
    connection.send_bytes(pickle.dumps(answer))
    connection.close()
    if answer[0]:
        dist.barrier()
        dist.destroy_process_group()
    else:
        os._exit(1)
