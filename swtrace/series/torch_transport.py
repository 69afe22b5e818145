"""Broadcasts through ``torch.distributed``.

Each series has a communicator of its own, so that its operations queue behind no one else's and match
by their order alone. Gloo's ``wait`` blocks the host, so host time is the right clock for it; a
completion callback stamps the ready instant, which a wait that returns at once could not tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import distributed as dist

from swtrace.errors import RegistrationError
from swtrace.settings import Settings
from swtrace.trace.schema import Clock, Observed

if TYPE_CHECKING:
    from torch import Tensor

    from swtrace.series.group import Group
    from swtrace.series.transport import OnReady


GLOO = "gloo"


def backend(group: Group) -> str:
    """Return the backend of a group's communicator."""
    name: str = dist.get_backend(group.device_group)
    return name


class TorchOperation:
    """One broadcast of a process group."""

    __slots__ = ("_on_ready", "_work", "done", "observed", "ready_ns", "wait")

    def __init__(self, work: Any, on_ready: OnReady | None, *, observe: bool) -> None:
        self.ready_ns = 0
        self.observed = Observed.NEVER
        self.wait: Callable[[], Any] = work.wait
        self.done: Callable[[], bool] = work.is_completed
        if observe:
            self._on_ready = on_ready
            work.get_future().add_done_callback(self._completed)

    def _completed(self, future: Any) -> None:
        """Stamp the ready instant; runs on the transport's thread."""
        now_ns = time.monotonic_ns()
        try:
            future.wait()
        except RuntimeError:
            return  # failed: the consumer's own wait raises it
        self.observed = Observed.CALLBACK
        self.ready_ns = now_ns
        if self._on_ready is not None:
            self._on_ready(now_ns)


class TorchTransport:
    """A communicator over the ranks of a group."""

    rendezvous = "tree"
    clock = Clock.HOST
    now = staticmethod(time.monotonic_ns)

    def __init__(
        self, group: Group, *, description: str = "swtrace", observe: bool = True, timeout_s: float | None = None
    ) -> None:
        """Make the communicator; all ranks must make theirs in the same order.

        Args:
            group: its ranks. Where it can make a sibling of itself (vLLM), it does.
            description: names the communicator in torch's own diagnostics.
            observe: stamp when broadcasts complete. Costs a callback each.
            timeout_s: after which a broadcast that does not arrive fails; by default ``SWTRACE_TIMEOUT``.

        Raises:
            RegistrationError: the group's backend cannot be timed by host clocks.
        """
        self.name = backend(group)
        if self.name != GLOO:
            raise RegistrationError(
                f"transport {self.name}: its wait does not block the host, so host clocks would show no stall; "
                f"use a DeviceTransport"
            )
        ranks = list(group.ranks)
        make_sibling = getattr(group, "make_sibling_device_group", None)
        if make_sibling is not None:
            self._communicator = make_sibling(description)
        else:
            self._communicator = dist.new_group(
                ranks, backend=self.name, use_local_synchronization=True, group_desc=description
            )
        self._observe = observe
        roots = [dist.get_group_rank(self._communicator, rank) for rank in ranks]
        timeout = timedelta(seconds=timeout_s or Settings.from_environment().timeout_s)
        self._options = [self._broadcast_options(root, timeout) for root in roots]
        self._small_messages = getattr(group, "cpu_group", None) or self._communicator
        self._small_order = [dist.get_group_rank(self._small_messages, rank) for rank in ranks]

    @staticmethod
    def _broadcast_options(root: int, timeout: timedelta) -> Any:
        options = dist.BroadcastOptions()
        options.rootRank = root
        options.rootTensor = 0
        options.asyncOp = True
        options.timeout = timeout
        return options

    def gather(self, item: object) -> list[object]:
        """Return every rank's item, by group rank."""
        items: list[object] = [None] * len(self._small_order)
        dist.all_gather_object(items, item, group=self._small_messages)
        return [items[rank] for rank in self._small_order]

    def broadcast(self, buffer: Tensor, source: int) -> None:
        """Fill ``buffer`` from group rank ``source``; blocking."""
        self._communicator.broadcast([buffer], self._options[source]).wait()

    def issue(self, buffer: Tensor, source: int, on_ready: OnReady | None = None) -> TorchOperation:
        """Start to fill ``buffer`` from group rank ``source``."""
        work = self._communicator.broadcast([buffer], self._options[source])
        return TorchOperation(work, on_ready, observe=self._observe)

    def close(self) -> None:
        """Let go of the communicator; torch destroys it with the last operation that is under way."""
        self._communicator = None
