"""vLLM's own prefetch offloader on a simulated device, and what arithmetic says about its copies.

Inside :func:`simulated_cuda`, ``torch.cuda``'s streams and events are those of a :class:`SimulatedDevice`. A copy
from host memory into a buffer is work on the current stream. It spoils the buffer when it starts and fills it
when it ends, so a buffer that is read too late or overwritten too early is really read wrong.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from vllm.model_executor.offloader import base, prefetch

from tests.support.device.simulated_device import SimulatedDevice, SimulatedEvent, SimulatedStream

GPU = torch.device("cuda", 0)
SPOILED = -1.0
"""What a buffer holds while a copy writes to it."""
HEAD_START_NS = 100_000_000
"""What the device is given to do first, so that the host is never late."""
CopyDuration = Callable[[torch.Tensor], int]
"""The duration of a copy from a tensor in host memory, in ns."""


class DeviceParameter(nn.Parameter):
    """A parameter that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU."""
        return GPU


@contextmanager
def simulated_cuda(device: SimulatedDevice, copy_ns: CopyDuration, *, pinned: bool = True) -> Iterator[None]:
    """Serve ``torch.cuda`` from ``device``. Without pinned memory, a copy blocks the host until it is done."""

    class Buffer(torch.Tensor):
        def copy_(self, source: torch.Tensor, *, non_blocking: bool = False) -> Buffer:  # type: ignore[override]
            plain = self.as_subclass(torch.Tensor)
            work = device.compute(
                copy_ns(source),
                at_start=lambda _ns: plain.fill_(SPOILED),
                at_end=lambda _ns: plain.copy_(source),
            )
            if not (pinned and non_blocking):
                if work.end_ns is None:
                    raise RuntimeError("the host would wait forever: the copy does not end")
                device.host.now_ns = max(device.host.now_ns, work.end_ns)
            return self

    class Event(SimulatedEvent):
        def __init__(self, *, enable_timing: bool = False, **_options: Any) -> None:
            super().__init__(device, timed=enable_timing)

        def record(self, stream: SimulatedStream | None = None) -> None:
            super().record(stream or device.current_stream())

        def wait(self, stream: SimulatedStream | None = None) -> None:
            (stream or device.current_stream()).wait_event(self)

    plain_empty = torch.empty_strided

    def empty_strided(
        size: Any, stride: Any, *, device: Any = None, pin_memory: bool = False, **options: Any
    ) -> torch.Tensor:
        del pin_memory
        made = plain_empty(size, stride, **options)
        on_device = device is not None and torch.device(device).type == GPU.type
        return made.fill_(SPOILED).as_subclass(Buffer) if on_device else made

    with ExitStack() as patches:
        for owner, name, served in (
            (torch.cuda, "Stream", lambda *_args, **_options: device.prefetch_stream()),
            (torch.cuda, "Event", Event),
            (torch.cuda, "current_stream", lambda *_args: device.current_stream()),
            (torch.cuda, "stream", device.on),
            (torch.cuda, "is_current_stream_capturing", device.capturing),
            (torch, "empty_strided", empty_strided),
            (torch.Tensor, "is_pinned", lambda *_args: pinned),
            (base, "should_pin_memory", lambda: pinned),
            (prefetch, "should_pin_memory", lambda: pinned),
        ):
            patches.enter_context(patch.object(owner, name, served))
        yield


@dataclass(frozen=True, slots=True)
class Plan:
    """A model, how it is offloaded, and what is wrong with that."""

    layers: int = 24
    group_size: int = 2
    num_in_group: int = 1
    prefetch_step: int = 1
    steps: int = 4
    parameters: int = 1
    """Per layer."""
    pinned: bool = True
    colliding: bool = False
    """Use the next index from before vllm#54975: slots collide if prefetch_step does not divide the ring."""
    running: int | None = None
    """Only so many layers run, though all are in the ring: vllm-omni#6456."""
    fallback: bool = False
    """A copy that was not started is started right before the wait for it."""

    def offloaded(self) -> list[int]:
        """Return the absolute indexes of the offloaded layers."""
        return [n for n in range(self.layers) if n % self.group_size >= self.group_size - self.num_in_group]

    def runs(self) -> range:
        """Return the layers that run."""
        return range(self.layers if self.running is None else self.running)


@dataclass(frozen=True, slots=True)
class Durations:
    """How long things take, in ns. With a seed, each time is up to 20 times longer or shorter than another."""

    compute_ns: int = 1_000_000
    copy_ns: int = 700_000
    seed: int | None = None

    def compute(self, step: int, layer: int) -> int:
        """Return the duration of a layer's forward."""
        return self._draw("compute", self.compute_ns, step, layer)

    def copy(self, number: int, layer: int) -> int:
        """Return the duration of the copy of a layer that is its ``number``-th, from 0."""
        return self._draw("copy", self.copy_ns, number, layer)

    def _draw(self, what: str, fixed_ns: int, *key: int) -> int:
        if self.seed is None:
            return fixed_ns
        drawn = random.Random(f"{self.seed} {what} {key}")  # noqa: S311 - times, not secrets
        return drawn.randrange(fixed_ns // 10, 2 * fixed_ns)


@dataclass(frozen=True, slots=True)
class Expected:
    """Instants of one transfer, in ns since the end of the head start."""

    issued_ns: int
    ready_ns: int
    wait_begin_ns: int
    wait_end_ns: int


def expected(
    plan: Plan, durations: Durations, starts: dict[tuple[int, int], int] | None = None
) -> dict[tuple[int, int], Expected]:
    """Return what arithmetic says about each (step, position), and fill in each (step, layer)'s start.

    Host calls cost nothing here. That is exact for pinned memory, where the host is ahead of the device, and for
    pageable memory only with ``call_ns=0``.
    """
    copying = _Copying(plan, durations)
    positions = {layer: position for position, layer in enumerate(plan.offloaded())}
    found: dict[tuple[int, int], Expected] = {}
    for first in range(min(plan.prefetch_step, len(positions))):
        copying.issue(first, 0)
    now_ns = 0
    for step in range(plan.steps):
        for layer in plan.runs():
            now_ns = max(now_ns, copying.host_ns)
            position = positions.get(layer)
            if position is not None:
                if plan.fallback and copying.copies[position] <= step:
                    copying.issue(position, now_ns)
                begin_ns = max(now_ns, copying.host_ns)
                ready_ns = copying.ready[position]
                now_ns = max(begin_ns, ready_ns)
                found[step, position] = Expected(copying.issued[position], ready_ns, begin_ns, now_ns)
            if starts is not None:
                starts[step, layer] = now_ns
            now_ns += durations.compute(step, layer)
            if position is not None:
                copying.issue(copying.following(position), now_ns)
    return found


class _Copying:
    """Copies in the order in which they are issued, one at a time."""

    def __init__(self, plan: Plan, durations: Durations) -> None:
        self._plan, self._durations = plan, durations
        self._offloaded = plan.offloaded()
        self._end_ns = 0
        self.host_ns = 0
        """Until when a copy blocked the host."""
        self.copies: Counter[int] = Counter()
        self.issued: dict[int, int] = {}
        """Per position: when its last copy was issued."""
        self.ready: dict[int, int] = {}

    def issue(self, position: int, now_ns: int) -> None:
        self.issued[position] = max(now_ns, self.host_ns)
        duration_ns = self._durations.copy(self.copies[position], self._offloaded[position])
        self._end_ns = max(self.issued[position], self._end_ns) + duration_ns
        self.ready[position] = self._end_ns
        self.copies[position] += 1
        if not self._plan.pinned:
            self.host_ns = self._end_ns

    def following(self, position: int) -> int:
        """Return the next position in the same slot, from where the last one goes back to the first."""
        count, slots = len(self._offloaded), self._plan.prefetch_step
        if self._plan.colliding or slots >= count:
            return (position + slots) % count
        same_slot = range(position % slots, count, slots)
        return same_slot[(same_slot.index(position) + 1) % len(same_slot)]


class _Layer(nn.Module):
    def __init__(self, model: OffloadedModel, index: int, parameters: int) -> None:
        super().__init__()
        self._compute, self.index = model.compute, index
        for number in range(parameters):
            content = torch.full((2, 3), float(index))
            self.register_parameter(f"weight_{number}", DeviceParameter(content, requires_grad=False))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self._compute(self)
        return hidden_states


class OffloadedModel:
    """Layers that vLLM's offloader wraps, driven eagerly. Use it inside :meth:`served`."""

    def __init__(self, plan: Plan, durations: Durations, device: SimulatedDevice) -> None:
        self.plan, self.durations, self.device = plan, durations, device
        self.offloader: prefetch.PrefetchOffloader
        self.layers: list[nn.Module] = []
        self.origin_ns = 0
        """True instant at which the head start ends."""
        self.step = 0
        self.starts: dict[tuple[int, int], int] = {}
        """Per (step, layer): when the forward began, in ns since the origin."""
        self.stale: set[tuple[int, int]] = set()
        """Each (step, layer) that read weights of another layer, or weights that were being written."""
        self._copied: Counter[int] = Counter()

    @contextmanager
    def served(self, prepare: Callable[[prefetch.PrefetchOffloader], object] | None = None) -> Iterator[OffloadedModel]:
        """Build the model under vLLM's offloader.

        ``prepare`` sees the offloader before it wraps anything, and may put another one in its place.
        """
        plan = self.plan
        with ExitStack() as stack:
            stack.enter_context(simulated_cuda(self.device, self._copy_ns, pinned=plan.pinned))
            if plan.colliding:
                stack.enter_context(
                    patch.object(
                        prefetch, "_get_next_prefetch_index", lambda index, step, count: (index + step) % count
                    )
                )
            before = base.get_offloader()
            self.offloader = prefetch.PrefetchOffloader(plan.group_size, plan.num_in_group, plan.prefetch_step)
            stack.callback(base.set_offloader, before)
            base.set_offloader(self.offloader)
            if prepare is not None:
                prepare(self.offloader)
            made = (_Layer(self, index, plan.parameters) for index in range(plan.layers))
            serving = base.get_offloader()
            self.layers = serving.wrap_modules(made)
            head = self.device.compute(HEAD_START_NS)
            self.origin_ns = head.end_ns or 0
            serving.post_init()
            yield self

    def run_step(self, until: int | None = None) -> None:
        """Run the forward of all layers that run; fail with an error before layer ``until``."""
        hidden_states = torch.zeros(1)
        offloaded = self.plan.offloaded()
        for layer in self.plan.runs():
            if layer == until:
                raise ZeroDivisionError
            if self.plan.fallback and layer in offloaded and self._copied[layer] // self.plan.parameters <= self.step:
                torch.ops.vllm.start_prefetch(hidden_states, offloaded.index(layer))
            hidden_states = self.layers[layer].forward(hidden_states)
        self.step += 1

    def run(self) -> OffloadedModel:
        """Run all steps, and wait for the device."""
        for _ in range(self.plan.steps):
            self.run_step()
        self.device.synchronise()
        return self

    def compute(self, layer: _Layer) -> None:
        """Enqueue a layer's work, which looks at its weights when it begins and when it ends."""
        at = self.step, layer.index

        def look(_true_ns: int) -> None:
            if any(bool((weight.data != layer.index).any()) for weight in layer.parameters()):
                self.stale.add(at)

        def begin(true_ns: int) -> None:
            self.starts[at] = true_ns - self.origin_ns
            look(true_ns)

        self.device.compute(self.durations.compute(*at), at_start=begin, at_end=look)

    def _copy_ns(self, source: torch.Tensor) -> int:
        layer, parts = int(source.flatten()[0]), self.plan.parameters
        number, part = divmod(self._copied[layer], parts)
        self._copied[layer] += 1
        whole_ns = self.durations.copy(number, layer)
        return whole_ns * (part + 1) // parts - whole_ns * part // parts
