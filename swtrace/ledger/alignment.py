"""Align the clocks of a series' ranks, so that ranks of several hosts can be compared.

Each host has its own CLOCK_MONOTONIC. The reference is the clock of the first rank of the group. All instants of a
rank with another clock are shifted by the offset between the two, which is constant for a step. A broadcast cannot be
ready before its source issued it. So every broadcast from the reference's ranks bounds the offset from below, and
every broadcast to them bounds it from above. Sources rotate, so most steps have both::

    issued (reference) - ready (other)  <=  offset  <=  ready (reference) - issued (other)

The estimate is the middle, and half of the gap is its bound. The middle is exact if the fastest broadcasts take equally
long in both directions. The bound holds in any case. :class:`~swtrace.trace.clock_map.ClockMap` carries the bounds
from step to step, with the drift between the clocks.

A rank that is late in every operation looks like a rank whose clock is ahead, and a host whose ranks are never a source
bounds nothing from above. A :class:`Probe` of the clocks, which is independent of the ranks, bounds the offset then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from swtrace.ledger.pending import Block
from swtrace.trace.clock_map import DRIFT_LIMIT, ClockMap
from swtrace.trace.schema import TransferFlag

_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]

_NEVER = np.iinfo(np.int64).max
_APART_NS = 1_000_000_000
_POINTS = 64
_MOST_NAME = 256
_MOST_NS = 1 << 62
_UNKNOWN_NS = 1 << 60
_CONTRADICTIONS = 3
"""After so many successive steps in which ranks that declare one clock contradict that, each counts as its own."""


class Method(StrEnum):
    """What bounds the offset between two clocks."""

    BROADCASTS = "broadcasts"
    PROBES = "probes"


class Probe(NamedTuple):
    """What one process measured about another host's clock: a reply that came between two readings of its own."""

    clock: str
    """The clock that was asked (:attr:`~swtrace.trace.identity.RankIdentity.clock`)."""
    by: str
    """The clock of the process that asked."""
    at_ns: int
    """What the asked clock showed."""
    low_ns: int
    """What the asking clock showed before, ..."""
    high_ns: int
    """... and after the reply."""

    @classmethod
    def checked(cls, clock: Any, by: Any, at_ns: Any, low_ns: Any, high_ns: Any) -> Probe:
        """Return a probe of values that came from elsewhere.

        Raises:
            ValueError: they cannot be those of a probe.
        """
        probe = cls(clock, by, at_ns, low_ns, high_ns)
        named = all(isinstance(name, str) and 0 < len(name) <= _MOST_NAME for name in (clock, by))
        dated = all(isinstance(ns, int) and 0 <= ns < _MOST_NS for ns in (at_ns, low_ns, high_ns))
        if not named or not dated or low_ns > high_ns:
            raise ValueError("not a probe of a clock")
        return probe


class Probes:
    """Maps from clocks to the clock of a process that asked them."""

    def __init__(self) -> None:
        self._maps: dict[str, dict[str, ClockMap]] = {}
        """By asking clock, then by asked clock."""

    def add(self, probe: Probe) -> None:
        """Add a probe."""
        maps = self._maps.setdefault(probe.by, {})
        if probe.clock != probe.by:
            maps.setdefault(probe.clock, ClockMap(_POINTS, _APART_NS)).add(probe.at_ns, probe.low_ns, probe.high_ns)

    def bounds(self, clock: str, reference: str, at_ns: int) -> tuple[int, int] | None:
        """Return the bounds of what the reference shows when a clock shows ``at_ns``; None if no process knows both."""
        best: tuple[int, int] | None = None
        for by, maps in self._maps.items():
            one, other = maps.get(clock), maps.get(reference)
            if (clock != by and one is None) or (reference != by and other is None):
                continue
            middle_ns, error_ns = (at_ns, 0) if one is None else (one.there(at_ns), one.error_at(at_ns))
            if other is not None:
                guess_ns = middle_ns
                for _ in range(2):  # the second time corrects for the drift since the newest probe
                    guess_ns += middle_ns - other.there(guess_ns)
                middle_ns, error_ns = guess_ns, error_ns + other.error_at(guess_ns)
            if best is None or 2 * error_ns < best[1] - best[0]:
                best = middle_ns - error_ns, middle_ns + error_ns
        return best

    def readings(self, clocks: Sequence[str], at_ns: Sequence[int]) -> Iterator[tuple[_Int, _Int]]:
        """Yield for each asking process what it showed, ``[clock]``, when the clocks showed ``at_ns``, and its error.

        The error is huge where the process does not know a clock.
        """
        for by, maps in self._maps.items():
            shown, error = np.array(at_ns, np.int64), np.full(len(clocks), _UNKNOWN_NS, np.int64)
            for number, clock in enumerate(clocks):
                known = maps.get(clock)
                if known is not None:
                    shown[number], error[number] = known.there(at_ns[number]), known.error_at(at_ns[number])
                elif clock == by:
                    error[number] = 0
            yield shown, error


@dataclass(frozen=True, slots=True)
class AlignedClock:
    """A clock of a series that is aligned to the reference, as of the last finished step."""

    group_ranks: tuple[int, ...]
    """The group ranks that it times."""
    offset_ns: int | None
    """What is added to its instants; None while unknown."""
    bound_ns: int
    """Largest error of the offset; 0 while unknown."""
    drift: float
    """Seconds that the reference gains per second of this clock."""
    method: Method
    restarts: int
    """How often the clocks changed, for example because a host was suspended."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """How the ranks of some steps are compared."""

    block: Block
    """The steps, with all instants on the reference clock as far as it is known."""
    comparable: _Bool
    """``[step]``: the offsets of all ranks are known."""
    shift_ns: _Int
    """``[step, rank]``: what was added to the rank's instants."""
    bound_ns: _Int
    """``[step, rank]``: largest error of that; 0 for ranks on the reference clock."""
    clock: _Int
    """``[rank]``: number of the rank's clock. Two ranks with the same number need no alignment."""
    apart_ns: _Int
    """``[step, clock, clock]``: largest error of the difference between instants of two clocks."""
    before_ns: _Int
    """``[step, rank]``: :attr:`bound_ns` in the step before; huge where that step was not comparable."""

    @classmethod
    def of_one_clock(cls, block: Block) -> Alignment:
        """Return the alignment of ranks that share one clock."""
        steps, ranks = block.ended.shape
        nothing = np.zeros((steps, ranks), np.int64)
        one = np.zeros((steps, 1, 1), np.int64)
        return cls(block, np.ones(steps, np.bool_), nothing, nothing, np.zeros(ranks, np.int64), one, nothing)

    def between_ns(self, step: _Int, one: _Int, other: npt.NDArray[np.integer]) -> _Int:
        """Return the largest error of the difference between instants of two ranks; 0 if they share a clock."""
        if not self.clock.any():
            return np.zeros(1, np.int64)
        return np.asarray(self.apart_ns[step, self.clock[one], self.clock[other]], np.int64)

    def from_any_ns(self, step: _Int, rank: _Int) -> _Int:
        """Return the largest error of the difference between an instant of a rank and one of any other rank."""
        return np.asarray(self.apart_ns.max(axis=2)[step, self.clock[rank]], np.int64)


class Aligner:
    """Aligns the clocks of one series, step by step.

    Args:
        source: ``[position]``: group rank that stores the layer.
        ranks: Size of the group.
        simulated: Whether all ranks read one simulated clock, whatever hosts they are on.
    """

    def __init__(self, source: _Int, ranks: int, *, simulated: bool = False) -> None:
        self._source, self._ranks, self._simulated = source, ranks, simulated
        self._names: list[str] = [""] * ranks
        self._split: set[str] = set()
        """Declared clocks whose ranks contradict each other."""
        self._contradictions: dict[str, int] = {}
        self._maps: dict[str, ClockMap] = {}
        self._methods: dict[str, Method] = {}
        self._last_ns: dict[str, int] = {}
        self._reference = ""
        """The clock that the maps lead to."""
        self._before_ns = np.zeros((1, ranks), np.int64)
        """``[1, rank]``: bounds in the last step; huge if it was not comparable."""

    def set_clock(self, rank: int, clock: str) -> None:
        """Set the clock that a group rank declares."""
        self._names[rank] = clock
        self._check_reference()

    @property
    def clocks(self) -> int:
        """Number of clocks. Ranks that never joined have none."""
        if self._simulated:
            return min(1, sum(map(bool, self._names)))
        return len({self._name(rank) for rank in range(self._ranks) if self._names[rank]})

    def note_contradictions(self, impossible: _Bool) -> None:
        """Note which ranks contradict another one on the same clock, ``[step, rank]``, in successive steps."""
        if not impossible.any():
            self._contradictions.clear()
            return
        for row in impossible:
            contradicted = {self._names[rank] for rank in np.flatnonzero(row).tolist()}
            self._contradictions = {name: self._contradictions.get(name, 0) + 1 for name in contradicted}
            for name, steps in self._contradictions.items():
                if steps >= _CONTRADICTIONS:
                    self._split.add(name)
        self._check_reference()

    def align(self, block: Block, probes: Probes) -> Alignment:
        """Return steps on one clock. They follow those of the previous call."""
        if self._simulated or self.clocks <= 1 or not len(block):
            return Alignment.of_one_clock(block)
        names = [self._name(rank) for rank in range(self._ranks)]
        order = list(dict.fromkeys(name for name, declared in zip(names, self._names, strict=True) if declared))
        clock = np.array([order.index(name) if name in order else 0 for name in names], np.int64)
        bounds = self._bounds(block, clock, len(order))
        of_clocks = [bounds.of_clock(number) for number in range(len(order))]
        steps = len(block)
        shift, bound = np.zeros((steps, len(order)), np.int64), np.zeros((steps, len(order)), np.int64)
        comparable = np.ones(steps, np.bool_)
        for number, name in enumerate(order[1:], 1):
            known = self._align_clock(name, order[0], of_clocks[number], probes, shift[:, number], bound[:, number])
            comparable &= known
        apart = _apart(order, of_clocks, probes, shift, bound)
        shift, bound = shift[:, clock], bound[:, clock]
        bounds_ns = np.concatenate((self._before_ns, np.where(comparable[:, np.newaxis], bound, _UNKNOWN_NS)))
        self._before_ns = bounds_ns[-1:]
        return Alignment(block.shifted(shift), comparable, shift, bound, clock, apart, bounds_ns[:-1])

    def facts(self) -> tuple[AlignedClock, ...]:
        """Return the clocks besides the reference; none if there is only one."""
        ranks: dict[str, list[int]] = {}
        for rank in range(self._ranks):
            if self._names[rank] and not self._simulated:
                ranks.setdefault(self._name(rank), []).append(rank)
        return tuple(self._fact(name, tuple(of)) for name, of in list(ranks.items())[1:])

    def _fact(self, name: str, group_ranks: tuple[int, ...]) -> AlignedClock:
        found, at_ns = self._maps.get(name), self._last_ns.get(name, 0)
        known = found is not None and found.ready
        return AlignedClock(
            group_ranks=group_ranks,
            offset_ns=found.there(at_ns) - at_ns if found is not None and known else None,
            bound_ns=found.error_at(at_ns) if found is not None and known else 0,
            drift=found.drift if found is not None else 0.0,
            method=self._methods.get(name, Method.BROADCASTS),
            restarts=found.restarts if found is not None else 0,
        )

    def _check_reference(self) -> None:
        """Forget all maps if they lead to another clock than that of the first known rank."""
        reference = next((self._name(rank) for rank, name in enumerate(self._names) if name), "")
        if reference != self._reference:
            self._reference = reference
            self._maps.clear()

    def _name(self, rank: int) -> str:
        name = self._names[rank]
        return f"{name} rank {rank}" if name in self._split else name

    def _bounds(self, block: Block, clock: _Int, clocks: int) -> _Bounds:
        """Return what the broadcasts of each step say about each clock."""
        source, positions = self._source, np.arange(len(self._source))
        sent = block.present & ((block.flags & TransferFlag.PREFILLED) == 0)
        received = sent & ((block.flags & TransferFlag.OWN) == 0) & (block.ready_ns > 0)
        order = np.argsort(clock, kind="stable")
        starts = np.searchsorted(clock[order], np.arange(clocks))
        ready = np.minimum.reduceat(np.where(received, block.ready_ns, _NEVER)[:, order], starts, axis=1)
        issued = np.where(sent, block.issued_ns, 0)[:, source, positions]
        ends = np.where(block.ended, block.end_ns, 0)
        begins = np.where(block.ended, block.begin_ns, _NEVER)
        return _Bounds(
            ready_ns=ready,
            issued_ns=issued,
            source_clock=clock[source],
            first_ns=np.minimum.reduceat(begins[:, order], starts, axis=1),
            last_ns=np.maximum.reduceat(ends[:, order], starts, axis=1),
        )

    def _align_clock(
        self, name: str, reference: str, bounds: _OfClock, probes: Probes, shift_ns: _Int, bound_ns: _Int
    ) -> _Bool:
        """Align a clock in each step, and return where that is possible."""
        found = self._maps.setdefault(name, ClockMap(_POINTS, _APART_NS))
        known = np.zeros(len(shift_ns), np.bool_)
        for row, (at_ns, low_ns, high_ns, half_ns) in enumerate(zip(*bounds, strict=True)):
            if at_ns <= 0:
                continue
            restarts, before = found.restarts, found.ready
            low, high = (
                (None if low_ns == -_NEVER else at_ns + low_ns),
                (None if high_ns == _NEVER else at_ns + high_ns),
            )
            method = Method.BROADCASTS
            probed = probes.bounds(name, reference, at_ns)
            if probed is not None:
                if low is None or high is None or probed[1] - probed[0] < high - low:
                    method = Method.PROBES
                low = probed[0] if low is None else max(low, probed[0])
                high = probed[1] if high is None else min(high, probed[1])
            used = True if low is None and high is None else found.add(at_ns, low, high)
            if not found.ready:
                continue
            self._methods[name], self._last_ns[name] = method, at_ns
            shift_ns[row] = found.there(at_ns) - at_ns
            bound_ns[row] = found.error_at(at_ns) + round(half_ns * DRIFT_LIMIT)
            # The first step after a restart queues behind deliveries that were shifted differently.
            known[row] = used and (found.restarts == restarts or not before)
        return known


class _OfClock(NamedTuple):
    """What the broadcasts of each step say about one clock, ``[step]``."""

    at_ns: list[int]
    """An instant of the clock in the middle of the step; 0 if it has no record."""
    low_ns: list[int]
    high_ns: list[int]
    half_ns: list[int]
    """Longest time from the middle to either end of the step."""


class _Bounds(NamedTuple):
    """Instants of each step, by clock, from which the bounds of the offsets follow."""

    ready_ns: _Int
    """``[step, clock, position]``: earliest ready on a receiver with this clock; the greatest integer without one."""
    issued_ns: _Int
    """``[step, position]``: issue at the source; 0 without a record."""
    source_clock: _Int
    """``[position]``"""
    first_ns: _Int
    """``[step, clock]``"""
    last_ns: _Int

    def of_clock(self, number: int) -> _OfClock:
        """Return the bounds of a clock's offset."""
        ready, issued, source = self.ready_ns, self.issued_ns, self.source_clock
        first, last = self.first_ns[:, number], self.last_ns[:, number]
        at = np.where(last > 0, (first + np.maximum(first, last)) // 2, 0)
        to = (source == 0) & (issued > 0) & (ready[:, number] < _NEVER)
        back = (source == number) & (issued > 0) & (ready[:, 0] < _NEVER)
        there, here = np.where(to, ready[:, number], 0), np.where(back, issued, 0)
        low = np.where(to, issued - there - _drifted(there, at), -_NEVER).max(axis=1)
        high = np.where(back, ready[:, 0] - here + _drifted(here, at), _NEVER).min(axis=1)
        half = np.maximum(at - first, last - at)
        return _OfClock(at.tolist(), low.tolist(), high.tolist(), np.where(at > 0, half, 0).tolist())


def _apart(clocks: Sequence[str], steps: Sequence[_OfClock], probes: Probes, shift_ns: _Int, bound_ns: _Int) -> _Int:
    """Return the largest errors of differences between two clocks, ``[step, clock, clock]``.

    Both bounds include the error of the reference. A process that probed both clocks bounds their difference without
    it: what it measured is off by its own two errors, and the alignment differs from that by a known amount.

    Args:
        clocks: The names, the reference first.
        steps: The instants of each clock.
        probes: What is known independently of the steps.
        shift_ns: ``[step, clock]``: what is added to the clock's instants.
        bound_ns: ``[step, clock]``: largest error of that.
    """
    apart = bound_ns[:, :, np.newaxis] + bound_ns[:, np.newaxis, :]
    at = np.array([of_clock.at_ns for of_clock in steps], np.int64).T
    half = np.array([of_clock.half_ns for of_clock in steps], np.int64).T
    for row in np.flatnonzero(at[:, 0] > 0).tolist():
        middle_ns = at[row, 0]
        # Another clock's instants are at most so far from the middle of the reference's step.
        far_ns = half[row] + np.abs(at[row] + shift_ns[row] - middle_ns)
        for shown_ns, error_ns in probes.readings(clocks, (middle_ns - shift_ns[row]).tolist()):
            most_ns = error_ns + np.ceil(far_ns * DRIFT_LIMIT).astype(np.int64)
            differs_ns = np.abs(shown_ns[:, np.newaxis] - shown_ns)
            np.minimum(apart[row], differs_ns + most_ns[:, np.newaxis] + most_ns, out=apart[row])
    numbers = np.arange(len(clocks))
    apart[:, numbers, numbers] = 0
    return apart


def _drifted(instants_ns: _Int, at_ns: _Int) -> _Int:
    """Return by how much two clocks may drift apart between instants, ``[step, position]``, and another one."""
    return np.asarray(np.ceil(np.abs(instants_ns - at_ns[:, np.newaxis]) * DRIFT_LIMIT), np.int64)
