"""Find when a broadcast can move: which ranks must issue it before a delivery can start.

============  ======================================================================================
``source``    the source and this rank: the source sends to each receiver separately
``receiver``  this rank alone: it copies from the source's memory, and the source does nothing
``tree``      the ranks on the way from the source to this one, both included, and those it sends to
``group``     all ranks: a collective that starts when all ranks have issued
============  ======================================================================================

``tree`` is gloo's broadcast: a binomial tree over the ranks, counted from the source. Rank ``v`` in this
count receives from the rank whose number is ``v`` without its highest bit. Rank ``v`` is done only when the ranks that
it sends to have received the bytes. Up to three ranks, this is the same as ``source``.
``tests/ledger/test_rendezvous.py`` checks this on gloo, with one late rank of 3, 4 and 5 and every source: exactly the
ranks predicted here wait. One measurement with 8 ranks gave the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from swtrace.ledger.pending import Waits

if TYPE_CHECKING:
    from swtrace.ledger.alignment import Alignment

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

SOURCE, TREE, GROUP, RECEIVER = "source", "tree", "group", "receiver"


class Rendezvous:
    """Which ranks' issues each rank's delivery waits for, in one series.

    Args:
        kind: ``source``, ``tree``, ``group`` or ``receiver``; anything else counts as ``group``, the most cautious
            assumption.
        ranks: Size of the group.
        source: ``[position]``: group rank that stores the layer.
    """

    def __init__(self, kind: str, ranks: int, source: _Int) -> None:
        self._ranks, self._source = ranks, source
        self._needed: _Int | None = None
        if kind in _NEEDED:
            by_distance = _NEEDED[kind](ranks)
            distance = (np.arange(ranks)[:, np.newaxis] - source) % ranks
            self._needed = (by_distance[distance] + source[:, np.newaxis]) % ranks
            """``[rank, position, which]``: ranks whose issues a delivery waits for, the receiver first."""

    def last_issue(self, issued_ns: _Int, waits: Waits) -> tuple[_Int, _Int]:
        """Return the last issue of each delivery that was waited for, and the group rank that made it.

        Of equal issues, the first in the order of ranks needed counts.

        Args:
            issued_ns: ``[step, rank, position]``.
            waits: The deliveries.
        """
        if self._needed is None:
            late = issued_ns.argmax(axis=1)[waits.step, waits.position]
            return issued_ns[waits.step, late, waits.position], late
        last, late = issued_ns.reshape(-1)[waits.cell], waits.rank
        for other, of_other in self._issues(self._needed[:, :, 1:], issued_ns, waits):
            later = of_other > last
            last, late = np.where(later, of_other, last), np.where(later, other, late)
        return last, late

    def last_issue_within(self, issued_ns: _Int, waits: Waits, alignment: Alignment) -> tuple[_Int, _Int]:
        """Return the earliest and the latest instant at which the last issue of each delivery may have been made."""
        step, rank = waits.step, waits.rank
        if self._needed is not None:
            own = issued_ns.reshape(-1)[waits.cell]
            issues = (
                (of_other, alignment.between_ns(step, rank, other))
                for other, of_other in self._issues(self._needed[:, :, 1:], issued_ns, waits)
            )
        else:
            clocks, first, number = np.unique(alignment.clock, return_index=True, return_inverse=True)
            order = np.argsort(alignment.clock, kind="stable")
            starts = np.searchsorted(alignment.clock[order], clocks)
            last = np.maximum.reduceat(issued_ns[:, order], starts, axis=1)
            own = last[step, number[rank], waits.position]
            issues = (
                (last[step, which, waits.position], alignment.between_ns(step, rank, one))
                for which, one in enumerate(first)
            )
        low = high = own
        for of_other, bound in issues:
            low, high = np.maximum(low, of_other - bound), np.maximum(high, of_other + bound)
        return low, high

    def in_doubt(
        self, issued_ns: _Int, waits: Waits, late: _Int, between_ns: Callable[[_Int, _Int, _Int], _Int]
    ) -> _Bool:
        """Return for which deliveries another rank may have issued last.

        Args:
            issued_ns: ``[step, rank, position]``.
            waits: The deliveries.
            late: The rank whose issue seems to be the last, ``[wait]``.
            between_ns: Returns the largest error of the differences between two ranks' instants, for some steps.
        """
        if self._needed is None:
            step, rank = np.arange(len(issued_ns))[:, np.newaxis, np.newaxis], np.arange(self._ranks)[:, np.newaxis]
            latest = issued_ns.argmax(axis=1)[:, np.newaxis]
            behind = issued_ns.max(axis=1, keepdims=True) - issued_ns
            close = (rank != latest) & (behind < between_ns(step, latest, rank))
            return np.asarray(close.any(axis=1)[waits.step, waits.position], np.bool_)
        last = issued_ns[waits.step, late, waits.position]
        doubt = np.zeros(len(late), np.bool_)
        for other, of_other in self._issues(self._needed, issued_ns, waits):
            doubt |= (other != late) & (last - of_other < between_ns(waits.step, late, other))
        return doubt

    def _issues(self, needed: _Int, issued_ns: _Int, waits: Waits) -> Iterator[tuple[_Int, _Int]]:
        """Yield ranks whose issues each delivery waits for, ``[rank, position, which]``, and these, by wait."""
        layers = issued_ns.shape[2]
        issued, first = issued_ns.reshape(-1), waits.cell - waits.rank * layers
        of_position = waits.rank * layers + waits.position
        for which in np.moveaxis(needed, 2, 0):
            other = which.reshape(-1)[of_position]
            yield other, issued[first + other * layers]

    def passes(self, ranks: _Bool) -> _Bool:
        """Return which transfers go to some ranks, or through them on their way: ``[rank, position]`` from ``[rank]``.

        A rank that passes bytes on is done only when its receivers are, so a transfer to it goes through them, too.
        """
        if self._needed is None:
            return np.broadcast_to(ranks[:, np.newaxis], (self._ranks, len(self._source)))
        through = ranks[self._needed] & (self._needed != self._source[:, np.newaxis])
        return np.asarray(through.any(axis=2), np.bool_)

    def last_issue_at(self, position: int, issued_ns: _Int) -> _Int:
        """Return the last issue of one position's broadcast, ``[rank]``, from all ranks' issues, ``[rank]``."""
        if self._needed is None:
            last = np.empty_like(issued_ns)
            last[:] = issued_ns.max(axis=-1, keepdims=True)
            return last
        return np.asarray(issued_ns[..., self._needed[:, position]].max(axis=-1))


def _needed_of_source(ranks: int) -> _Int:
    """Return the ranks needed, ``[distance from the source, 2]``: itself first, so that ties blame no peer."""
    return np.stack((np.arange(ranks), np.zeros(ranks, np.int64)), axis=1)


def _needed_in_tree(ranks: int) -> _Int:
    """Return the ranks needed, ``[distance from the source, ...]``: itself, its ancestors, its children, padding."""
    rows = []
    for distance in range(ranks):
        needed = [distance]
        before = distance
        while before:
            before ^= 1 << (before.bit_length() - 1)
            needed.append(before)
        bit = 1 << distance.bit_length()
        while distance + bit < ranks:
            needed.append(distance + bit)
            bit <<= 1
        rows.append(needed)
    width = max(len(row) for row in rows)
    return np.array([row + row[:1] * (width - len(row)) for row in rows], np.int64)


def _needed_of_receiver(ranks: int) -> _Int:
    """Return the rank needed, ``[distance from the source, 1]``: itself."""
    return np.arange(ranks)[:, np.newaxis]


_NEEDED = {SOURCE: _needed_of_source, TREE: _needed_in_tree, RECEIVER: _needed_of_receiver}
