"""Broadcasts through gloo, whose ``wait`` blocks the host.

Because the host blocks, host time is the right clock. A completion callback stamps the ready instant, which a wait
that returns at once cannot observe. It runs Python on gloo's thread and takes the GIL from the forward, which is
most of the cost of tracing. So only timed broadcasts have a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from swtrace.errors import RegistrationError
from swtrace.series.circle import Circle
from swtrace.series.communicator import GLOO, Communicator, backend, broadcast_options
from swtrace.series.journal import Journal, RecordingJournal
from swtrace.trace.schema import Clock, Observed

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.group import Group
    from swtrace.series.transport import MovedLayer, OnReady
    from swtrace.trace.identity import SeriesInfo
    from swtrace.trace.recorder import SeriesRecorder


class TorchOperation:
    """One broadcast of a process group."""

    __slots__ = ("_on_ready", "_work", "done", "observed", "ready_ns", "wait")

    def __init__(self, work: Any, on_ready: OnReady | None) -> None:
        self.ready_ns = 0
        self.observed = Observed.NEVER
        self.wait: Callable[[], Any] = work.wait
        self.done: Callable[[], bool] = work.is_completed
        if on_ready is not None:
            self._on_ready = on_ready
            work.get_future().add_done_callback(self._completed)

    def _completed(self, future: Any) -> None:
        """Stamp the ready instant; runs on the transport's thread."""
        now_ns = time.monotonic_ns()
        try:
            future.wait()
        except RuntimeError:
            return  # failed: the consumer's wait raises the error
        self.observed = Observed.CALLBACK
        self.ready_ns = now_ns
        self._on_ready(now_ns)


class TorchTransport:
    """A communicator over the ranks of a group."""

    rendezvous = "tree"
    queue = "receiver"  # gloo runs two operations at once
    clock = Clock.HOST
    device = None
    now = staticmethod(time.monotonic_ns)
    circle = Circle

    def __init__(self, group: Group, *, description: str, timeout_s: float) -> None:
        """Make the communicator; all ranks must do so in the same order.

        Args:
            group: the ranks.
            description: names the communicator in torch's own diagnostics.
            timeout_s: how long a broadcast waits before it fails.

        Raises:
            RegistrationError: the group's backend cannot be timed by host clocks.
        """
        self.name = backend(group)
        if self.name != GLOO:
            raise RegistrationError(
                f"transport {self.name}: its wait does not block the host, so host clocks would show no stall; "
                f"use a DeviceTransport"
            )
        communicator = Communicator(group, description, timeout_s)
        self.gather = communicator.gather
        self._process_group = communicator.process_group
        timeout = timedelta(seconds=timeout_s)
        self._options = [broadcast_options(root, asynchronous=True) for root in communicator.roots]
        for options in self._options:
            options.timeout = timeout

    def broadcast(self, buffer: Tensor, layer: MovedLayer) -> None:
        """Fill ``buffer`` from the layer's source; blocking."""
        self._process_group.broadcast([buffer], self._options[layer.source]).wait()

    def store(self, payload: Tensor, layer: MovedLayer) -> Tensor:  # noqa: ARG002 (the interface)
        """Return the payload."""
        return payload

    def issue(self, buffer: Tensor, layer: MovedLayer, on_ready: OnReady | None = None) -> TorchOperation:
        """Start to fill ``buffer`` from the layer's source."""
        work = self._process_group.broadcast([buffer], self._options[layer.source])
        return TorchOperation(work, on_ready)

    def journal(self, series: SeriesRecorder, info: SeriesInfo, *, every: int) -> Journal[OnReady]:  # noqa: ARG002
        """Return a journal that writes to the ring at once."""
        return RecordingJournal(series, self, every=every)

    def close(self) -> None:
        """Release the communicator; torch destroys it once no operation is under way."""
        self._process_group = None
