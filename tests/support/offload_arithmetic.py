"""Models whose layers are offloaded, with durations for everything, and what arithmetic says about their copies."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass


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
    params: tuple[str, ...] = ()
    """``--offload-params``: parts of the names of those that are offloaded; empty: all."""
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

    @property
    def collides(self) -> bool:
        """Whether a layer is copied into a buffer that another one still needs."""
        count = len(self.offloaded())
        return self.colliding and count % min(self.prefetch_step, count) > 0

    def following(self, position: int) -> int:
        """Return which copy starts after a forward: the next in the same slot, and after the last one the first."""
        count, slots = len(self.offloaded()), self.prefetch_step
        if self.colliding or slots >= count:
            return (position + slots) % count
        same_slot = range(position % slots, count, slots)
        return same_slot[(same_slot.index(position) + 1) % len(same_slot)]

    def runs(self) -> range:
        """Return the layers that run."""
        return range(self.layers if self.running is None else self.running)


@dataclass(frozen=True, slots=True)
class Durations:
    """How long things take, in ns. With a seed, each time varies; by default, some take 20 times as long as others."""

    compute_ns: int = 1_000_000
    copy_ns: int = 700_000
    seed: int | None = None
    spread: tuple[float, float] = (0.1, 2.0)
    """Shortest and longest, as shares of the fixed time."""

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
        shortest, longest = self.spread
        return drawn.randrange(int(fixed_ns * shortest), int(fixed_ns * longest))


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
                copying.issue(plan.following(position), now_ns)
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
