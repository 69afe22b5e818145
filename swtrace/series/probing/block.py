"""One block of a probe on one rank: its transfers, and what the rank computes meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import torch

from swtrace.profile import Spread
from swtrace.trace.clocks import now_ns

if TYPE_CHECKING:
    from swtrace.series.probing.channels import Channel
    from swtrace.series.transport import OnReady, Operation

_LEAST = 0.2
"""Share of the time in which transfers must be under way. Otherwise the noise of the products exceeds their effect."""
_RESAMPLED, _HIGH = 100, 0.95
"""How often blocks are resampled, and the share of them that must give a stretch."""
_LOOK_S = 0.5
"""How often to look for a transfer that failed."""


class Transfers:
    """The transfers of a block on this rank."""

    def __init__(self, channel: Channel, nbytes: int, concurrent: int, count: int, *, chained: bool = True) -> None:
        """Prepare; :meth:`issue` starts the first ones.

        Args:
            channel: moves them.
            nbytes: size of each.
            concurrent: how many are under way at once.
            count: how many there are.
            chained: whether the thread that completes one issues the next; otherwise the caller does.
        """
        self._channel = channel
        self._chained = chained
        self._nbytes = nbytes
        self._concurrent = concurrent
        self._count = count
        self._operations: list[Operation] = []
        self._completed: list[int] = []
        self._issuing = threading.Lock()
        self._all_ready = threading.Event()
        self.issued_ns: list[int] = []
        self.calls_ns: list[int] = []
        """Duration of each call that issued a transfer."""
        self.ready_ns = [0] * count

    def issue(self) -> None:
        """Issue transfers until enough are under way, whichever thread calls this."""
        while self._due() and self._issuing.acquire(blocking=False):  # else the thread that holds it looks again
            try:
                while self._due():
                    index = len(self.issued_ns)
                    begin = now_ns()
                    self.issued_ns.append(begin)
                    operation = self._channel.issue(index, self._nbytes, self._concurrent, self._observer(index))
                    self.calls_ns.append(now_ns() - begin)
                    self._operations.append(operation)
            finally:
                self._issuing.release()

    def _due(self) -> bool:
        return len(self.issued_ns) < min(self._count, len(self._completed) + self._concurrent)

    def _observer(self, index: int) -> OnReady:
        def observe(ready_ns: int) -> None:
            self.ready_ns[index] = ready_ns
            self._completed.append(index)
            if len(self._completed) == self._count:
                self._all_ready.set()
            elif self._chained:
                self.issue()

        return observe

    @property
    def over(self) -> bool:
        """Whether all are complete."""
        return self._all_ready.is_set()

    def wait(self) -> None:
        """Block until all are complete.

        Raises:
            RuntimeError: one failed.
        """
        while not self._all_ready.wait(_LOOK_S):
            self.look()

    def look(self) -> None:
        """Raise RuntimeError if a transfer failed."""
        for operation in list(self._operations):
            if operation.done():
                operation.wait()


class Beside(NamedTuple):
    """What a rank computed in a block, in ns."""

    beside: int
    """For how long a transfer was under way."""
    whole: int
    """How long the products took."""
    solo: float
    """How long they take without transfers."""


def stretch(blocks: Sequence[Beside]) -> Spread | None:
    """Return how many times as long products take while a transfer is under way, with the spread over resampled blocks.

    Without a transfer a product progresses at its own rate. So the work that is left for the time beside transfers is
    ``solo - (whole - beside)``, summed over all blocks.

    Returns:
        None if transfers were under way for too little of the time to know it.
    """
    if sum(block.beside for block in blocks) <= _LEAST * sum(block.whole for block in blocks):
        return None
    random = Random(0)  # noqa: S311 (a bootstrap, no secret)
    found = []
    for _ in range(_RESAMPLED):
        beside, whole, solo = map(sum, zip(*random.choices(blocks, k=len(blocks)), strict=True))
        if (alone := solo - (whole - beside)) > 0:
            found.append(beside / alone)
    return Spread.of(found) if len(found) > _HIGH * _RESAMPLED else None


class Compute:
    """What a rank computes meanwhile: products of a few tokens with matrices that do not fit a cache, as in a decode.

    A product takes about a tenth of a millisecond.
    """

    _WIDTH, _TOKENS, _MATRICES = 512, 8, 32
    _REFERENCE = 64
    """Products before a block, and again after it."""

    def __init__(self) -> None:
        """Make the matrices."""
        self._matrices = [torch.rand(self._WIDTH, self._WIDTH) for _ in range(self._MATRICES)]
        self._inputs = torch.rand(self._TOKENS, self._WIDTH)
        self._output = torch.empty(self._TOKENS, self._WIDTH)
        self._turn = 0

    def _reference_ns(self) -> float:
        """Return the mean duration of a product without transfers, in ns. All ranks compute at the same time."""
        begin = now_ns()
        for _ in range(self._REFERENCE):
            self._multiply()
        return (now_ns() - begin) / self._REFERENCE

    def beside(self, transfers: Transfers) -> Beside:
        """Issue transfers between products until they are complete; return what that did to the products."""
        reference_ns = self._reference_ns()
        transfers.issue()
        begin = checked = now_ns()
        number = 0
        while not transfers.over:
            self._multiply()
            transfers.issue()
            number += 1
            if now_ns() - checked > _LOOK_S * 1e9:
                checked = now_ns()
                transfers.look()
        end = now_ns()
        reference_ns = (reference_ns + self._reference_ns()) / 2
        return Beside(_covered(transfers, begin, end), end - begin, number * reference_ns)

    def _multiply(self) -> None:
        self._turn = (self._turn + 1) % self._MATRICES
        torch.mm(self._inputs, self._matrices[self._turn], out=self._output)


def _covered(transfers: Transfers, begin: int, end: int) -> int:
    """Return for how many of these nanoseconds at least one transfer was under way on this rank."""
    total, until = 0, begin
    for issued, ready in sorted(zip(transfers.issued_ns, transfers.ready_ns, strict=True)):
        total += max(0, min(ready, end) - max(issued, until))
        until = max(until, ready)
    return total
