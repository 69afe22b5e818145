"""A ring of offloaded layers on a simulated device, copied in vLLM's order by code of its own, and watched."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from swtrace.diagnosis.diagnosis import Verdict, verdict
from swtrace.ledger import Ledger
from swtrace.ledger.facts import StepFacts
from swtrace.series.watched import WatchedCopies
from swtrace.trace.identity import H2D, Offload, RankIdentity, SeriesInfo
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader
from tests.support.device.quiet_machine import quiet_machine
from tests.support.device.simulated_device import SimulatedDevice, SimulatedStream
from tests.support.device.simulated_work import DeviceClock
from tests.support.offload_arithmetic import Durations, Plan

LAYER_BYTES = 1 << 20


def described(plan: Plan) -> SeriesInfo:
    """Return the constants of a series whose layers are offloaded."""
    return SeriesInfo(
        name="offload",
        start_layer=0,
        stack_layers=plan.layers,
        layers=tuple(plan.offloaded()),
        prefetch_step=plan.prefetch_step,
        windows="static",
        window_count=plan.prefetch_step,
        group_ranks=(0,),
        rank_in_group=0,
        transport=H2D,
        rendezvous="receiver",
        clock="device",
        layer_bytes=LAYER_BYTES,
        owned_layers=0,
        kind=H2D,
        queue="stream",
        offload=Offload(
            plan.group_size,
            plan.num_in_group,
            plan.prefetch_step * LAYER_BYTES,
            pinned=plan.pinned,
            params=plan.params,
            slots_may_collide=plan.colliding,
        ),
    )


def offloading(folder: Path, plan: Plan, durations: Durations) -> tuple[StepFacts, ...]:
    """Run a model, see :func:`offloading_ledger`; return its steps."""
    ledger = offloading_ledger(folder, plan, durations)
    return ledger.history(ledger.facts().series[0].key)


def offloading_verdict(folder: Path, plan: Plan, durations: Durations) -> Verdict:
    """Run a model, see :func:`offloading_ledger`; return the verdict over it."""
    ledger = offloading_ledger(folder, plan, durations)
    (facts,) = ledger.facts().series
    return verdict(facts, ledger.history(facts.key))


def offloading_ledger(folder: Path, plan: Plan, durations: Durations) -> Ledger:
    """Run a model whose host waits for each step, as one that reads each step's result does."""
    device = SimulatedDevice(clock=DeviceClock(drift_ppb=0), call_ns=0)
    copy_stream = device.prefetch_stream()
    info, identity = described(plan), RankIdentity("run", 0, "host", "boot", 1, 1)
    recorder = Recorder.create(folder, identity, records=1 << 15)
    try:
        copies = WatchedCopies(
            info,
            [torch.nn.Module() for _ in info.layers],
            [position % plan.prefetch_step for position in range(len(info.layers))],
            device,
            copy_stream,
            recorder,
            every=1,
        )
        ring = _Ring(plan, durations, device, copy_stream, copies)
        with quiet_machine():
            for step in range(plan.steps):
                with copies.step(tokens=1, requests=1):
                    ring.run(step)
                device.wait_for_computes()
        device.synchronise()
        copies.close()
        return ledger_of(recorder)
    finally:
        recorder.close()


def ledger_of(recorder: Recorder) -> Ledger:
    """Return a ledger of everything in a ring with one series."""
    identity = recorder.identity
    with RingReader.open(recorder.path) as reader:
        ledger = Ledger(keep_untaken=1 << 20)
        ledger.add_rank(identity)
        ledger.set_series(identity.key, (reader.series()[0],))
        ledger.add(identity.key, reader.read())
        ledger.flush()
        return ledger


class _Ring:
    def __init__(
        self, plan: Plan, durations: Durations, device: SimulatedDevice, stream: SimulatedStream, copies: WatchedCopies
    ) -> None:
        self._plan, self._durations, self._device, self._copies = plan, durations, device, copies
        self._stream = stream
        self._positions = {layer: position for position, layer in enumerate(plan.offloaded())}
        self._layers = plan.offloaded()
        self._done = [device.event(timed=False) for _ in self._layers]
        self._copied = [0] * len(self._layers)
        for position in range(min(plan.prefetch_step, len(self._layers))):
            self._copy(position)

    def run(self, step: int) -> None:
        for layer in self._plan.runs():
            position = self._positions.get(layer)
            if position is not None:
                if self._plan.fallback and self._copied[position] <= step:
                    self._copy(position)
                self._copies.waits(position, partial(self._device.current_stream().wait_event, self._done[position]))
            self._device.compute(self._durations.compute(step, layer))
            if position is not None:
                self._copy(self._plan.following(position))

    def _copy(self, position: int) -> None:
        def copy() -> None:
            issued = self._device.event(timed=False)
            issued.record(self._device.current_stream())
            self._stream.wait_event(issued)
            with self._device.on(self._stream):
                work = self._device.compute(self._durations.copy(self._copied[position], self._layers[position]))
            self._done[position].record(self._stream)
            self._copied[position] += 1
            if not self._plan.pinned:  # the call returns when the copy has ended
                assert work.end_ns is not None
                self._device.host.now_ns = max(self._device.host.now_ns, work.end_ns)

        self._copies.copies(position, copy)
