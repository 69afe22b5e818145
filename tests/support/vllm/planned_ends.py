"""An engine with two workers that is stopped on purpose, in each of vLLM's ways. Runs inside a rank."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from swtrace.observing import watch_rings
from swtrace.trace.directory import ring_paths
from swtrace.trace.ring_reader import RingReader
from tests.support.patience import eventually, patience
from tests.support.vllm.faults import engine, generate

GRACE_S = 15.0
"""A worker whose engine and peer are gone gets this long to end. In a collective, it would wait forever."""
LONG = 200
"""Tokens of a generation that is still running when the engine is stopped."""


def end(model: Path, name: str, how: str) -> tuple[dict[int, str], set[int]]:
    """Serve in another process and end it.

    Returns:
        The state of each rank's ring once none is locked any more, and the ranks that readers report as died.
    """
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(model, name, how, theirs))
    process.start()
    theirs.close()
    workers: list[int] = mine.recv()
    handles = [os.pidfd_open(pid) for pid in workers]
    watch = watch_rings(Path(os.environ["SWTRACE_DIR"]))
    watch.drain()
    if how.startswith("workers"):
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
    elif how.startswith("all"):
        for pid in (*workers, process.pid or 0):
            os.kill(pid, signal.SIGTERM)
    elif how.startswith("engine"):
        os.kill(process.pid or 0, signal.SIGKILL)
    rings = [RingReader.open(path) for path in ring_paths(Path(os.environ["SWTRACE_DIR"]))]
    deadline = time.monotonic() + patience()
    while any(ring.alive() for ring in rings) and time.monotonic() < deadline:
        watch.drain()
        time.sleep(0.05)
        if not process.is_alive() and any(ring.closed() for ring in rings):
            deadline = min(deadline, time.monotonic() + patience(GRACE_S))
    process.kill()
    process.join()
    for handle in handles:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
    eventually(lambda: not any(ring.alive() for ring in rings), "every worker is gone")
    watch.drain()
    died = {rank.identity.rank for rank in watch.observe().ranks if rank.died}
    watch.close()
    return {
        ring.identity.rank: "alive" if ring.alive() else "closed" if ring.closed() else "dead" for ring in rings
    }, died


def _close_for_ever(_worker: Any) -> None:
    """Make this worker wait on shutdown, as for peers that never receive its broadcasts."""
    from swtrace.vllm import steps

    patch.object(steps, "forget", lambda: time.sleep(patience())).start()


def _serve(model: Path, name: str, how: str, pipe: Connection) -> None:
    llm = engine(model, name)
    generate(llm, 2)
    executor: Any = llm.llm_engine.engine_core.engine_core.model_executor
    pipe.send([handle.proc.pid for handle in executor.workers])
    if how.endswith("amid a step"):
        generate(llm, LONG)
    elif how == "shutdown":
        executor.shutdown()
    elif how == "killed while closing":
        executor.collective_rpc(_close_for_ever)
        executor.shutdown()
    elif how == "deleted":
        del executor, llm
        gc.collect()
    elif how == "exit":
        return
    time.sleep(patience())
