"""A simulated group whose transfers and computes slow each other down: the planner's opponent.

It goes from event to event and shares no arithmetic with the planner. Between two events every rate is constant:

- a rank computes at the rate ``1 / (1 + contention)`` while it receives or sends a transfer, else at 1;
- a transfer moves at the rate ``1 / (1 + slowdown)`` while its receiver computes, else at 1; and at ``1 / (1 +
  crowding)`` of that for one other broadcast under way, ``1 / (1 + 2 crowding)`` for two;
- a receiver's transfers move one at a time, in the order of their issue. A broadcast starts once its source and this
  receiver have issued it, a copy once its reader has.

A rank's forward: for each layer its compute before the linear, a wait if the layer is shared, and its compute from the
linear on. A reach costs ``overhead`` of compute. A wait that stalls costs ``wake`` more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from swtrace.trace.identity import SeriesInfo
from swtrace.trace.records import Records
from swtrace.trace.schema import NO_WINDOW, TransferFlag
from tests.support.schedules import Schedule, info, step_record, transfer_record

_ORIGIN_NS = 1_000_000
_SOON = 1e-6
"""Work left that counts as none, in ns."""


@dataclass(frozen=True)
class Sharing:
    """What a run is made of. Times in ns."""

    compute: Callable[[int, int, int], tuple[float, float]]
    """From rank, step and layer to its compute before its linear and from there on."""
    transfer: Callable[[int, int, int], float]
    """From receiver, step and layer to the time that its transfer takes alone."""
    layers: int = 12
    shared: tuple[int, ...] = ()
    """Empty: all."""
    prefetch_step: int = 1
    ranks: int = 2
    steps: int = 24
    pull: bool = False
    contention: float = 0.0
    slowdown: float = 0.0
    crowding: float = 0.0
    overhead: float = 0.0
    wake: float = 0.0


@dataclass
class _Rank:
    """Where a rank is in its program."""

    number: int
    step: int = 0
    stage: int = 0
    """Index of the next stage of the step."""
    left: float = 0.0
    """Compute until that stage."""
    waiting: tuple[int, int] | None = None
    begin: float = 0.0
    arrival: float = 0.0
    wait_begin: float = 0.0
    lost: float = 0.0
    """Time lost to contention in this step."""
    done: bool = False
    issued: dict[tuple[int, int], float] = field(default_factory=dict)
    """By step and position."""
    ready: dict[tuple[int, int], float] = field(default_factory=dict)
    queue: list[tuple[int, int]] = field(default_factory=list)
    """What it has issued and not received, in order."""
    moved: float = 0.0
    """Of the first in the queue."""
    records: list[Records] = field(default_factory=list)


def run(sharing: Sharing) -> tuple[Schedule, np.ndarray, np.ndarray]:
    """Run a group; return its records, and the true step time and stall, ``[step, rank]`` in ns."""
    made = _Simulation(sharing)
    made.run()
    infos = [made.info(rank) for rank in range(sharing.ranks)]
    return Schedule(infos, [np.concatenate(rank.records) for rank in made.ranks], []), made.step_ns, made.stall_ns


class _Simulation:
    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.shared = sharing.shared or tuple(range(sharing.layers))
        self.now = float(_ORIGIN_NS)
        self.ranks = [_Rank(number) for number in range(sharing.ranks)]
        self.step_ns, self.stall_ns = (np.zeros((sharing.steps, sharing.ranks)) for _ in range(2))
        self.program = self._program()

    def info(self, rank: int) -> SeriesInfo:
        """Return a rank's description of the series."""
        sharing = self.sharing
        described = info(rank, sharing.ranks, len(self.shared), sharing.prefetch_step, queue="receiver")
        described = replace(described, layers=self.shared, stack_layers=sharing.layers)
        return replace(described, transport="pull", rendezvous="receiver", kind="pull") if sharing.pull else described

    def _program(self) -> list[tuple[str, int]]:
        """Return the stages of a step: reach, wait, or the end of a layer."""
        stages = []
        for layer in range(self.sharing.layers):
            if layer in self.shared:
                position = self.shared.index(layer)
                stages += [("reach", position), ("wait", position)]
            stages.append(("layer", layer))
        return [*stages, ("end", 0)]

    def run(self) -> None:
        for rank in self.ranks:
            rank.begin = self.now
            self._advance(rank)
        while not all(rank.done for rank in self.ranks):
            self._pass(self._next_event())
            for rank in self.ranks:
                moving = self._moving(rank)
                if moving is not None and rank.moved >= self._work(rank, moving) - _SOON:
                    rank.ready[moving] = self.now
                    rank.queue.remove(moving)
                    rank.moved = 0.0
            for rank in self.ranks:
                if rank.waiting is not None and rank.waiting in rank.ready:
                    self._waited(rank)
                elif rank.waiting is None and not rank.done and rank.left <= _SOON:
                    self._arrive(rank)

    # ---- rates -------------------------------------------------------------------------------

    def _moving(self, rank: _Rank) -> tuple[int, int] | None:
        """Return the transfer to a rank that is under way."""
        if not rank.queue:
            return None
        first = rank.queue[0]
        source = self.ranks[first[1] % self.sharing.ranks]
        return first if self.sharing.pull or first in source.issued else None

    def _work(self, rank: _Rank, transfer: tuple[int, int]) -> float:
        step, position = transfer
        return self.sharing.transfer(rank.number, step, self.shared[position])

    def _slowed(self, rank: _Rank) -> bool:
        """Return whether a transfer of a rank is under way."""
        if self._moving(rank) is not None:
            return True
        if self.sharing.pull:
            return False
        moving = (self._moving(other) for other in self.ranks)
        return any(each is not None and each[1] % self.sharing.ranks == rank.number for each in moving)

    def _rates(self) -> list[tuple[float, float]]:
        """Return each rank's rates of compute and of the transfer to it."""
        under_way = {moving for rank in self.ranks if (moving := self._moving(rank)) is not None}
        crowded = 1.0 if self.sharing.pull else 1 + self.sharing.crowding * (len(under_way) - 1)
        rates = []
        for rank in self.ranks:
            computes = rank.waiting is None and not rank.done
            compute = (1 / (1 + self.sharing.contention) if self._slowed(rank) else 1.0) if computes else 0.0
            moves = 0.0
            if self._moving(rank) is not None:
                moves = (1 / (1 + self.sharing.slowdown) if computes else 1.0) / crowded
            rates.append((compute, moves))
        return rates

    def _next_event(self) -> float:
        times = []
        for rank, (compute, moves) in zip(self.ranks, self._rates(), strict=True):
            if compute:
                times.append(max(0.0, rank.left) / compute)
            moving = self._moving(rank)
            if moves and moving is not None:
                times.append((self._work(rank, moving) - rank.moved) / moves)
        return max(0.0, min(times))

    def _pass(self, time: float) -> None:
        for rank, (compute, moves) in zip(self.ranks, self._rates(), strict=True):
            rank.left -= compute * time
            rank.moved += moves * time
            if compute:
                rank.lost += (1 - compute) * time
        self.now += time

    # ---- a rank's program --------------------------------------------------------------------

    def _advance(self, rank: _Rank) -> None:
        """Set the compute until the next stage."""
        stage, of = self.program[rank.stage]
        previous = self.program[rank.stage - 1] if rank.stage else ("begin", 0)
        if stage == "wait":
            rank.left = self.sharing.overhead + self._compute(rank, self.shared[of])[0]
        elif stage == "layer":
            before, after = self._compute(rank, of)
            rank.left = after if previous[0] == "wait" else before + after
        else:
            rank.left = 0.0

    def _compute(self, rank: _Rank, layer: int) -> tuple[float, float]:
        return self.sharing.compute(rank.number, rank.step, layer)

    def _arrive(self, rank: _Rank) -> None:
        stage, of = self.program[rank.stage]
        if stage == "reach":
            self._reach(rank, of)
        elif stage == "wait":
            rank.wait_begin = self.now
            key = (rank.step, of)
            if self._own(rank, of) or key in rank.ready or self._prefilled(*key):
                self._record(rank, of, self.now)
            else:
                rank.waiting = key
                return
        elif stage == "end":
            self._end(rank)
            return
        rank.stage += 1
        self._advance(rank)

    def _reach(self, rank: _Rank, position: int) -> None:
        if position == 0:
            rank.arrival = self.now
        step, target = divmod(position + self.sharing.prefetch_step, len(self.shared))
        key = (rank.step + step, target)
        rank.issued[key] = self.now
        if not self._own(rank, target):
            rank.queue.append(key)

    def _own(self, rank: _Rank, position: int) -> bool:
        return position % self.sharing.ranks == rank.number

    def _prefilled(self, step: int, position: int) -> bool:
        return step == 0 and position < self.sharing.prefetch_step

    def _waited(self, rank: _Rank) -> None:
        step, position = rank.waiting or (0, 0)
        rank.waiting = None
        self.stall_ns[step, rank.number] += self.now - rank.wait_begin
        self._record(rank, position, self.now + self.sharing.wake)
        rank.stage += 1
        self._advance(rank)
        rank.left += self.sharing.wake

    def _record(self, rank: _Rank, position: int, wait_end: float) -> None:
        key = (rank.step, position)
        own, prefilled = self._own(rank, position), self._prefilled(*key)
        issued = rank.wait_begin if prefilled else rank.issued[key]
        ready = issued + 1 if own and not prefilled else rank.ready.get(key, rank.wait_begin)
        rank.records.append(
            transfer_record(
                step=rank.step,
                position=position,
                source=position % self.sharing.ranks,
                window=NO_WINDOW if own else 0,
                issued_ns=round(issued),
                ready_ns=round(ready),
                wait_begin_ns=round(rank.wait_begin),
                wait_end_ns=round(max(wait_end, rank.wait_begin)),
                operation=max(0, rank.step * len(self.shared) + position - self.sharing.prefetch_step),
                reach_position=(position - self.sharing.prefetch_step) % len(self.shared),
                flags=(TransferFlag.OWN if own else 0)
                | (TransferFlag.PREFILLED if prefilled else 0)
                | (TransferFlag.CROSSES_STEPS if position < self.sharing.prefetch_step else 0),
            )
        )

    def _end(self, rank: _Rank) -> None:
        rank.records.append(
            step_record(
                step=rank.step,
                begin_ns=round(rank.begin),
                arrival_ns=round(rank.arrival),
                end_ns=round(self.now),
                waits=len(self.shared),
                tokens=1,
                run_delay_us=round(rank.lost / 1e3),
            )
        )
        self.step_ns[rank.step, rank.number] = self.now - rank.begin
        rank.step, rank.stage, rank.lost = rank.step + 1, 0, 0.0
        rank.begin = self.now
        if rank.step == self.sharing.steps:
            rank.done = True
        else:
            self._advance(rank)
