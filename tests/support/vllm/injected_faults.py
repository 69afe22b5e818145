"""Real vLLM on two ranks that generate until a fault has been looked at. Runs inside ranks, forked from ``fork_ranks``.

Either every rank has the whole model (``replicas``), so that no collective but the series' joins their steps. Or two
workers of one engine split the heads (``tensor_parallel``): then vLLM reduces twice in each layer.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from swtrace.cli.demo.busy import BusyProcesses
from tests.support.vllm.faults import engine
from tests.support.vllm.faults import generate as generate_one

LAYER = 5
"""Whose MLP is slow or hangs."""
TOKENS = 60
"""Steps of a request."""


class Act(StrEnum):
    """What a faulty rank does."""

    SLOW = "slow"
    """Compute longer in one layer."""
    HANG = "hang"
    """Never return from that layer."""
    LATE = "late"
    """Pause before each step."""
    BUSY = "busy"
    """Share its core with another process."""
    KILLED = "killed"
    """Nothing by itself: SIGKILL comes at any moment."""
    STOPPED = "stopped"
    """The same with SIGSTOP."""


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault, and when."""

    act: Act
    rank: int
    ms: float = 0.0
    every: int = 1
    """Of so many steps, one has the fault."""

    def __str__(self) -> str:
        """Return it in words."""
        took = f" {self.ms:g} ms" if self.ms else ""
        often = f" every {self.every} steps" if self.every > 1 else ""
        return f"rank {self.rank} {self.act}{took}{often}"


@dataclass(frozen=True, slots=True)
class Place:
    """Files by which ranks and their watcher meet."""

    folder: Path
    healthy_s: float
    faulty_s: float

    @property
    def begun(self) -> Path:
        """When the fault began, in UNIX ns."""
        return self.folder / "begun"

    def pid(self, rank: int) -> Path:
        """The process of a rank. Once it exists, the rank runs, and its time is counted."""
        return self.folder / f"pid-{rank}"

    def start(self, rank: int) -> None:
        """Say that a rank runs."""
        _write(self.pid(rank), os.getpid())


def _write(file: Path, number: int) -> None:
    new = file.with_suffix(".new")
    new.write_text(str(number))
    new.rename(file)


class _Doing:
    """A fault in this process, from some time on."""

    def __init__(self, fault: Injected, place: Place) -> None:
        self._fault, self._place = fault, place
        self._begin_s = time.monotonic() + place.healthy_s
        self._calls = 0
        self._busy = BusyProcesses(fault.rank, 1) if fault.act is Act.BUSY else None

    def __call__(self) -> None:
        """Do it, if it is time."""
        if time.monotonic() < self._begin_s:
            return
        self._calls += 1
        if self._calls == 1:
            _write(self._place.begun, time.time_ns())
            if self._busy is not None:
                self._busy.__enter__()
        if self._fault.act is Act.HANG:
            signal.pause()
        elif self._fault.ms and self._calls % self._fault.every == 0:
            time.sleep(self._fault.ms / 1e3)

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does it first."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self()
            return call(*args, **kwargs)

        return called

    def close(self) -> None:
        """End what still runs."""
        if self._busy is not None:
            self._busy.close()


def arm(worker: Any, fault: Injected | None, place: Place) -> None:
    """Let a rank do in its layer what it shall, later. Called in the process of each rank."""
    import torch.distributed as dist

    if fault is not None and fault.rank == dist.get_rank() and fault.act in {Act.SLOW, Act.HANG, Act.BUSY}:
        mlp = worker.get_model().model.layers[LAYER].mlp
        doing = _Doing(fault, place)
        mlp.forward = doing.before(mlp.forward)
        worker.swtrace_fault = doing
    place.start(dist.get_rank())


def disarm(worker: Any) -> None:
    """End what a fault has started."""
    doing = vars(worker).pop("swtrace_fault", None)
    if doing is not None:
        doing.close()


def replicas(llm: Any, fault: Injected | None, place: Place) -> None:
    """Generate with replicas until the time is over; the inspection of a ``Workload``."""
    import torch
    import torch.distributed as dist
    from vllm import SamplingParams

    rank = dist.get_rank()
    if fault is not None and fault.act is Act.LATE and fault.rank == rank:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        scheduler.schedule = _Doing(fault, place).before(scheduler.schedule)
    dist.barrier()
    llm.collective_rpc(arm, args=(fault, place))
    end_s = time.monotonic() + place.healthy_s + place.faulty_s
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [7 + request, 9, 11, 13]} for request in range(4)]
    over = torch.zeros(1)
    while not over.item():
        llm.generate(prompts, sampling, use_tqdm=False)
        over.fill_(time.monotonic() > end_s)
        dist.broadcast(over, 0)  # all ranks generate equally often
    llm.collective_rpc(disarm)


def tensor_parallel(model: Path, name: str, fault: Injected | None, place: Place) -> None:
    """Generate with two workers of an engine until the time is over; ``name`` is unique to it."""
    llm = engine(model, name)
    executor: Any = llm.llm_engine.engine_core.engine_core.model_executor
    generate_one(llm, 16)
    executor.collective_rpc(arm, args=(fault, place))
    end_s = time.monotonic() + place.healthy_s + place.faulty_s
    try:
        while time.monotonic() < end_s:
            generate_one(llm, TOKENS)
        executor.collective_rpc(disarm)
    except Exception:  # noqa: BLE001 (the fault has ended the engine)
        traceback.print_exc()
    finally:
        executor.shutdown()
