"""The ideal channel: its schedule is what its formula says, whatever the threads do."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from swtrace.errors import TransportError
from swtrace.series.ideal import POISON, START_NS, IdealChannel, IdealTransport
from swtrace.trace.schema import Observed
from tests.support.moved import Moved

LATENCY = 10
OCCUPANCY = 100


def payload(value: int) -> torch.Tensor:
    return torch.full((8,), value, dtype=torch.uint8)


def test_an_operation_is_ready_after_last_issue_latency_queue_and_occupancy() -> None:
    """A late receiver, a late source and a queue behind the operation before: each gives the instant by hand."""
    channel = IdealChannel(2, latency_ns=LATENCY, occupancy_ns=OCCUPANCY)

    def program(transport: IdealTransport) -> list[int]:
        late_by = [(0, 50), (1000, 0), (0, 0)]
        operations = []
        for number, delays in enumerate(late_by):
            transport.compute(delays[transport.rank])
            operations.append(transport.issue(payload(number), Moved(0)))
        for operation in operations:
            operation.wait()
        return [operation.ready_ns - START_NS for operation in operations]

    assert channel.run(program) == [[0, 1000, 1000], [50 + 110, 1000 + 110, 1110 + 100]]
    third = channel.schedule()[2]
    assert third.issued_ns == (START_NS + 1000, START_NS + 50)
    assert third.last_issue_ns == (START_NS + 1000, START_NS + 1000)
    assert third.previous_ready_ns == START_NS + 1110
    assert third.finished_ns == START_NS + 1210


def test_bandwidth_adds_to_the_occupancy() -> None:
    """With a rate, an operation holds the channel for its bytes' time as well."""
    channel = IdealChannel(2, occupancy_ns=OCCUPANCY, bytes_per_second=1e9)

    def program(transport: IdealTransport) -> int:
        operation = transport.issue(payload(1), Moved(0))
        operation.wait()
        return transport.now() - START_NS

    assert channel.run(program) == [0, OCCUPANCY + 8]


@pytest.mark.parametrize(("rendezvous", "expected"), [("source", [0, 120, 420]), ("group", [0, 420, 420])])
def test_rendezvous_says_whom_an_operation_waits_for(rendezvous: str, expected: list[int]) -> None:
    """Under ``source`` a receiver waits for the source only, under ``group`` for the last of all ranks."""
    channel = IdealChannel(3, latency_ns=LATENCY, occupancy_ns=OCCUPANCY, rendezvous=rendezvous)

    def program(transport: IdealTransport) -> int:
        transport.compute([0, 10, 310][transport.rank])
        operation = transport.issue(payload(1), Moved(0))
        operation.wait()
        return operation.ready_ns - START_NS

    assert channel.run(program) == expected


def test_a_wait_moves_the_clock_only_forward() -> None:
    """A rank that computed past the ready instant waits for nothing."""
    channel = IdealChannel(2, occupancy_ns=OCCUPANCY)

    def program(transport: IdealTransport) -> tuple[int, int, Observed]:
        operation = transport.issue(payload(1), Moved(0))
        transport.compute(500)
        operation.wait()
        return operation.ready_ns - START_NS, transport.now() - START_NS, operation.observed

    assert channel.run(program)[1] == (OCCUPANCY, 500, Observed.EXACT)


def test_the_schedule_does_not_depend_on_the_threads() -> None:
    """Real delays in any rank change nothing in virtual time."""

    def schedule(sleeper: int) -> object:
        channel = IdealChannel(3, latency_ns=LATENCY, occupancy_ns=OCCUPANCY)

        def program(transport: IdealTransport) -> None:
            operations = []
            for number in range(6):
                if transport.rank == sleeper:
                    time.sleep(0.002)
                transport.compute(30 + 7 * transport.rank)
                operations.append(transport.issue(payload(number), Moved(number % 3)))
                if number:
                    operations[number - 1].wait()

        channel.run(program)
        return channel.schedule()

    assert schedule(0) == schedule(1) == schedule(2) == schedule(-1)


def test_bytes_arrive_at_the_wait_and_not_before() -> None:
    """Until it is waited for, a receiver's buffer holds poison; afterwards what the source had at its issue."""

    def program(transport: IdealTransport) -> None:
        buffer = payload(transport.rank + 1)
        operation = transport.issue(buffer, Moved(0))
        if transport.rank == 0:
            buffer.fill_(9)
        else:
            assert buffer.tolist() == [POISON] * 8
            operation.wait()
            assert buffer.tolist() == [1] * 8

    IdealChannel(2).run(program)


def test_a_rank_that_leaves_is_named_to_those_that_wait_for_it() -> None:
    """No rank waits forever for a rank that has left, in a broadcast or in a gather."""

    def program(transport: IdealTransport) -> None:
        if transport.rank == 1:
            return
        with pytest.raises(TransportError, match="rank 1 left the group"):
            transport.issue(payload(0), Moved(1)).wait()
        with pytest.raises(TransportError, match="rank 1 left the group"):
            transport.gather("here")

    IdealChannel(2).run(program)


def test_ranks_that_issue_in_another_order_get_an_error() -> None:
    """All ranks must issue the same operations in the same order: the first that differs is an error."""
    channel = IdealChannel(2)
    barrier = threading.Barrier(2)

    def program(transport: IdealTransport) -> None:
        barrier.wait()
        transport.issue(payload(0), Moved(transport.rank)).wait()
        transport.gather(None)

    with pytest.raises(TransportError, match=r"operation 0: rank \d issues 8 bytes from rank"):
        channel.run(program)


def test_a_circle_of_waits_is_an_error_and_not_a_hang() -> None:
    """If every rank waits for another that has not issued, the channel says so."""

    def program(transport: IdealTransport) -> None:
        if transport.rank == 0:
            transport.gather(None)
        else:
            transport.issue(payload(0), Moved(0)).wait()

    with pytest.raises(TransportError, match="wait for one another"):
        IdealChannel(2).run(program)
