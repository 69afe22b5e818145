"""Broadcasts on their own stream, ordered with the caller's streams by events and never by the host.

Two orders keep the weights right, however fast the device is:

- A broadcast begins only when the stream that issued it has reached the issue. Every reader of the window's
  last layer was enqueued on that stream before, so the window is free.
- The stream that waits for a layer runs no further work before the broadcast is complete.

The same events time the broadcast, if it is timed. Nothing relies on the default stream: the order applies to
the stream that is current when the caller issues or waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from swtrace.series.communicator import Communicator, backend, broadcast_options
from swtrace.series.device.device_circle import DeviceCircle
from swtrace.series.device.device_journal import STAMPS, DeviceJournal
from swtrace.series.device.sheets import TransferEvents
from swtrace.trace.schema import Clock, Observed

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.device.accelerator import Device, Event
    from swtrace.series.group import Group
    from swtrace.series.journal import Journal
    from swtrace.series.transport import MovedLayer, Operation
    from swtrace.trace.identity import SeriesInfo
    from swtrace.trace.recorder import SeriesRecorder


class Mover(Protocol):
    """Moves bytes between ranks, in the order of the current stream."""

    name: str
    """``nccl``, ..."""
    rendezvous: str
    """From when an operation can move: ``source``, ``tree`` or ``group`` (see ``SeriesInfo``)."""

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank. Blocks the host; all ranks take part."""

    def move(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Enqueue a fill of ``buffer`` from the layer's source on the current stream, which may be under capture."""

    def close(self) -> None:
        """Release the communicator, without waiting."""


class StreamOperation:
    """One broadcast under way on a stream."""

    __slots__ = ("_device", "_event", "observed", "ready_ns")

    def __init__(self, device: Device, event: Event) -> None:
        self._device = device
        self._event = event
        self.ready_ns = 0
        """Always 0: the journal gets the device's instants later."""
        self.observed = Observed.NEVER

    def wait(self) -> None:
        """Make the current stream wait until the buffer is filled. The host does not wait."""
        self._device.current_stream().wait_event(self._event)

    def done(self) -> bool:
        """Return whether the device has completed it."""
        return self._event.query()


class DeviceTransport:
    """Runs a mover on a prefetch stream of its own."""

    clock = Clock.DEVICE
    circle = DeviceCircle

    def __init__(self, device: Device, mover: Mover, num_layers: int) -> None:
        """Make the prefetch stream, without moving anything.

        Args:
            device: holds the windows.
            mover: moves the bytes.
            num_layers: L, the most operations that are under way at once.
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
        # For untimed broadcasts. One fork is enough, because a wait refers to the last record before it.
        fork = device.event(timed=False)
        self._plain = tuple(TransferEvents(fork, device.event(timed=False)) for _ in range(num_layers))
        self._turn = 0

    def broadcast(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Fill ``buffer`` in the order of the current stream, so that later reads on that stream see the bytes."""
        self._mover.move(buffer, layer)

    def store(self, payload: Tensor, layer: MovedLayer) -> Tensor:  # noqa: ARG002 (the interface)
        """Return the payload."""
        return payload

    def journal(self, series: SeriesRecorder, info: SeriesInfo, *, every: int) -> Journal[TransferEvents]:
        """Return a journal that reads the device's clock, by events and, in graphs, by stamps."""
        stamps = self.device.stamps(info.num_layers * STAMPS) if info.windows == "static" else None
        return DeviceJournal(series, self.device, info.num_layers, every=every, stamps=stamps)

    def issue(self, buffer: Tensor, layer: MovedLayer, events: TransferEvents | None = None) -> Operation:
        """Start to fill ``buffer`` once the current stream has reached this point.

        Args:
            buffer: bytes, one dimension; it must live as long as the series.
            layer: whose bytes.
            events: the events to record; without them the broadcast is not timed.
        """
        device = self.device
        if events is None:
            events = self._plain[self._turn]
            self._turn = (self._turn + 1) % len(self._plain)
        events.issued.record(device.current_stream())
        stream = self.stream
        stream.wait_event(events.issued)
        with device.on(stream):
            self.move(buffer, layer)
            events.ready.record(stream)
        return StreamOperation(device, events.ready)

    def close(self) -> None:
        """Release the communicator."""
        self._mover.close()


class CollectiveMover:
    """Broadcasts of a ``torch.distributed`` communicator that enqueues on the current stream, such as NCCL's."""

    rendezvous = "group"

    def __init__(self, group: Group, *, description: str, timeout_s: float) -> None:
        """Make the communicator; all ranks must do so in the same order.

        Args:
            group: the ranks.
            description: names the communicator in torch's own diagnostics.
            timeout_s: how long an operation waits for a peer.
        """
        self.name = backend(group)
        communicator = Communicator(group, description, timeout_s)
        self.gather = communicator.gather
        self._process_group = communicator.process_group
        self._options = [broadcast_options(root, asynchronous=False) for root in communicator.roots]

    def move(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Broadcast on the current stream."""
        self._process_group.broadcast([buffer], self._options[layer.source])

    def close(self) -> None:
        """Release the communicator; torch destroys it once no operation is under way."""
        self._process_group = None
