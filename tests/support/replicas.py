"""Processes that share no torch world, for the tests of ranks that pull.

``replica(1, program, arguments...)`` runs ``program(1, *arguments)`` in a process of its own. It can be killed, and
another one started in its place.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tests.support.ranks import Rank, fork_server

T = TypeVar("T")


@contextmanager
def replica(number: int, program: Callable[..., Any], *arguments: Any) -> Iterator[Rank]:
    """Start a process and yield it. Kill it at the end if it still runs."""
    context = fork_server()
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(number, theirs, program, arguments), name=f"replica {number}")
    process.start()
    theirs.close()
    try:
        yield Rank(number, process, mine)
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        mine.close()


def run_replicas(count: int, program: Callable[..., T], *arguments: Any) -> list[T]:
    """Run ``program(number, *arguments)`` in as many processes; return the results by number."""
    with ExitStack() as stack:
        started: Sequence[Rank] = [stack.enter_context(replica(number, program, *arguments)) for number in range(count)]
        return [each.result() for each in started]


def _run(number: int, connection: Connection, program: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        answer = (True, program(number, *arguments))
    except BaseException:  # noqa: BLE001 - told to the parent, whatever it is
        answer = (False, traceback.format_exc())
    connection.send_bytes(pickle.dumps(answer))
    connection.close()
    if not answer[0]:
        os._exit(1)
