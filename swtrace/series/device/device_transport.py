"""Broadcasts on a stream of their own, ordered with the caller's streams by events and never by the host.

Two orders keep the weights right, whatever the device's pace:

- a broadcast begins only when the stream that issued it has come to the issue: by then every reader of
  the window's last layer was given to that stream, so the window is free;
- the stream that waits for a layer runs nothing further before the broadcast is complete.

The events that make these orders are the ones that time the broadcast, where it is timed. Nothing relies on
the default stream: what is current where the caller issues or waits is what gets ordered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from swtrace.series.communicator import Communicator, backend, broadcast_options
from swtrace.series.device.sheets import TransferEvents
from swtrace.trace.schema import Clock, Observed

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.device.accelerator import Device, Event
    from swtrace.series.group import Group


class Mover(Protocol):
    """Moves bytes between ranks, in the order of the current stream."""

    name: str
    """``nccl``, ..."""
    rendezvous: str
    """From when an operation can move: ``source``, ``tree`` or ``group`` (see ``SeriesInfo``)."""

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank. Blocks the host; all ranks take part."""

    def move(self, buffer: Tensor, source: int) -> None:
        """Fill ``buffer`` from group rank ``source``: put it into the current stream, which may be under capture."""

    def close(self) -> None:
        """Let go of the communicator. Waits for nothing."""


class StreamOperation:
    """One broadcast under way on a stream."""

    __slots__ = ("_device", "_event", "observed", "ready_ns")

    def __init__(self, device: Device, event: Event) -> None:
        self._device = device
        self._event = event
        self.ready_ns = 0
        """Always: the device's instants come later, by the journal."""
        self.observed = Observed.NEVER

    def wait(self) -> None:
        """Let the current stream go on only when the buffer is filled. The host does not wait."""
        self._device.current_stream().wait_event(self._event)

    def done(self) -> bool:
        """Whether the device is through with it."""
        return self._event.query()


class DeviceTransport:
    """Runs a mover on a prefetch stream of its own."""

    clock = Clock.DEVICE

    def __init__(self, device: Device, mover: Mover, num_layers: int) -> None:
        """Take a stream; nothing is moved yet.

        Args:
            device: where the windows are.
            mover: what moves the bytes.
            num_layers: L: as many operations are under way at most.
        """
        self.device = device
        self.name = mover.name
        self.rendezvous = mover.rendezvous
        self.queue = "serial"  # on every rank, operations follow one another in the prefetch stream
        self.now = device.host_ns
        self.stream = device.prefetch_stream()
        self.gather = mover.gather
        self.move = mover.move
        self._mover = mover
        # For broadcasts that nobody times. One fork is enough: a wait holds on to what was recorded last before it.
        fork = device.event(timed=False)
        self._plain = tuple(TransferEvents(fork, device.event(timed=False)) for _ in range(num_layers))
        self._turn = 0

    def broadcast(self, buffer: Tensor, source: int) -> None:
        """Fill ``buffer`` in the order of the current stream; whoever reads it there reads the bytes."""
        self._mover.move(buffer, source)

    def issue(self, buffer: Tensor, source: int, events: TransferEvents | None = None) -> StreamOperation:
        """Start to fill ``buffer`` when the current stream has come to here.

        Args:
            buffer: bytes, one dimension, kept for the life of the series.
            source: group rank.
            events: what to record; without them the broadcast is not timed.
        """
        device = self.device
        if events is None:
            events = self._plain[self._turn]
            self._turn = (self._turn + 1) % len(self._plain)
        events.issued.record(device.current_stream())
        stream = self.stream
        stream.wait_event(events.issued)
        with device.on(stream):
            self.move(buffer, source)
            events.ready.record(stream)
        return StreamOperation(device, events.ready)

    def close(self) -> None:
        """Let go of the communicator."""
        self._mover.close()


class CollectiveMover:
    """Broadcasts of a ``torch.distributed`` communicator that puts them into the current stream, such as NCCL's."""

    rendezvous = "group"

    def __init__(self, group: Group, *, description: str, timeout_s: float) -> None:
        """Make the communicator; all ranks must make theirs in the same order.

        Args:
            group: its ranks.
            description: names the communicator in torch's own diagnostics.
            timeout_s: how long an operation waits for a peer.
        """
        self.name = backend(group)
        communicator = Communicator(group, description, timeout_s)
        self.gather = communicator.gather
        self._process_group = communicator.process_group
        self._options = [broadcast_options(root, asynchronous=False) for root in communicator.roots]

    def move(self, buffer: Tensor, source: int) -> None:
        """Broadcast on the current stream."""
        self._process_group.broadcast([buffer], self._options[source])

    def close(self) -> None:
        """Let go of the communicator; torch destroys it with the last operation that is under way."""
        self._process_group = None
