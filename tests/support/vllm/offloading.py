"""vLLM's own offloader, watched on a device: one scenario for a simulated device and a GPU alike.

vLLM's offloader may be imported from its sources alone: then a scenario needs a process of its own, and nothing of vLLM
may be imported before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from swtrace.ledger.facts import StepFacts
from swtrace.settings import Settings
from swtrace.trace.identity import RankIdentity, SeriesInfo
from swtrace.trace.recorder import Recorder
from swtrace.trace.schema import TransferFlag
from tests.support.device.claims import HEAD_START_NS, US
from tests.support.device.rig import Rig, SimulatedRig, Task
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.vllm.offloader_sources import use_sources

if TYPE_CHECKING:
    from swtrace.ledger import Ledger

CUDA = "cuda"
LAYERS, STEPS = 12, 5
PARAMETERS = 2
"""Per layer; each is copied on its own."""
WIDTH = 2048
"""Of a layer on a GPU: its copy takes longer than comparing its bytes."""
COPY_NS = 300 * US
"""What the copy of a parameter takes on the simulated device."""


class Shape(NamedTuple):
    """vLLM's three settings."""

    group_size: int
    num_in_group: int
    prefetch_step: int


@dataclass(slots=True)
class Run:
    """What the offloader did in some steps, and what the watcher recorded."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    """Each call of vLLM's offloader in the steps, with its position."""
    copied_bytes: int = 0
    """By vLLM's copies in the steps."""
    readings: tuple[int, int] = (0, 0)
    """Comparisons of weights with what they must be, and how many failed."""
    info: SeriesInfo | None = None
    steps: tuple[StepFacts, ...] = ()
    accounted_bytes: int = 0
    untimed: int = 0

    @property
    def stall_ns(self) -> int:
        """Of all waits."""
        return sum(int(step.stall_ns.sum()) for step in self.steps)

    def broken(self) -> list[str]:
        """Return what is not as it must be on any device."""
        assert self.info is not None
        said = []
        layers, ahead = self.info.num_layers, self.info.prefetch_step
        for step in self.steps:
            copied = (step.flags[0] & TransferFlag.PREFILLED) == 0
            expected = np.arange(layers) >= (ahead if step.step == 0 else 0)
            issued, ready, begin, end = (
                each[0][copied] for each in (step.issued_ns, step.ready_ns, step.wait_begin_ns, step.wait_end_ns)
            )
            known = step.attributed[0][copied]
            transfer = step.transfer_ns[0][copied][known]
            for claim, holds in (
                ("every layer but the first ones of the first step has a copy", copied == expected),
                ("a copy is issued before it is ready", (issued > 0) & (issued <= ready)),
                ("a wait ends at its begin or when the copy is ready", end == np.maximum(begin, ready)),
                (
                    "the stall is what ready is later than the wait",
                    step.stall_ns[0][copied] == np.maximum(0, ready - begin),
                ),
                ("the slack is what it is earlier", step.slack_ns[0][copied] == np.maximum(0, begin - ready)),
                (
                    "a transfer takes time, and ends within its copy",
                    (transfer > 0) & (transfer <= (ready - issued)[known]),
                ),
                ("copies run in the order of their issue", np.diff(ready[np.argsort(issued, kind="stable")]) >= 0),
            ):
                if not holds.all():
                    said.append(f"step {step.step}: {claim}: {holds}")
        numbers = [step.step for step in self.steps]
        if numbers != list(range(STEPS)) or self.untimed:
            said.append(f"steps {numbers}, and {self.untimed} untimed ones")
        if self.accounted_bytes != self.copied_bytes:
            said.append(f"{self.accounted_bytes} bytes recorded, and {self.copied_bytes} copied")
        if self.info.offload is None or not self.info.offload.pinned:
            said.append("host memory is not pinned")
        return said


@dataclass(frozen=True, slots=True)
class Compared:
    """The same forwards without swtrace, with it, and with so much compute that it hides every copy."""

    alone: Run
    watched: Run
    hidden: Run

    def broken(self) -> list[str]:
        """Return what is not as it must be on any device; no claim is about how long something takes."""
        said = [*self.watched.broken(), *(f"hidden: {claim}" for claim in self.hidden.broken())]
        for claim, holds in (
            ("vLLM's calls are the same with swtrace", self.alone.calls == self.watched.calls == self.hidden.calls),
            ("copies that compute cannot hide stall", self.watched.stall_ns > 0),
            ("copies with enough time do not", self.hidden.stall_ns == 0),
        ):
            if not holds:
                said.append(claim)
        readings = {run.readings for run in (self.alone, self.watched, self.hidden)}
        if readings != {(2 * STEPS * LAYERS * PARAMETERS, 0)}:
            said.append(f"comparisons of weights, and those that failed: {readings}")
        return said


def compare(_number: int, where: str, folder: str, sources: str, shape: Shape) -> Compared:
    """Run forwards in this process. ``sources`` is empty where vLLM is installed."""
    if sources:
        use_sources(Path(sources))
    shortest_ns = 10 * US
    runs = []
    for name, watch in (("alone", False), ("watched", True)):
        with _rig(where) as (rig, parameter):
            runs.append(_run(rig, parameter, Path(folder, name), shape, shortest_ns, watch=watch))
    transfers = np.concatenate([step.transfer_ns[step.attributed] for step in runs[1].steps])
    with _rig(where) as (rig, parameter):
        runs.append(_run(rig, parameter, Path(folder, "hidden"), shape, 20 * int(transfers.max()), watch=True))
    return Compared(*runs)


@contextmanager
def _rig(where: str) -> Iterator[tuple[Rig, type[nn.Parameter]]]:
    """Yield a device and the class of the parameters on it."""
    if where == CUDA:
        from tests.support.device.cuda_rig import CudaRig

        yield CudaRig(width=WIDTH), nn.Parameter
        return
    from tests.support.vllm.simulated_cuda import DeviceParameter, simulated_cuda

    device = SimulatedDevice()
    with simulated_cuda(device, lambda _source: COPY_NS):
        yield SimulatedRig(device), DeviceParameter


class _Layer(nn.Module):
    """Reads each of its weights as a linear does, for a while."""

    def __init__(self, rig: Rig, contents: list[Tensor], parameter: type[nn.Parameter], ns: int) -> None:
        super().__init__()
        self._rig, self._ns = rig, ns
        self._expected = [content.view(-1).view(torch.uint8) for content in contents]
        for number, content in enumerate(contents):
            self.register_parameter(f"weight_{number}", parameter(content.clone(), requires_grad=False))

    def forward(self, hidden_states: Tensor) -> Tensor:
        for weight, expected in zip(self.parameters(), self._expected, strict=True):
            self._rig.read(weight, expected, self._ns // PARAMETERS)
        return hidden_states


def _run(rig: Rig, parameter: type[nn.Parameter], folder: Path, shape: Shape, compute_ns: int, *, watch: bool) -> Run:
    from vllm.model_executor.offloader import base, prefetch

    from swtrace.vllm.prefetch import PrefetchWatcher
    from tests.support.offload_ring import ledger_of
    from tests.support.vllm.watched_offloader import without_engine

    found = Run()

    class Logged(prefetch.PrefetchOffloader):  # type: ignore[misc]  # vLLM is absent where types are checked
        def _wait_for_layer(self, layer_idx: int) -> None:
            found.calls.append(("wait", layer_idx))
            super()._wait_for_layer(layer_idx)

        def _start_prefetch(self, layer_idx: int) -> None:
            found.calls.append(("copy", layer_idx))
            found.copied_bytes += sum(each.num_bytes for each in self.module_offloaders[layer_idx].get_param_infos())
            super()._start_prefetch(layer_idx)

    generator = torch.Generator().manual_seed(0)

    def content() -> Tensor:
        return torch.randn(rig.width, rig.width, generator=generator).to(rig.memory)

    folder.mkdir()
    config: Any = SimpleNamespace()
    identity = RankIdentity("run", 0, "host", "boot", os.getpid(), time.time_ns())
    with ExitStack() as stack:
        recorder = Recorder.create(folder, identity, records=1 << 15)
        stack.callback(recorder.close)
        stack.enter_context(without_engine(recorder, rig.device, LAYERS))
        offloader: Any = Logged(*shape)
        serving: Any = PrefetchWatcher(Settings(time_every=1), config, offloader) if watch else offloader
        stack.callback(base.set_offloader, base.get_offloader())
        base.set_offloader(serving)
        layers = serving.wrap_modules(
            _Layer(rig, [content() for _ in range(PARAMETERS)], parameter, compute_ns) for _ in range(LAYERS)
        )
        serving.post_init()
        rig.compute(Task("head start", 0), HEAD_START_NS)
        hidden_states = torch.zeros(1, device=rig.memory)
        for _ in range(STEPS):
            with serving.copies.step(tokens=1, requests=1) if watch else ExitStack():
                for layer in layers:
                    hidden_states = layer.forward(hidden_states)
        found.readings = rig.readings()
        if watch:
            serving.copies.close()
            _read(found, ledger_of(recorder))
    return found


def _read(found: Run, ledger: Ledger) -> None:
    found.steps = ledger.take_steps()
    ((facts,),) = (series.ranks for series in ledger.facts().series)
    found.info = facts.info
    found.accounted_bytes = facts.totals.bytes
    found.untimed = sum(facts.totals.untimed_steps.values())
