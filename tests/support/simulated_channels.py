"""Simulated channels whose true transfers are known: what the ledger states is judged against them.

It shares no arithmetic with the ledger: every delivery's moves are simulated one by one, and the truth is summed up
from when bytes really moved. What a channel is made of:

============  ========================================================================================
``serial``    one queue: an operation begins when the one before has reached all its receivers
``receiver``  one queue for each receiver: a delivery begins when the one before to this receiver ended
``none``      no queue: every delivery moves at once and takes its time, whatever else moves
``tree``      gloo's binomial tree: a rank passes on what it has received; operations move side by side
============  ========================================================================================

The truth of a receiver: *busy* is for how long at least one delivery to it was on its way and held up by no rank;
*exposed* is for how long the rank stood still meanwhile. Efficiency is ``1 - exposed / busy``, bandwidth is
what it received by ``busy``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from swtrace.ledger.facts import Recent, SeriesFacts
from swtrace.trace.records import Records
from swtrace.trace.schema import NO_WINDOW, TransferFlag
from tests.support import feeding
from tests.support.schedules import BYTES, Schedule, info, step_record, transfer_record

KINDS = ("serial", "receiver", "none", "tree")


@dataclass(frozen=True)
class Load:
    """What a run is made of. Durations in ns, each varied by up to ``jitter`` of it."""

    ranks: int
    kind: str
    prefetch_step: int = 1
    layers: int = 16
    steps: int = 12
    compute: int = 1_000_000
    transfer: int = 800_000
    slow: float = 1.3
    """By how much the last rank's computes are longer."""
    jitter: float = 0.1
    seed: int = 1


@dataclass
class Truth:
    """What is true of one rank."""

    busy_ns: int = 0
    exposed_ns: int = 0
    received: int = 0

    @property
    def efficiency(self) -> float:
        """Share of *busy* that was hidden."""
        return max(0.0, 1 - self.exposed_ns / self.busy_ns)

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return self.received * BYTES * 1e9 / self.busy_ns


@dataclass(frozen=True)
class Move:
    """A delivery to one rank: from when on nothing but the channel held it up, and when it was there."""

    held_until: int
    """The issue that it waited for last."""
    free: int
    """When it began to move, or the channel began to move what it queued behind."""
    ready: int


def run(load: Load) -> tuple[Schedule, list[Truth]]:
    """Run a group on a channel; return every rank's records, and the truth about each."""
    chance = random.Random(load.seed)  # noqa: S311 - reproducible runs

    def varied(ns: float) -> int:
        return round(ns * (1 + load.jitter * (2 * chance.random() - 1)))

    ranks, layers, k = load.ranks, load.layers, load.prefetch_step
    told = "serial" if load.kind == "serial" else "receiver"
    rendezvous = "tree" if load.kind == "tree" else "source"
    infos = [info(rank, ranks, layers, k, rendezvous=rendezvous, queue=told) for rank in range(ranks)]
    now = [1_000_000] * ranks
    free_at = [0] * ranks
    issues: list[list[int]] = []
    moves: list[dict[int, Move]] = []
    written: list[list[Records]] = [[] for _ in range(ranks)]
    stretches: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
    stalls: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
    for step in range(load.steps):
        arrived = list(now)
        for position in range(layers):
            issues.append(list(now))
            source = (position + k) % layers % ranks
            if load.kind == "tree":
                moves.append(_through_tree(source, issues[-1], [varied(load.transfer) for _ in range(ranks)]))
            else:
                moves.append(_queued(load.kind, source, issues[-1], free_at, varied(load.transfer)))
            for rank in range(ranks):
                now[rank] += varied(load.compute * (load.slow if rank == ranks - 1 else 1.0))
            for rank in range(ranks):
                number = step * layers + position - k
                own = position % ranks == rank
                begin = now[rank]
                if number >= 0 and not own:
                    move = moves[number][rank]
                    now[rank] = max(begin, move.ready)
                    stretches[rank].append((move.free, move.ready))
                    stalls[rank].append((min(now[rank], max(begin, move.held_until)), now[rank]))
                written[rank].append(
                    transfer_record(
                        step=step,
                        position=position,
                        source=position % ranks,
                        window=NO_WINDOW if own else 0,
                        issued_ns=begin if number < 0 else issues[number][rank],
                        ready_ns=begin
                        if number < 0
                        else issues[number][rank] + 1
                        if own
                        else moves[number][rank].ready,
                        wait_begin_ns=begin,
                        wait_end_ns=now[rank],
                        operation=max(0, number),
                        reach_position=(position - k) % layers,
                        flags=(TransferFlag.OWN if own else 0)
                        | (TransferFlag.PREFILLED if number < 0 else 0)
                        | (TransferFlag.CROSSES_STEPS if position < k else 0),
                    )
                )
        for rank in range(ranks):
            written[rank].append(
                step_record(
                    step=step,
                    begin_ns=arrived[rank],
                    arrival_ns=arrived[rank],
                    end_ns=now[rank],
                    waits=layers,
                    tokens=1,
                )
            )
    truths = [
        Truth(_covered(stretches[rank]), sum(end - begin for begin, end in stalls[rank]), len(stretches[rank]))
        for rank in range(ranks)
    ]
    return Schedule(infos, [np.concatenate(rows) for rows in written], []), truths


def _queued(kind: str, source: int, issued: list[int], free_at: list[int], takes: int) -> dict[int, Move]:
    """Move one operation through a queue; the source sends to all receivers at once."""
    moved = {}
    for rank in range(len(issued)):
        if rank != source:
            both = max(issued[source], issued[rank])
            begin = both if kind == "none" else max(both, free_at[rank])
            moved[rank] = Move(both, begin, begin + takes)
    if kind == "serial":
        free_at[:] = [max(move.ready for move in moved.values())] * len(issued)
    else:
        for rank, move in moved.items():
            free_at[rank] = move.ready
    return moved


def _through_tree(source: int, issued: list[int], takes: list[int]) -> dict[int, Move]:
    """Move one operation down gloo's tree, hop by hop; follow each rank's last hop back to what held it up last."""
    ranks = len(issued)
    has_bytes = {0: issued[source]}
    """By distance from the source."""
    held = {0: issued[source]}
    """The issue at the beginning of the hops, without a break, that brought the bytes there."""
    hops: dict[int, list[tuple[int, int]]] = {}
    for distance in range(1, ranks):
        parent = distance - (1 << (distance.bit_length() - 1))
        both = max(issued[(source + parent) % ranks], issued[(source + distance) % ranks])
        begin = max(has_bytes[parent], both)
        held[distance] = both if both >= has_bytes[parent] else held[parent]
        has_bytes[distance] = begin + takes[distance] // 2
        hops.setdefault(parent, []).append((has_bytes[distance], held[distance]))
    moved = {}
    for distance in range(1, ranks):
        ready, since = max([(has_bytes[distance], held[distance]), *hops.get(distance, [])])
        moved[(source + distance) % ranks] = Move(since, since, ready)
    return moved


def _covered(stretches: list[tuple[int, int]]) -> int:
    """Return for how long at least one of some stretches of time lasts."""
    total, reached = 0, 0
    for begin, end in sorted(stretches):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def stated(load: Load) -> tuple[SeriesFacts, list[Truth]]:
    """Return what a ledger states about a run of the load, and the truth of each receiver."""
    schedule, truths = run(load)
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    return ledger.facts().series[0], truths


def of_group(ranks: list[Recent]) -> tuple[float, float]:
    """Return efficiency and bandwidth of all receivers together."""
    moving = sum(rank.transfer_ns for rank in ranks)
    held = sum(rank.attributed_stall_ns - rank.skew_ns for rank in ranks)
    return max(0.0, 1 - held / moving), sum(rank.transfer_bytes for rank in ranks) * 1e9 / moving


def true_of_group(truths: list[Truth]) -> tuple[float, float]:
    """Return the true efficiency and bandwidth of all receivers together."""
    whole = Truth(*(sum(getattr(each, name) for each in truths) for name in ("busy_ns", "exposed_ns", "received")))
    return whole.efficiency, whole.bandwidth
