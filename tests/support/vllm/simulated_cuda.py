"""vLLM's own prefetch offloader on a simulated device.

Inside :func:`simulated_cuda`, ``torch.cuda``'s streams and events are those of a :class:`SimulatedDevice`. A copy
from host memory into a buffer is work on the current stream. It spoils the buffer when it starts and fills it
when it ends, so a buffer that is read too late or overwritten too early is really read wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from vllm.model_executor.offloader import base, prefetch

from tests.support.device.simulated_device import SimulatedDevice, SimulatedEvent, SimulatedStream
from tests.support.offload_arithmetic import Durations, Plan

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


FIXED = hasattr(prefetch, "_get_next_prefetch_index")
"""Whether this vLLM has the fix vllm#54975."""


def as_here(plan: Plan) -> Plan:
    """Return the plan with the ring of this vLLM, in which slots collide before that fix."""
    return plan if FIXED else replace(plan, colliding=True)


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
        self.plan, self.durations, self.device = as_here(plan), durations, device
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
            if plan.colliding and FIXED:
                stack.enter_context(
                    patch.object(
                        prefetch, "_get_next_prefetch_index", lambda index, step, count: (index + step) % count
                    )
                )
            before = base.get_offloader()
            self.offloader = prefetch.PrefetchOffloader(
                plan.group_size, plan.num_in_group, plan.prefetch_step, set(plan.params)
            )
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
