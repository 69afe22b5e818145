"""A broadcast channel of known speed in virtual time, which gives the same ``Series`` an exact ground truth.

Ranks are threads of one process. Each has its own clock, which advances only when the rank computes
or waits, so the outcome does not depend on thread scheduling. An operation is ready at

    ``max(last issue + latency, R_prev) + occupancy``

on a receiver, where *last issue* is the later of the source's and the receiver's issue (rendezvous
``source``) or the latest of the whole group (``group``), and ``R_prev`` is the latest receiver's ready
instant of the operation before. The source hands its bytes over at its issue and is ready then.

The bytes are really moved, and a buffer is overwritten with :data:`POISON` while its broadcast is under
way. So reading too early, or reusing a window too early, gives wrong results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from swtrace.closing import Closing
from swtrace.errors import TransportError
from swtrace.series.circle import Circle
from swtrace.series.group import RankGroup
from swtrace.series.journal import Journal, RecordingJournal
from swtrace.trace.schema import Clock, Observed

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.transport import MovedLayer, OnReady
    from swtrace.trace.identity import SeriesInfo
    from swtrace.trace.recorder import SeriesRecorder

START_NS = 1_000_000
"""Where every rank's clock begins. No instant is 0, which means *not known* in operations and records."""
POISON = 0xA5
"""Read as a float: a tiny negative number, which no layer holds."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScheduledOperation:
    """The truth about one operation. Tuples are by group rank."""

    number: int
    source: int
    nbytes: int
    issued_ns: tuple[int, ...]
    last_issue_ns: tuple[int, ...]
    """When the operation could move to each rank; for the source, its own issue."""
    ready_ns: tuple[int, ...]
    previous_ready_ns: int
    """The latest receiver's ready instant of the operation before; 0 for the first."""
    occupancy_ns: int

    @property
    def finished_ns(self) -> int:
        """The latest receiver's ready instant."""
        return max(ready for rank, ready in enumerate(self.ready_ns) if rank != self.source)


class _Slot:
    """The state of one operation in the channel."""

    __slots__ = ("data", "issued", "nbytes", "source")

    def __init__(self, source: int, nbytes: int, world_size: int) -> None:
        self.source = source
        self.nbytes = nbytes
        self.issued: list[int | None] = [None] * world_size
        self.data: Tensor | None = None


class IdealChannel:
    """The channel that the ranks of one group share."""

    def __init__(
        self,
        world_size: int,
        *,
        latency_ns: int = 0,
        occupancy_ns: int = 0,
        bytes_per_second: float = 0.0,
        rendezvous: str = "source",
    ) -> None:
        """Describe the channel.

        Args:
            world_size: ranks of the group.
            latency_ns: from the last issue until bytes may move.
            occupancy_ns: how long an operation holds the channel, whatever its size.
            bytes_per_second: adds ``bytes / bytes_per_second`` to that; 0 adds nothing.
            rendezvous: ``source`` or ``group``.
        """
        if rendezvous not in ("source", "group"):
            raise ValueError(f"rendezvous {rendezvous!r}: must be one of: source, group")
        self.world_size = world_size
        self.rendezvous = rendezvous
        self._latency_ns = latency_ns
        self._occupancy_ns = occupancy_ns
        self._ns_per_byte = 1e9 / bytes_per_second if bytes_per_second else 0.0
        self._changed = threading.Condition()
        self._slots: list[_Slot] = []
        self._schedule: list[ScheduledOperation] = []
        self._meetings: list[dict[int, object]] = []
        self._left: dict[int, str] = {}
        self._blocked: dict[int, Callable[[], bool]] = {}
        self._broken = ""

    def transport(self, rank: int) -> IdealTransport:
        """Return group rank ``rank``'s end of the channel."""
        return IdealTransport(self, rank)

    def group(self, rank: int) -> RankGroup:
        """Return the group as group rank ``rank`` sees it."""
        return RankGroup(tuple(range(self.world_size)), rank)

    def run(self, program: Callable[[IdealTransport], T]) -> list[T]:
        """Run ``program`` once per rank, each in its own thread; return the results by rank.

        If a rank fails, the others get an error as soon as they wait for it. The first failure is raised.
        """
        results: dict[int, T] = {}
        failures: list[BaseException] = []

        def body(rank: int) -> None:
            with self.transport(rank) as transport:
                try:
                    results[rank] = program(transport)
                except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                    failures.append(error)

        threads = [threading.Thread(target=body, args=(rank,), name=f"rank {rank}") for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return [results[rank] for rank in range(self.world_size)]

    def schedule(self) -> tuple[ScheduledOperation, ...]:
        """Return the truth about all operations that every rank has issued."""
        with self._changed:
            while self._extend_schedule():
                pass
            return tuple(self._schedule)

    # ---- called by the ranks' transports, all under the condition ------------------------------

    def meet(self, rank: int, number: int, item: object) -> list[object]:
        """Give ``item`` to the group's exchange ``number``; return all items once all ranks have given theirs."""
        with self._changed:
            while len(self._meetings) <= number:
                self._meetings.append({})
            meeting = self._meetings[number]
            meeting[rank] = item
            self._changed.notify_all()
            self._block(rank, lambda: len(meeting) == self.world_size, lambda r: r not in meeting)
            return [meeting[r] for r in range(self.world_size)]

    def issue(self, rank: int, number: int, source: int, buffer: Tensor, now_ns: int) -> None:
        """Record a rank's issue of an operation."""
        with self._changed:
            if number == len(self._slots):
                self._slots.append(_Slot(source, buffer.nbytes, self.world_size))
            slot = self._slots[number]
            if slot.source != source or slot.nbytes != buffer.nbytes:
                self._broken = (
                    f"operation {number}: rank {rank} issues {buffer.nbytes} bytes from rank {source}, "
                    f"but another rank issued {slot.nbytes} bytes from rank {slot.source}"
                )
                self._changed.notify_all()
                raise TransportError(self._broken)
            slot.issued[rank] = now_ns
            if rank == source:
                slot.data = buffer.clone()
            else:
                buffer.fill_(POISON)
            self._changed.notify_all()

    def receive(self, rank: int, number: int, buffer: Tensor) -> int:
        """Block until the ready instant of an operation is known; fill the buffer and return the instant."""
        with self._changed:
            slot = self._slots[number]
            self._block(rank, lambda: self._known_ready(number, rank) is not None, lambda r: self._lacks(number, r))
            ready_ns = self._known_ready(number, rank)
            if slot.data is None or ready_ns is None:
                raise TransportError(f"operation {number} has no bytes")
            buffer.copy_(slot.data)
            return ready_ns

    def leave(self, rank: int, reason: str) -> None:
        """Remove a rank. Ranks that wait for an operation that it never issued get an error."""
        with self._changed:
            self._left.setdefault(rank, reason)
            self._changed.notify_all()

    def _known_ready(self, number: int, rank: int) -> int | None:
        while len(self._schedule) < number and self._extend_schedule():
            pass
        if number < len(self._schedule):
            return self._schedule[number].ready_ns[rank]
        if number > len(self._schedule):
            return None
        slot = self._slots[number]
        last_issue = self._last_issue(slot, rank)
        return None if last_issue is None else self._ready(slot, last_issue)

    def _extend_schedule(self) -> bool:
        """Schedule the next operation if all ranks have issued it; return whether there was one."""
        number = len(self._schedule)
        if number == len(self._slots):
            return False
        slot = self._slots[number]
        issued = [at for at in slot.issued if at is not None]
        if len(issued) < self.world_size:
            return False
        own = issued[slot.source]
        last = [own if rank == slot.source else self._last_issue(slot, rank) or 0 for rank in range(self.world_size)]
        self._schedule.append(
            ScheduledOperation(
                number=number,
                source=slot.source,
                nbytes=slot.nbytes,
                issued_ns=tuple(issued),
                last_issue_ns=tuple(last),
                ready_ns=tuple(own if r == slot.source else self._ready(slot, at) for r, at in enumerate(last)),
                previous_ready_ns=self._previous_ready(),
                occupancy_ns=self._occupancy(slot),
            )
        )
        return True

    def _last_issue(self, slot: _Slot, rank: int) -> int | None:
        needed = range(self.world_size) if self.rendezvous == "group" else (slot.source, rank)
        instants = [slot.issued[r] for r in needed]
        known = [at for at in instants if at is not None]
        return max(known) if len(known) == len(instants) else None

    def _previous_ready(self) -> int:
        return self._schedule[-1].finished_ns if self._schedule else 0

    def _occupancy(self, slot: _Slot) -> int:
        return self._occupancy_ns + round(slot.nbytes * self._ns_per_byte)

    def _ready(self, slot: _Slot, last_issue_ns: int) -> int:
        return max(last_issue_ns + self._latency_ns, self._previous_ready()) + self._occupancy(slot)

    def _lacks(self, number: int, rank: int) -> bool:
        """Return whether a rank has yet to issue an operation, or an earlier one."""
        return any(slot.issued[rank] is None for slot in self._slots[: number + 1])

    def _block(self, rank: int, satisfied: Callable[[], bool], waits_for: Callable[[int], bool]) -> None:
        """Block a rank until satisfied; raise if a rank that it waits for has left, or if all ranks wait."""
        self._blocked[rank] = satisfied
        try:
            while not satisfied():
                if self._broken:
                    raise TransportError(self._broken)
                for gone, reason in self._left.items():
                    if waits_for(gone):
                        raise TransportError(f"rank {gone} {reason}")
                alive = self.world_size - len(self._left)
                if len(self._blocked) == alive and not any(ready() for ready in self._blocked.values()):
                    self._broken = "all ranks wait for one another"
                    self._changed.notify_all()
                    raise TransportError(self._broken)
                self._changed.wait()
        finally:
            del self._blocked[rank]


class IdealOperation:
    """One operation on one rank."""

    __slots__ = ("_buffer", "_number", "_on_ready", "_transport", "observed", "ready_ns")

    def __init__(self, transport: IdealTransport, number: int, buffer: Tensor | None, on_ready: OnReady | None) -> None:
        self.ready_ns = 0
        self.observed = Observed.NEVER
        self._transport = transport
        self._number = number
        self._buffer = buffer
        self._on_ready = on_ready

    def complete(self, ready_ns: int) -> None:
        """Set the ready instant."""
        self._buffer = None
        self.observed = Observed.EXACT
        self.ready_ns = ready_ns
        if self._on_ready is not None:
            self._on_ready(ready_ns)

    def wait(self) -> None:
        """Fill the buffer, and advance the rank's clock to the ready instant unless it is past."""
        if self._buffer is not None:
            self.complete(self._transport.receive(self._number, self._buffer))
            self._transport.advance_to(self.ready_ns)

    def done(self) -> bool:
        """Return whether the operation is known to be complete."""
        return self._buffer is None


class IdealTransport(Closing):
    """One rank's end of an ideal channel."""

    name = "ideal"
    queue = "serial"
    clock = Clock.VIRTUAL
    device = None
    circle = Circle

    def __init__(self, channel: IdealChannel, rank: int) -> None:
        self.channel = channel
        self.rank = rank
        self.rendezvous = channel.rendezvous
        self.group = channel.group(rank)
        self._now_ns = START_NS
        self._issued = 0
        self._meetings = 0

    def now(self) -> int:
        """Return this rank's virtual instant."""
        return self._now_ns

    def compute(self, duration_ns: int) -> None:
        """Advance this rank's clock."""
        self._now_ns += duration_ns

    def advance_to(self, instant_ns: int) -> None:
        """Advance this rank's clock to an instant, unless it is past."""
        self._now_ns = max(self._now_ns, instant_ns)

    def gather(self, item: object) -> list[object]:
        """Return every rank's item; takes no virtual time."""
        number = self._meetings
        self._meetings += 1
        return self.channel.meet(self.rank, number, item)

    def broadcast(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Fill ``buffer`` from the source; takes no virtual time."""
        items = self.gather(buffer.clone() if self.rank == layer.source else None)
        if self.rank != layer.source:
            buffer.copy_(items[layer.source])  # type: ignore[arg-type]

    def store(self, payload: Tensor, layer: MovedLayer) -> Tensor:  # noqa: ARG002 (the interface)
        """Return the payload."""
        return payload

    def journal(self, series: SeriesRecorder, info: SeriesInfo, *, every: int) -> Journal[OnReady]:  # noqa: ARG002
        """Return a journal that writes to the ring at once."""
        return RecordingJournal(series, self, every=every)

    def issue(self, buffer: Tensor, layer: MovedLayer, on_ready: OnReady | None = None) -> IdealOperation:
        """Start to fill ``buffer`` from the source, at this rank's virtual instant."""
        number, source = self._issued, layer.source
        self._issued += 1
        self.channel.issue(self.rank, number, source, buffer, self._now_ns)
        if self.rank == source:
            operation = IdealOperation(self, number, None, on_ready)
            operation.complete(self._now_ns)
            return operation
        return IdealOperation(self, number, buffer, on_ready)

    def receive(self, number: int, buffer: Tensor) -> int:
        """Block until an operation's ready instant is known; fill the buffer and return the instant."""
        return self.channel.receive(self.rank, number, buffer)

    def close(self) -> None:
        """Leave the group. A peer that waits for an operation that this rank never issued gets an error."""
        self.channel.leave(self.rank, "left the group")
