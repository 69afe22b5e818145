"""A simulated pull series, written with plain loops: ranks copy layers from each other's memory, each at its own pace.

A copy into a rank's window begins when the rank has reached for it and its own copier is free. Nothing that another
rank does matters, except that a copy takes longer if others read from the same owner when it begins.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from swtrace.trace.identity import H2D, Offload, SeriesInfo
from swtrace.trace.records import Records
from swtrace.trace.schema import NO_WINDOW, TransferFlag
from tests.support.schedules import BYTES, Schedule, info, step_record, transfer_record

ORIGIN_NS = 1_000_000


@dataclass(frozen=True)
class Copy:
    """One copy into a rank's window, and the wait for it."""

    rank: int
    step: int
    position: int
    owner: int
    issued_ns: int
    start_ns: int
    ready_ns: int
    wait_begin_ns: int

    @property
    def stall_ns(self) -> int:
        """How long the rank waited for it."""
        return max(0, self.ready_ns - self.wait_begin_ns)

    @property
    def backlog_ns(self) -> int:
        """How long the rank waited for it while the copier was busy with an earlier copy."""
        return max(0, min(self.start_ns, self.ready_ns) - max(self.wait_begin_ns, self.issued_ns))


class Move(NamedTuple):
    """Bytes on their way from an owner's memory to a rank's window."""

    rank: int
    owner: int
    start_ns: int
    ready_ns: int


@dataclass
class PullSchedule(Schedule):
    """Records of every rank, and the truth about them."""

    copies: list[Copy]
    """Every copy of a step that its rank ended, in no order."""
    moves: list[Move]
    """Every copy that began, also those that nobody waited for."""


def pull_info(rank: int, ranks: int, layers: int, k: int) -> SeriesInfo:
    """Return a rank's description of a pull series."""
    described = info(rank, ranks, layers, k, rendezvous="receiver", queue="receiver")
    return replace(described, transport="pull", kind="pull")


def offloaded_info(rank: int, layers: int, k: int, *, group_size: int = 2) -> SeriesInfo:
    """Return a rank's description of layers that are copied from host memory: the last of each group."""
    stack = layers * group_size
    return replace(
        pull_info(rank, rank + 1, layers, k),
        name="offload",
        stack_layers=stack,
        layers=tuple(range(group_size - 1, stack, group_size)),
        window_count=k,
        group_ranks=(rank,),
        rank_in_group=0,
        transport=H2D,
        clock="device",
        owned_layers=0,
        kind=H2D,
        queue="stream",
        offload=Offload(group_size, 1, k * BYTES, pinned=True),
    )


def simulate_pull(
    *,
    layers: int,
    k: int,
    steps: Sequence[int],
    compute: Callable[[int, int, int], int],
    copy: Callable[[int, int, int], int] = lambda _rank, _step, _position: 100,
    gap: Callable[[int, int], int] = lambda _rank, _step: 0,
    start: Sequence[int] = (),
    killed: Mapping[int, int] | None = None,
    wake: int = 0,
    crowding: float = 0.0,
    offloaded: bool = False,
) -> PullSchedule:
    """Run a group whose ranks pull.

    Args:
        layers: Number of layers.
        k: Prefetch step.
        steps: How many steps each rank runs.
        compute: Time from a rank's reach to its wait, by rank, step and position.
        copy: How long a copy takes, by rank, step and position.
        gap: Idle time before a step, by rank and step.
        start: When each rank starts, after the first; by default, all start together.
        killed: How many records of the step after its last one a rank wrote before it was killed.
        wake: What a rank loses after a wait that stalled.
        crowding: By what share each other rank that reads from the owner makes a copy longer.
        offloaded: Whether each rank is alone and copies every layer from host memory.
    """
    ranks = len(steps)
    infos = [
        offloaded_info(rank, layers, k) if offloaded else pull_info(rank, ranks, layers, k) for rank in range(ranks)
    ]
    cuts = [(killed or {}).get(rank, 0) for rank in range(ranks)]
    group = _Group(infos, compute, gap, copy, wake, crowding)
    begins = [ORIGIN_NS + (start[rank] if start else 0) for rank in range(ranks)]
    runs = [group.run(rank, begins[rank], steps[rank] + (cuts[rank] > 0)) for rank in range(ranks)]
    due = [(next(run), rank) for rank, run in enumerate(runs)]
    heapq.heapify(due)
    while due:
        _, rank = heapq.heappop(due)
        now = next(runs[rank], None)
        if now is not None:
            heapq.heappush(due, (now, rank))
    return PullSchedule(
        infos,
        [np.concatenate(group.written[rank])[: (layers + 1) * steps[rank] + cuts[rank]] for rank in range(ranks)],
        [],
        [each for each in group.copies if each.step < steps[each.rank]],
        group.moves,
    )


def replicas(*, layers: int = 24, k: int = 1, seed: int = 7) -> PullSchedule:
    """Return four replicas: one that hides its copies, a busy one, a slow one, and one that has just started."""
    chance = random.Random(seed)  # noqa: S311 - a reproducible schedule
    pace = (1_000_000, 280_000, 2_000_000, 600_000)
    return simulate_pull(
        layers=layers,
        k=k,
        steps=(40, 70, 20, 8),
        compute=lambda rank, _step, _position: round(pace[rank] * chance.uniform(0.9, 1.1)),
        copy=lambda *_: round(400_000 * chance.uniform(0.9, 1.1)),
        gap=lambda *_: round(1_500_000 * chance.uniform(0.5, 1.5)),
        start=(0, 0, 0, 100_000_000),
        wake=12_000,
        crowding=0.9,
    )


class _Group:
    """The ranks of a group, with their forwards and their copiers."""

    def __init__(
        self,
        infos: Sequence[SeriesInfo],
        compute: Callable[[int, int, int], int],
        gap: Callable[[int, int], int],
        copy: Callable[[int, int, int], int],
        wake: int,
        crowding: float,
    ) -> None:
        self._infos, self._compute, self._gap, self._copy = infos, compute, gap, copy
        self._wake, self._crowding = wake, crowding
        self._free = [0] * len(infos)
        self._moving: list[Move] = []
        self.moves: list[Move] = []
        self.written: list[list[Records]] = [[] for _ in infos]
        self.copies: list[Copy] = []

    def run(self, rank: int, now: int, steps: int) -> Iterator[int]:
        """Run a rank, and yield the time before each of its issues."""
        layers, k = self._infos[rank].num_layers, self._infos[rank].prefetch_step
        issued: list[tuple[int, int, int]] = []
        for step in range(steps):
            now += self._gap(rank, step)
            begin = now
            for position in range(layers):
                ahead = divmod(step * layers + position + k, layers)
                if self._infos[rank].kind == H2D:  # its buffer is free once the layer has run, after resident ones
                    took = self._compute(rank, step, position)
                    now = self._wait(rank, now + took // 2, step, position, issued) + took - took // 2
                    yield now
                    issued.append(self._issue(rank, now, *ahead))
                else:
                    yield now
                    issued.append(self._issue(rank, now, *ahead))
                    now = self._wait(rank, now + self._compute(rank, step, position), step, position, issued)
            ended = step_record(
                begin_ns=begin, arrival_ns=begin, end_ns=now, step=step, tokens=3, requests=2, waits=layers
            )
            self.written[rank].append(ended)

    def _issue(self, rank: int, now: int, step: int, position: int) -> tuple[int, int, int]:
        """Return when a layer was issued, when its copy began, and when it was ready."""
        owner = self._infos[rank].source(position)
        if _own(self._infos[rank], position):
            return now, now, now
        began = max(now, self._free[rank])
        others = {
            each.rank
            for each in self._moving
            if each.rank != rank and each.owner == owner and each.start_ns <= began < each.ready_ns
        }
        took = round(self._copy(rank, step, position) * (1 + self._crowding * len(others)))
        self._free[rank] = began + took
        move = Move(rank, owner, began, began + took)
        self._moving = [*(each for each in self._moving if each.ready_ns > now), move]
        self.moves.append(move)
        return now, began, began + took

    def _wait(self, rank: int, begin: int, step: int, position: int, moved: Sequence[tuple[int, int, int]]) -> int:
        """Write a rank's wait, and return when it ended."""
        series = self._infos[rank]
        layers, k, owner = series.num_layers, series.prefetch_step, series.source(position)
        number, own, end = step * layers + position - k, _own(series, position), begin
        flags = TransferFlag.OWN if own else TransferFlag(0)
        issued = ready = begin
        if number < 0:
            flags |= TransferFlag.PREFILLED
        else:
            issued, started, ready = moved[number]
            flags |= TransferFlag.CROSSES_STEPS if position < k else TransferFlag(0)
            if not own:
                self.copies.append(Copy(rank, step, position, owner, issued, started, ready, begin))
                end = ready + self._wake if ready > begin else begin
        record = transfer_record(
            step=step,
            position=position,
            source=owner,
            window=NO_WINDOW if own else position % series.window_count,
            issued_ns=issued,
            ready_ns=ready,
            wait_begin_ns=begin,
            wait_end_ns=end,
            operation=max(0, number),
            reach_position=(position - k) % layers,
            flags=flags,
        )
        self.written[rank].append(record)
        return end


def _own(info: SeriesInfo, position: int) -> bool:
    return info.kind != H2D and info.source(position) == info.rank_in_group
