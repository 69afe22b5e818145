"""The interface between a series and what moves its bytes.

A transport belongs to one series. Its operations are numbered from 0 in the order of their issue, and
all ranks must issue the same operations in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.circle import Circle
    from swtrace.series.device.accelerator import Device
    from swtrace.series.journal import Journal
    from swtrace.trace.identity import SeriesInfo
    from swtrace.trace.recorder import SeriesRecorder
    from swtrace.trace.schema import Clock, Observed

PULL = "pull"
"""The name of every transport that pulls."""
RECEIVER = "receiver"
"""The rendezvous of an operation that needs no other rank; its ranks may start, and load, on their own."""

Observer = TypeVar("Observer")
"""What a journal gives to its transport to observe an operation with: an :data:`OnReady` on a host clock, the events to
record on a device."""

OnReady = Callable[[int], None]
"""Called once with the ready instant, from any thread, as soon as the transport observes it."""


class MovedLayer(Protocol):
    """What a transport needs to know of a layer."""

    @property
    def position(self) -> int:
        """Position on the circle."""

    @property
    def source(self) -> int:
        """Group rank that stores it."""


class Operation(Protocol):
    """One broadcast under way."""

    ready_ns: int
    """The ready instant, on the transport's clock; 0 until observed."""
    observed: Observed
    """How ``ready_ns`` is known; ``NEVER`` until it is."""

    def wait(self) -> None:
        """Block until the buffer may be used; raise RuntimeError if the operation failed."""

    def done(self) -> bool:
        """Return whether ``wait`` would return at once."""


class Transport(Protocol[Observer]):
    """Moves the payload of a layer from its source to all other ranks of the group.

    It makes the series' journal and circle, because both depend on how its operations are timed and waited for.
    """

    name: str
    """``gloo``, ``ideal``, ..."""
    rendezvous: str
    """From when an operation can move: ``source``, ``tree``, ``group`` or ``receiver`` (see ``SeriesInfo``)."""
    queue: str
    """What a delivery queues behind: ``serial`` or ``receiver`` (see ``SeriesInfo``)."""
    clock: Clock
    """The clock of all instants."""

    @property
    def device(self) -> Device | None:
        """What orders and times the operations; None if the host does."""

    def now(self) -> int:
        """Return the present instant on the transport's clock, in ns."""

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank. Blocking; all ranks take part."""

    def broadcast(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Fill ``buffer`` (uint8, one dimension) from the layer's source. Blocking; not numbered."""

    def store(self, payload: Tensor, layer: MovedLayer) -> Tensor:
        """Return the memory that holds the payload of a layer of this rank from now on: ``payload``, or a copy."""

    def issue(self, buffer: Tensor, layer: MovedLayer, observer: Observer | None = None, /) -> Operation:
        """Start to fill ``buffer`` from the layer's source; it must not be used before the operation's wait.

        ``observer`` is what this transport's journal returned from ``issues``; None if the operation is not timed.
        """

    def journal(self, series: SeriesRecorder, info: SeriesInfo, *, every: int) -> Journal[Observer]:
        """Return the journal of a traced series, which times one step in ``every``."""

    def circle(self, *arguments: Any, **options: Any) -> Circle[Observer]:
        """Return what runs the steps, now that every layer is in its place; see ``Circle`` for the arguments."""

    def close(self) -> None:
        """Release the communicator, without waiting."""
