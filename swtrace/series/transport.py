"""The interface between a series and what moves its bytes.

A transport belongs to one series. Its operations are numbered from 0 in the order of their issue, and
all ranks must issue the same operations in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.trace.schema import Clock, Observed

OnReady = Callable[[int], None]
"""Called once with the ready instant, from any thread, as soon as the transport observes it."""


class TransportError(RuntimeError):
    """A transport cannot complete an operation, usually because a peer left."""


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


class Transport(Protocol):
    """Moves the payload of a layer from its source to all other ranks of the group."""

    name: str
    """``gloo``, ``ideal``, ..."""
    rendezvous: str
    """From when an operation can move: ``source``, ``tree`` or ``group`` (see ``SeriesInfo``)."""
    queue: str
    """What a delivery queues behind: ``serial`` or ``receiver`` (see ``SeriesInfo``)."""
    clock: Clock
    """The clock of all instants."""

    def now(self) -> int:
        """Return the present instant on the transport's clock, in ns."""

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank. Blocking; all ranks take part."""

    def broadcast(self, buffer: Tensor, source: int) -> None:
        """Fill ``buffer`` (uint8, one dimension) from group rank ``source``. Blocking; not numbered."""

    def issue(self, buffer: Tensor, source: int, observer: Any = None) -> Operation:
        """Start to fill ``buffer`` from group rank ``source``; it must not be used before the operation's wait.

        ``observer`` is what the journal for this transport's clock returns from ``issues``: an :data:`OnReady` for a
        host clock, the events to record for a device clock.
        """

    def close(self) -> None:
        """Release the communicator, without waiting."""
