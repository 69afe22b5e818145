"""The thread that fills windows by copying from the owners' memory.

There is one per series and rank, so copies queue only behind earlier copies of the same series and rank. A copy runs
without the GIL. The thread takes the GIL twice per copy: to fetch it, and to stamp the instant at which it was done.
"""

from __future__ import annotations

import ctypes
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

from swtrace.trace.schema import Observed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from swtrace.series.transport import OnReady


CHECK_NS = 1_000_000_000
"""How often to look after the owners, while there is something to copy."""


class CopyOperation:
    """One copy into a window."""

    __slots__ = ("_lock", "_on_ready", "buffer", "observed", "origin", "ready_ns")

    def __init__(self, buffer: Tensor, origin: Tensor, on_ready: OnReady | None) -> None:
        self.buffer = buffer
        self.origin = origin
        self.ready_ns = 0
        self.observed = Observed.NEVER
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._lock.acquire()

    def finish(self, ready_ns: int) -> None:
        """Release whoever waits; runs on the copier's thread."""
        self.observed = Observed.CALLBACK
        self.ready_ns = ready_ns
        self._lock.release()
        if self._on_ready is not None:
            self._on_ready(ready_ns)

    def wait(self) -> None:
        """Block until the window is filled."""
        if not self.ready_ns:
            with self._lock:
                pass

    def done(self) -> bool:
        """Return whether the window is filled."""
        return self.ready_ns != 0


class HeldOperation:
    """What an owner issues: nothing, because its copy of the layer is there."""

    ready_ns = 0
    observed = Observed.NEVER

    def wait(self) -> None:
        """Return at once."""

    def done(self) -> bool:
        """Return True."""
        return True


HELD = HeldOperation()


class Copier:
    """Copies in the order in which it is asked to."""

    def __init__(self, name: str, check: Callable[[], None]) -> None:
        """Start the thread, which ends with :meth:`close`, or with the process.

        Args:
            name: of the thread.
            check: called by the thread beside the copies, at most every :data:`CHECK_NS`.
        """
        self._check = check
        self._queue: SimpleQueue[CopyOperation | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def copy(self, buffer: Tensor, origin: Tensor, on_ready: OnReady | None) -> CopyOperation:
        """Start to fill ``buffer`` (bytes, contiguous, in host memory) from ``origin``, which has the same size."""
        operation = CopyOperation(buffer, origin, on_ready)
        self._queue.put(operation)
        return operation

    def close(self) -> None:
        """Finish what was asked for, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        move, now, due_ns = ctypes.memmove, time.monotonic_ns, 0
        while (operation := self._queue.get()) is not None:
            move(operation.buffer.data_ptr(), operation.origin.data_ptr(), operation.origin.nbytes)
            ready_ns = now()
            operation.finish(ready_ns)
            del operation  # or its window's memory would live until the next copy
            if ready_ns > due_ns:
                due_ns = ready_ns + CHECK_NS
                self._check()
