"""A simulated pull series, written with plain loops: ranks copy layers from each other's memory, each at its own pace.

A copy into a rank's window begins when the rank has reached for it and its own copier is free. Nothing that another
rank does or leaves matters, except for how long the copy then takes, which a test may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from swtrace.trace.identity import SeriesInfo
from swtrace.trace.records import Records
from swtrace.trace.schema import NO_WINDOW, TransferFlag
from tests.support.schedules import Schedule, info, step_record, transfer_record

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


@dataclass
class PullSchedule(Schedule):
    """Records of every rank, and the truth about them."""

    copies: list[Copy]
    """Every copy of a step that its rank ended, in no order."""


def pull_info(rank: int, ranks: int, layers: int, k: int) -> SeriesInfo:
    """Return a rank's description of a pull series."""
    described = info(rank, ranks, layers, k, rendezvous="receiver", queue="receiver")
    return replace(described, transport="pull", kind="copy")


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
    """
    ranks = len(steps)
    infos = [pull_info(rank, ranks, layers, k) for rank in range(ranks)]
    schedule = PullSchedule(infos, [], [], [])
    for rank in range(ranks):
        cut = (killed or {}).get(rank, 0)
        made = _Rank(infos[rank], ORIGIN_NS + (start[rank] if start else 0), wake)
        for step in range(steps[rank] + (cut > 0)):
            made.run(step, gap(rank, step), lambda position, rank=rank, step=step: compute(rank, step, position), copy)
        records = np.concatenate(made.written)
        schedule.records.append(records[: (layers + 1) * steps[rank] + cut])
        schedule.copies += [each for each in made.copies if each.step < steps[rank]]
    return schedule


class _Rank:
    """One rank: its forward and its copier."""

    def __init__(self, series: SeriesInfo, now: int, wake: int) -> None:
        self._series, self._now, self._wake = series, now, wake
        self._free = 0
        self._issued: list[tuple[int, int, int]] = []
        """Issued, started and ready, by operation."""
        self.written: list[Records] = []
        self.copies: list[Copy] = []

    def run(self, step: int, gap: int, compute: Callable[[int], int], copy: Callable[[int, int, int], int]) -> None:
        layers, k = self._series.num_layers, self._series.prefetch_step
        self._now += gap
        begin = self._now
        for position in range(layers):
            self._issue(*divmod(step * layers + position + k, layers), copy)
            self._now += compute(position)
            self._wait(step, position)
        self.written.append(
            step_record(
                begin_ns=begin, arrival_ns=begin, end_ns=self._now, step=step, tokens=3, requests=2, waits=layers
            )
        )

    def _issue(self, step: int, position: int, copy: Callable[[int, int, int], int]) -> None:
        if self._owns(position):
            self._issued.append((self._now, self._now, self._now))
            return
        began = max(self._now, self._free)
        self._free = began + copy(self._series.rank_in_group, step, position)
        self._issued.append((self._now, began, self._free))

    def _owns(self, position: int) -> bool:
        return self._series.source(position) == self._series.rank_in_group

    def _wait(self, step: int, position: int) -> None:
        layers, k, rank = self._series.num_layers, self._series.prefetch_step, self._series.rank_in_group
        number, begin, own = step * layers + position - k, self._now, self._owns(position)
        flags = (TransferFlag.OWN if own else 0) | (TransferFlag.CROSSES_STEPS if number >= 0 and position < k else 0)
        issued = started = ready = begin
        if number < 0:
            flags |= TransferFlag.PREFILLED
        else:
            issued, started, ready = self._issued[number]
            if not own:
                self.copies.append(
                    Copy(rank, step, position, self._series.source(position), issued, started, ready, begin)
                )
                if ready > begin:
                    self._now = ready + self._wake
        self.written.append(
            transfer_record(
                step=step,
                position=position,
                source=self._series.source(position),
                window=NO_WINDOW if own else position % self._series.window_count,
                issued_ns=issued,
                ready_ns=ready,
                wait_begin_ns=begin,
                wait_end_ns=self._now,
                operation=max(0, number),
                reach_position=(position - k) % layers,
                flags=flags,
            )
        )
