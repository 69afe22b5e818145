"""How transfers and computes slow each other down, and when they are under way at the same time.

On a host, both need the cores; on a device, both need its memory and processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace.ledger.rendezvous import RECEIVER
from swtrace.trace.identity import BROADCAST, PULL

_Float = npt.NDArray[np.float64]

MOST_CONTENTION = {BROADCAST: 0.6, PULL: 1.0}
"""Upper bound of :attr:`Contention.compute`. A rank that pulls copies with a thread of its own, which may take its
core; gloo's threads mostly wait for the socket."""
SLOWDOWN = {BROADCAST: 0.0, PULL: 0.5}
"""How much longer a transfer takes while its receiver computes, on top of slowing each other down alike, as a share of
its time: on a host, a copy by its receiver also waits for the interpreter and for memory."""
CROWDING = 0.6
"""See :attr:`Contention.crowding`. These three predicted real runs best (``docs/planning.md``)."""


@dataclass(frozen=True, slots=True)
class Contention:
    """How transfers and computes of a group slow each other down."""

    compute: _Float
    """``[rank]`` or ``[step, rank]``: how much longer compute takes for each ns that a transfer of the rank is under
    way."""
    slowdown: float
    """How much longer a transfer takes while its receiver computes, as a share of its time otherwise."""
    crowding: float | _Float
    """How much longer a transfer takes for each other one of the group under way, likewise; or ``[step]``. On a channel
    that carries one at a time, there is none."""

    @classmethod
    def like(cls, compute: _Float, family: str, *, on_device: bool) -> Contention:
        """Return the contention of a kind of transfer, from what it does to computes.

        On a device, a stream carries one transfer at a time, and no copy waits for the interpreter.
        """
        if on_device:
            return cls(compute, float(compute.mean()), 0.0)
        return cls(compute, SLOWDOWN.get(family, 0.0) + float(compute.mean()), CROWDING)

    @property
    def any(self) -> bool:
        """Whether anything slows down anything."""
        return bool(self.compute.any() or self.slowdown or np.any(self.crowding))

    def stretch(self, computing: _Float, others: _Float) -> _Float:
        """Return how many times as long as alone transfers take.

        Args:
            computing: the share of a transfer's time in which its receiver computes.
            others: how many other transfers are under way meanwhile, on average.
        """
        return np.asarray((1 + self.crowding * others) / (1 - computing + computing / (1 + self.slowdown)))


def senders(source: npt.NDArray[np.int64], rendezvous: str) -> npt.NDArray[np.int64]:
    """Return the group rank that sends the layer at each position; -1 if its receivers copy it without its help."""
    return np.full_like(source, -1) if rendezvous == RECEIVER else source


def meanwhile(start: _Float, ready: _Float, stretches: Sequence[tuple[_Float, _Float]]) -> tuple[_Float, _Float]:
    """Return what happens during each transfer, for :meth:`Contention.stretch`.

    Args:
        start: ``[..., rank, position]``; NaN where nothing is received.
        ready: likewise.
        stretches: when each rank computes, see :meth:`Busy.of_compute`.

    Returns:
        The share of its time in which its receiver computes, and :func:`beside`.
    """
    computing = Busy.of_compute(stretches).within(start, ready) / np.maximum(1.0, ready - start)
    return computing, beside(start, ready)


def beside(start: _Float, ready: _Float) -> _Float:
    """Return how many other transfers are under way during each, on average; 0 where nothing is received.

    A broadcast is one transfer, from its first receiver's start to its last receiver's end.

    Args:
        start: ``[..., rank, position]``; NaN where nothing is received.
        ready: likewise.
    """
    received = np.isfinite(start) & np.isfinite(ready)
    begins = np.fmin.reduce(np.where(received, start, np.nan), axis=-2)
    ends = np.fmax.reduce(np.where(received, ready, np.nan), axis=-2)
    moved = np.isfinite(begins)
    found = np.zeros_like(start)
    if not moved.any():
        return found
    events = np.concatenate((begins[moved], ends[moved]))
    order = np.argsort(events, kind="stable")
    instants = events[order]
    under_way = np.where(order < moved.sum(), 1, -1).cumsum()[:-1]
    line = instants, np.concatenate(([0.0], np.cumsum(under_way * np.diff(instants))))
    since, until = start[received], ready[received]
    found[received] = np.maximum(0.0, _increase(line, since, until) / np.maximum(1.0, until - since) - 1)
    return found


class Busy:
    """When transfers of each rank are under way, those that it receives and those that it sends."""

    def __init__(self, intervals: Sequence[_Float]) -> None:
        """Join the intervals of each rank, ``[rank][interval, 2]``, in ns."""
        self._lines = [_covered(of_rank) for of_rank in intervals]

    @classmethod
    def of(cls, start: _Float, ready: _Float, sender: npt.NDArray[np.int64], ranks: Sequence[int]) -> Busy:
        """Return when transfers are under way.

        Args:
            start: ``[..., rank, position]``; NaN where nothing is received.
            ready: likewise.
            sender: ``[position]``: group rank that sends the layer. A rank that others copy from sends nothing.
            ranks: Group ranks of the rank axis.
        """
        both = np.stack((start, ready), axis=-1)
        intervals = []
        for row, rank in enumerate(ranks):
            joined = np.concatenate((both[..., row, :, :].reshape(-1, 2), both[..., sender == rank, :].reshape(-1, 2)))
            intervals.append(joined[np.isfinite(joined).all(axis=1)])
        return cls(intervals)

    @classmethod
    def of_compute(cls, stretches: Sequence[tuple[_Float, _Float]]) -> Busy:
        """Return when each rank computes, from stretches of time, each ``[..., rank, stretch]``."""
        ranks = stretches[0][0].shape[-2]
        both = [np.stack(stretch, axis=-1) for stretch in stretches]
        return cls([np.concatenate([each[..., row, :, :].reshape(-1, 2) for each in both]) for row in range(ranks)])

    def within(self, since: _Float, until: _Float) -> _Float:
        """Return how much of some stretches of time is busy, ``[..., rank, stretch]``."""
        shorter = np.empty_like(since)
        for row, line in enumerate(self._lines):
            shorter[..., row, :] = _increase(line, since[..., row, :], until[..., row, :])
        return shorter


def _increase(line: tuple[_Float, _Float], since: _Float, until: _Float) -> _Float:
    """Return by how much a line of instants and values grows between two instants."""
    return np.asarray(np.interp(until, *line) - np.interp(since, *line))


def _covered(intervals: _Float) -> tuple[_Float, _Float]:
    """Return a line: how much time before an instant is covered by at least one interval."""
    if not len(intervals):
        return np.zeros(1), np.zeros(1)
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reached = np.maximum.accumulate(intervals[:, 1])
    first = np.concatenate(([True], intervals[1:, 0] > reached[:-1]))
    start = intervals[first, 0]
    stop = reached[np.concatenate((np.flatnonzero(first)[1:] - 1, [len(intervals) - 1]))]
    instants = np.stack((start, stop), axis=1).reshape(-1)
    covered = np.concatenate(([0.0], np.cumsum(stop - start)))
    return instants, np.stack((covered[:-1], covered[1:]), axis=1).reshape(-1)
