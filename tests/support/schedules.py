"""A simulated group on an ideal channel, written with plain loops: the ledger's opponent in its tests.

Every instant is computed here from computes, latency and occupancy alone, by the definitions, one
record at a time, and nothing is shared with the ledger but the record layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from swtrace.trace.identity import RankIdentity, RankKey, SeriesInfo
from swtrace.trace.records import STEP, TRANSFER, Records
from swtrace.trace.schema import NO_WINDOW, Kind, Observed, Phase, StepFlag, TransferFlag

RUN = "run"
BYTES = 1000


@dataclass
class Operation:
    """One broadcast: who issued it when, and when it was where."""

    number: int
    issued: dict[int, int] = field(default_factory=dict)
    ready: dict[int, int] = field(default_factory=dict)


@dataclass
class Schedule:
    """Records of every rank, in the order in which each rank wrote them, and the truth about them."""

    infos: list[SeriesInfo]
    records: list[Records]
    operations: list[Operation]

    def identity(self, rank: int) -> RankIdentity:
        return RankIdentity(run_id=RUN, rank=rank, host="host", boot_id="boot", pid=1, start_time_ns=1)


def key(rank: int) -> RankKey:
    return RankKey(RUN, rank)


def info(
    rank: int,
    ranks: int,
    layers: int,
    k: int,
    *,
    rendezvous: str = "source",
    queue: str = "serial",
    start_layer: int = 0,
) -> SeriesInfo:
    return SeriesInfo(
        name="o_proj",
        start_layer=start_layer,
        stack_layers=layers,
        layers=tuple(range(start_layer, start_layer + layers)),
        prefetch_step=k,
        windows="static",
        window_count=k + 1,
        group_ranks=tuple(range(ranks)),
        rank_in_group=rank,
        transport="ideal",
        rendezvous=rendezvous,
        clock="host",
        layer_bytes=BYTES,
        owned_layers=len([p for p in range(layers) if (start_layer + p) % ranks == rank]),
        queue=queue,
    )


def transfer_record(**fields: int) -> Records:
    record = np.zeros(1, TRANSFER)
    record["kind"] = Kind.TRANSFER
    record["observed_clock"] = Observed.EXACT
    for name, value in fields.items():
        record[name] = value
    return record


def step_record(**fields: int) -> Records:
    record = np.zeros(1, STEP)
    record["kind"] = Kind.STEP
    record["phase"] = Phase.DECODE
    for name, value in fields.items():
        record[name] = value
    return record.view(TRANSFER)


def simulate(
    *,
    ranks: int,
    layers: int,
    k: int,
    steps: int,
    compute: Callable[[int, int, int], int],
    gap: Callable[[int, int], int] = lambda _rank, _step: 0,
    latency: int = 0,
    occupancy: int = 100,
    slower: Callable[[int, int], int] = lambda _receiver, _source: 0,
    barrier: bool = False,
    rendezvous: str = "source",
    queue: str = "serial",
    start_layer: int = 0,
    wake: int = 0,
    origin: int = 1_000_000,
) -> Schedule:
    """Run ``steps`` forwards of a group.

    Each layer of a rank is: reach (issue the broadcast ``k`` ahead), ``compute(rank, step, position)`` ns, wait.
    After a wait that stalled, the rank loses ``wake`` ns more. ``gap(rank, step)`` ns pass before a step, with
    ``barrier`` from when all ranks have ended the one before. ``slower(receiver, source)`` ns are added to a transfer.
    The channel: ``ready = max(last issue + latency, free at) + occupancy``, for a receiver, where *free at* is the
    latest receiver's ready of the operation before (``queue`` is ``serial``), this receiver's ready of its delivery
    before (``receiver``), or no matter (``none``).
    """
    told = "receiver" if queue == "none" else queue
    infos = [
        info(rank, ranks, layers, k, rendezvous=rendezvous, queue=told, start_layer=start_layer)
        for rank in range(ranks)
    ]
    now = [origin] * ranks
    operations: list[Operation] = []
    written: list[list[Records]] = [[] for _ in range(ranks)]
    # Ranks meet only through operations: advance all of them layer by layer, since no rank can wait for an
    # operation that another one issues later than its own wait of the same layer.
    waits: dict[tuple[int, int, int], int] = {}
    arrivals: dict[tuple[int, int], int] = {}
    free_at = [0] * ranks
    for step in range(steps):
        now = [max(now)] * ranks if barrier else now
        for position in range(layers):
            number = step * layers + position
            operation = Operation(number)
            operations.append(operation)
            for rank in range(ranks):
                if position == 0:
                    now[rank] += gap(rank, step)
                    arrivals[rank, step] = now[rank]
                operation.issued[rank] = now[rank]
                now[rank] += compute(rank, step, position)
            source = (start_layer + (position + k) % layers) % ranks
            receivers = [rank for rank in range(ranks) if rank != source]
            for rank in receivers:
                last = (
                    max(operation.issued.values())
                    if rendezvous == "group"
                    else max(operation.issued[source], operation.issued[rank])
                )
                operation.ready[rank] = max(last + latency, free_at[rank]) + occupancy + slower(rank, source)
            if queue == "serial":
                free_at = [max(operation.ready.values())] * ranks
            elif queue == "receiver":
                free_at = [operation.ready.get(rank, free_at[rank]) for rank in range(ranks)]
            operation.ready[source] = operation.issued[source] + 1
            for rank in range(ranks):
                _wait(infos[rank], operations, written[rank], now, rank, step, position, k, wake)
                waits[rank, step, position] = now[rank]
        for rank in range(ranks):
            written[rank].append(
                step_record(
                    begin_ns=arrivals[rank, step],
                    arrival_ns=arrivals[rank, step],
                    end_ns=now[rank],
                    step=step,
                    tokens=3,
                    requests=2,
                    waits=layers,
                )
            )
    return Schedule(infos, [np.concatenate(rows) for rows in written], operations)


def _wait(
    series: SeriesInfo,
    operations: list[Operation],
    written: list[Records],
    now: list[int],
    rank: int,
    step: int,
    position: int,
    k: int,
    wake: int,
) -> None:
    own = series.source(position) == rank
    number = step * series.num_layers + position - k
    begin = now[rank]
    flags = TransferFlag.OWN if own else 0
    common = {"step": step, "position": position, "source": series.source(position), "window": NO_WINDOW if own else 0}
    if number < 0:
        written.append(
            transfer_record(
                **common,
                issued_ns=begin,
                ready_ns=begin,
                wait_begin_ns=begin,
                wait_end_ns=begin,
                flags=flags | TransferFlag.PREFILLED,
                reach_position=position,
            )
        )
        return
    operation = operations[number]
    if not own and operation.ready[rank] > begin:
        now[rank] = operation.ready[rank] + wake
    if position < k:
        flags |= TransferFlag.CROSSES_STEPS
    written.append(
        transfer_record(
            **common,
            issued_ns=operation.issued[rank],
            ready_ns=operation.ready[rank],
            wait_begin_ns=begin,
            wait_end_ns=now[rank],
            operation=number,
            reach_position=(position - k) % series.num_layers,
            flags=flags,
        )
    )


def without_core(schedule: Schedule, column: str, lost_us: Callable[[int, int], int]) -> Schedule:
    """Write into the step records what each rank lost, as ``lost_us(rank, step)``; and return the schedule."""
    for rank, records in enumerate(schedule.records):
        ended = records.view(STEP)[records["kind"] == Kind.STEP]
        ended[column] = [lost_us(rank, int(step)) for step in ended["step"]]
        records.view(STEP)[records["kind"] == Kind.STEP] = ended
    return schedule


__all__ = ["StepFlag", "info", "key", "simulate", "step_record", "transfer_record", "without_core"]
