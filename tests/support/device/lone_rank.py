"""One rank of a series on a device, with peers that exist only as their bytes: the program that tests run.

Durations are injected: what a forward computes before each linear, the linear itself, and how long each
broadcast takes. So what every wait must find follows from arithmetic alone (:mod:`device_schedule`), and can be
compared with what the series recorded, on a simulated device and on a real one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swtrace.ledger import Ledger
from swtrace.ledger.facts import StepFacts
from swtrace.placement import source_rank
from swtrace.series import RankGroup, Series
from swtrace.series.device.device_transport import DeviceTransport
from swtrace.series.transport import MovedLayer
from swtrace.trace.identity import RankIdentity
from swtrace.trace.recorder import Recorder
from swtrace.trace.ring_reader import RingReader
from tests.support.device.expected import Durations, Schedule
from tests.support.device.rig import Rig, Task

BEFORE, TRANSFER = "before", "transfer"
"""Tasks: the compute between a layer's reach and its wait, and its broadcast."""


class LonePeerMover:
    """This process is one rank of several; the others are there only as the bytes that they would send.

    Each broadcast takes the duration that its layer was given. What is moved next follows from the circle's order;
    where a graph comes between, the test says (:attr:`next`).
    """

    name = "lone peer"
    rendezvous = "source"

    def __init__(
        self, rig: Rig, contents: Sequence[Tensor], durations: Durations, prefetch_step: int, rank: int
    ) -> None:
        self.serving = False
        """Before, while layers are placed, bytes arrive at once."""
        self.next = prefetch_step
        """The position that is moved next: post-processing begins with layer k, and so does the first step."""
        self.launch_ns = 0
        """What moving has cost the launching thread."""
        self._rig = rig
        self._contents = contents
        self._sink = contents[0].clone()
        """What takes up the bytes that this rank sends."""
        self._durations = durations
        self._rank = rank
        self._ranks = 0
        self._start = 0

    def describe(self, start_layer: int, ranks: int) -> None:
        """Remember the layers."""
        self._start, self._ranks = start_layer, ranks

    def gather(self, item: object) -> list[object]:
        """Return the answers of peers that agree."""
        return [item] * self._ranks

    def move(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Move the next layer of the circle."""
        position = self.next
        content = self._contents[position]
        source = layer.source
        assert source == source_rank(self._start + position, self._ranks), "the circle's order is another"
        self.next = (position + 1) % len(self._contents)
        begun_ns = self._rig.device.host_ns()
        if not self.serving:
            buffer.copy_(content)
        else:
            target = buffer if source != self._rank else self._sink
            self._rig.fill(Task(TRANSFER, position), target, content, self._durations.transfer[position])
        self.launch_ns += self._rig.device.host_ns() - begun_ns

    def close(self) -> None:
        """There is nothing to release."""


class Program:
    """A series on one rank, and forwards through it."""

    def __init__(
        self,
        rig: Rig,
        folder: Path,
        durations: Durations,
        *,
        prefetch_step: int = 1,
        ranks: int = 2,
        rank: int = 0,
        start_layer: int = 0,
        every: int = 1,
        windows: str = "static",
        traced: bool = True,
        time_every: int | None = 1,
        **options: Any,
    ) -> None:
        """Load, register and post-process.

        Args:
            rig: the device.
            folder: of the ring.
            durations: one per layer.
            prefetch_step: k.
            ranks: of the group.
            rank: this one.
            start_layer: absolute index of the first layer.
            every: one layer in so many is shared; the others are resident, and no part of the program.
            windows: policy.
            traced: whether there is a recorder.
            time_every: how many steps there are for each timed one; None leaves it to the settings.
            options: more of the series'.
        """
        layers = len(durations.linear)
        self.rig = rig
        self.durations = durations
        self.prefetch_step = prefetch_step
        self.start_layer, self.every = start_layer, every
        generator = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(rig.width, rig.width, generator=generator).to(rig.memory) for _ in range(layers)]
        contents = [weight.view(-1).view(torch.uint8) for weight in self.weights]
        self.contents = contents
        self.owned = [source_rank(start_layer + position, ranks) == rank for position in range(layers)]
        identity = RankIdentity("run", rank, "host", "boot", os.getpid(), time.time_ns())
        self.recorder = Recorder.create(folder, identity, records=1 << 15) if traced else None
        self.mover, self.transport = self._connect(rank, ranks)
        self.series = Series(
            "s",
            RankGroup(tuple(range(ranks)), rank),
            start_layer,
            start_layer + layers * every,
            layers=range(start_layer, start_layer + layers * every, every),
            prefetch_step=prefetch_step,
            windows=windows,
            transport=self.transport,
            recorder=self.recorder,
            hook_forward=False,
            time_every=time_every,
            **options,
        )
        self.layers: list[nn.Linear] = []
        for position, weight in enumerate(self.weights):
            linear = nn.Linear(rig.width, rig.width, bias=False, device=rig.memory)
            self.series.register(self.layer(position), linear)
            loader = getattr(linear.weight, "weight_loader", None)
            if loader is None:
                linear.weight.data.copy_(weight)
            else:
                loader(linear.weight, weight)
            self.layers.append(linear)
        self.series.post_process()
        self.mover.serving = True
        self.graph: Any = None
        self.truth = Schedule(durations, prefetch_step, self.owned)
        """What the steps so far must have found."""
        self.naive_ns = 0
        """What a host timer around each wait has counted as stall."""
        self.launch_ns = 0
        """What reach and wait have cost the launching thread, without the mover."""
        self.frame_ns = 0
        """What the steps' beginnings and ends have cost it besides, without the mover and the launch of a graph."""
        self._first_launch_ns: int | None = None

    def _connect(self, rank: int, ranks: int) -> tuple[Any, DeviceTransport]:
        """Return what moves the bytes, and counts what that costs the launching thread; and the transport over it."""
        mover = LonePeerMover(self.rig, self.contents, self.durations, self.prefetch_step, rank)
        mover.describe(self.start_layer, ranks)
        return mover, DeviceTransport(self.rig.device, mover, len(self.contents))

    def layer(self, position: int) -> int:
        """Return the absolute index of the layer at a position."""
        return self.start_layer + self.every * position

    @property
    def waits_per_step(self) -> int:
        """Waits of one step that are for another rank's layer."""
        return self.owned.count(False)

    def forward(self, pause_ns: int = 0, stop_at: int | None = None) -> None:
        """Launch a forward; the host is busy for ``pause_ns`` before each linear."""
        host_ns = self.rig.device.host_ns
        for position, linear in enumerate(self.layers):
            if position == stop_at:
                raise ForwardDiedError
            asked_ns, moving_ns = host_ns(), self.mover.launch_ns
            self.series.reach(self.layer(position))
            self.launch_ns += host_ns() - asked_ns - (self.mover.launch_ns - moving_ns)
            self.rig.compute(Task(BEFORE, position), self.durations.before[position])
            if pause_ns:
                self.rig.pause(pause_ns)
            asked_ns = host_ns()
            self.series.wait(self.layer(position))
            waited_ns = host_ns() - asked_ns
            self.naive_ns += waited_ns
            self.launch_ns += waited_ns
            self.rig.read(linear.weight.data, self.contents[position], self.durations.linear[position])

    def eager(self, steps: int, pause_ns: int = 0) -> None:
        """Run steps eagerly."""
        for _ in range(steps):
            self.truth.eager(launched_ns=self._launched_ns(), pause_ns=pause_ns)
            with self._framed(), self.series.step(), self._unframed():
                self.forward(pause_ns)

    def capture(self) -> None:
        """Capture a forward into a graph."""
        before = self.mover.next, self.naive_ns, self.launch_ns
        self.graph = self.rig.graph()
        with self.rig.capture(self.graph):
            self.forward()
            self.series.join()
        self.mover.next, self.naive_ns, self.launch_ns = before

    def replay(self, steps: int) -> None:
        """Run steps by replaying the graph."""
        for _ in range(steps):
            self.truth.replayed(launched_ns=self._launched_ns())
            with self._framed(), self.series.step(), self.series.replay():
                with self._unframed():
                    self.rig.replay(self.graph)
                self.mover.next = 0

    @contextmanager
    def _framed(self) -> Iterator[None]:
        """Count what the launching thread is busy for, but for what the mover takes."""
        begun_ns, moving_ns = self.rig.device.host_ns(), self.mover.launch_ns
        yield
        self.frame_ns += self.rig.device.host_ns() - begun_ns - (self.mover.launch_ns - moving_ns)

    @contextmanager
    def _unframed(self) -> Iterator[None]:
        """Leave out what happens meanwhile."""
        begun_ns, moving_ns = self.rig.device.host_ns(), self.mover.launch_ns
        yield
        self.frame_ns -= self.rig.device.host_ns() - begun_ns - (self.mover.launch_ns - moving_ns)

    def _launched_ns(self) -> int:
        now_ns = self.rig.device.host_ns()
        if self._first_launch_ns is None:
            self._first_launch_ns = now_ns
        return now_ns - self._first_launch_ns

    def close(self) -> None:
        """End the series and the ring."""
        self.series.close()
        if self.recorder is not None:
            self.recorder.close()

    def records(self) -> Any:
        """Return all that was recorded."""
        assert self.recorder is not None
        with RingReader.open(self.recorder.path) as reader:
            return reader.read()

    def facts(self) -> tuple[StepFacts, ...]:
        """Return what a ledger makes of it, step by step."""
        assert self.recorder is not None
        ledger = Ledger(keep_untaken=1 << 20)
        ledger.add_rank(self.recorder.identity)
        ledger.set_series(self.recorder.identity.key, (self.series.info,))
        ledger.add(self.recorder.identity.key, self.records())
        ledger.flush()
        return ledger.take_steps()


class ForwardDiedError(Exception):
    """Raised to end a forward early."""
