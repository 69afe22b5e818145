"""vLLM's prefetch offloader on a simulated device, watched: what a worker does, without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from vllm.model_executor.offloader import base

from swtrace.ledger import Ledger
from swtrace.ledger.facts import StepFacts
from swtrace.series.device.accelerator import Device
from swtrace.series.watched import WatchedCopies
from swtrace.settings import Settings
from swtrace.trace.identity import RankIdentity
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader
from swtrace.vllm import passing, prefetch
from tests.support.device.quiet_machine import quiet_machine
from tests.support.device.simulated_device import SimulatedDevice
from tests.support.device.simulated_work import DeviceClock
from tests.support.offload_arithmetic import Durations, Plan
from tests.support.offload_ring import ledger_of
from tests.support.vllm.simulated_cuda import OffloadedModel


class WatchedModel:
    """A model whose copies are recorded. Use it inside :func:`watched_model`."""

    def __init__(self, model: OffloadedModel, recorder: Recorder) -> None:
        self.model = model
        self.recorder = recorder
        self.copies: WatchedCopies

    def run(self, steps: int | None = None) -> WatchedModel:
        """Run marked steps, let the device finish, and end the records."""
        for _ in range(self.model.plan.steps if steps is None else steps):
            with self.copies.step(tokens=1, requests=1):
                self.model.run_step()
        return self.finish()

    def step(self) -> None:
        """Run a marked step, and wait for its computes, as a host does that reads the step's result."""
        with self.copies.step(tokens=1, requests=1):
            self.model.run_step()
        self.model.device.wait_for_computes()

    def finish(self) -> WatchedModel:
        """Let the device finish, and end the records."""
        self.model.device.synchronise()
        self.copies.close()
        return self

    def records(self) -> Any:
        """Return everything in the ring."""
        with RingReader.open(self.recorder.path) as reader:
            return reader.read()

    def series(self) -> Any:
        """Return the constants in the ring's series table."""
        with RingReader.open(self.recorder.path) as reader:
            return reader.series()[0]

    def steps(self) -> tuple[StepFacts, ...]:
        """Return what a ledger makes of the records, step by step."""
        return self.ledger().take_steps()

    def ledger(self) -> Ledger:
        """Return a ledger of the records."""
        return ledger_of(self.recorder)


@contextmanager
def watched_model(
    folder: Path,
    plan: Plan,
    durations: Durations,
    *,
    call_ns: int = 0,
    every: int = 1,
    device: SimulatedDevice | None = None,
) -> Iterator[WatchedModel]:
    """Build a model under vLLM's offloader with swtrace's watcher in its place."""
    device = device or SimulatedDevice(clock=DeviceClock(drift_ppb=0), call_ns=call_ns)
    identity = RankIdentity("run", 3, "host", "boot", 1, 1)
    model = OffloadedModel(plan, durations, device)
    config: Any = SimpleNamespace()
    with ExitStack() as stack:
        recorder = Recorder.create(folder, identity, records=1 << 15)
        stack.callback(recorder.close)
        stack.enter_context(without_engine(recorder, device, plan.layers))
        stack.enter_context(quiet_machine())
        watched = WatchedModel(model, recorder)
        watcher: list[prefetch.PrefetchWatcher] = []

        def watch(offloader: Any) -> None:
            watcher.append(prefetch.PrefetchWatcher(Settings(time_every=every), config, offloader))
            base.set_offloader(watcher[0])

        stack.enter_context(model.served(watch))
        copies = watcher[0].copies
        assert copies is not None
        watched.copies = copies
        yield watched


@contextmanager
def without_engine(recorder: Recorder, device: Device, layers: int) -> Iterator[None]:
    """Stand in for what the watcher asks vLLM's engine, and for the device."""
    with ExitStack() as stack:
        for name, served in (
            ("TorchDevice", lambda _device: device),
            ("layer_range", lambda _config: (0, layers)),
            ("own_rank", lambda _settings, _config: recorder.identity.rank),
            ("process_recorder", lambda *_args: recorder),
            ("write_outcome", lambda _config, _outcome: None),
        ):
            stack.enter_context(patch.object(prefetch, name, served))
        stack.enter_context(patch.object(passing, "record_model", lambda _config: None))
        yield
