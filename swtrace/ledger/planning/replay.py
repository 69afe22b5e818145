"""Replay measured steps under other settings.

A shared layer's transfer is issued at the reach ``k`` shared layers earlier, and then ::

    start    = max(last issue, end of the transfer before on the channel)
    ready    = start + time on the channel
    wait end = ready + wake, if the rank waits for it, else wait begin

Compute between these instants is that of the curves (:mod:`~swtrace.ledger.planning.workload`). It takes longer while
transfers of the rank are under way, and when they are depends on how long it takes. So the replay runs a few times,
each time with the contention that follows from the run before.

Steps are replayed in sections at once. What ranks and channel are doing when a section begins is taken from the section
before it, in the previous run. In the first run it is unknown, so each section begins with :data:`WARM_UP` steps that
do not count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from swtrace.ledger.channel import SERIAL
from swtrace.ledger.planning.contention import Busy, Contention, meanwhile, senders
from swtrace.ledger.planning.prediction import Replayed
from swtrace.ledger.planning.workload import Workload
from swtrace.ledger.rendezvous import Rendezvous

_Float = npt.NDArray[np.float64]

WARM_UP = 3
_SECTION = 5
"""Steps of a section that count."""
_APART_NS = 1e14
"""Between the begins of two sections, so that all of them can be on one clock."""
_ROUNDS = 3
"""Runs until contention and instants agree, and the sections with each other."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a replay changes."""

    shared: tuple[int, ...]
    """Shared layers, counted from the first of the stack; none if nothing is shared."""
    source: npt.NDArray[np.int64]
    """``[position]``: group rank that owns the layer."""
    prefetch_step: int
    rendezvous: str
    queue: str
    moving: _Float
    """``[step, rank, position]``: time on the channel if nothing slows it down; NaN where the rank owns the layer."""
    overhead_ns: float
    contention: Contention


def replay(workload: Workload, settings: Settings, runs: int = 1) -> Replayed:
    """Replay the steps.

    Args:
        workload: The steps.
        settings: What to change.
        runs: The steps are this many runs of equal length, one after the other, that know nothing of each other. All
            are replayed at once.
    """
    rows = _sections(workload.steps, runs)
    places = np.array([*settings.shared, *np.add(settings.shared, workload.linear_at), workload.knots[-1]])
    to = workload.compute_to(places)[rows]
    positions = len(settings.shared)
    reach_at, linear_at, end_at = to[..., :positions], to[..., positions:-1], to[..., -1]
    previous = np.concatenate((np.zeros_like(reach_at[..., :1]), linear_at[..., :-1]), axis=-1)
    before, after = reach_at - previous, linear_at - reach_at + settings.overhead_ns
    tail = end_at - (linear_at[..., -1] if positions else 0.0)
    run = _Run(workload, settings, rows, runs)
    crowding = np.broadcast_to(settings.contention.crowding, len(workload.step_ns))[rows][..., np.newaxis, np.newaxis]
    contention = replace(settings.contention, crowding=crowding)
    slows = np.broadcast_to(contention.compute, workload.step_ns.shape)[rows][..., np.newaxis]
    slower = [np.zeros_like(before), np.zeros_like(after), np.zeros_like(tail)]
    moving, sending = run.moving, senders(settings.source, settings.rendezvous)
    if settings.shared == workload.shared and positions:  # begin with the contention that was measured
        overlap = slows * workload.overlap[rows]
        slower = [overlap[..., :-1:2], overlap[..., 1::2], overlap[..., -1]]
        stretch = contention.stretch(workload.computing[rows], workload.beside[rows])
        moving = moving * np.where(np.isfinite(stretch), stretch, 1.0)
    for turn in range(_ROUNDS if positions else 1):
        if turn and contention.any:
            busy, stretches = Busy.of(run.start, run.ready, sending, workload.ranks), run.stretches
            slower = [slows * busy.within(*stretch) for stretch in stretches]
            slower[2] = slower[2][..., 0]
            moving = run.moving * contention.stretch(*meanwhile(run.start, run.ready, stretches))
        run.go(before + slower[0], after + slower[1], tail + slower[2], moving)
    counted = run.counted
    late = np.nan_to_num(run.ready - run.wait_begin, nan=0.0)
    return Replayed(
        step_ns=(run.end - run.begin)[counted],
        stall_ns=np.maximum(0.0, late).sum(axis=-1)[counted],
        slack_ns=np.maximum(0.0, -late).sum(axis=-1)[counted],
        waits=int(np.isfinite(settings.moving[rows][counted]).sum()),
    )


def _sections(steps: int, runs: int) -> npt.NDArray[np.int64]:
    """Return the steps of each section, ``[section, step]``; sections have equal lengths, and may overlap."""
    each = steps // runs
    length = min(each, WARM_UP + _SECTION)
    count = max(1, -(-(each - WARM_UP) // _SECTION))
    begins = np.minimum(np.arange(count) * _SECTION, each - length) + each * np.arange(runs)[:, np.newaxis]
    return np.asarray(begins.reshape(-1, 1) + np.arange(length), np.int64)


class _Run:
    """One run through all sections. Instants are ``[section, step, rank]``, with positions last where there are any."""

    def __init__(self, workload: Workload, settings: Settings, rows: npt.NDArray[np.int64], runs: int) -> None:
        self._workload, self._settings = workload, settings
        self._skew, self._gap, self.moving = workload.skew[rows[:, 0]], workload.gap[rows], settings.moving[rows]
        self._following = np.flatnonzero(np.arange(len(rows)) % (len(rows) // runs))
        """Sections that begin within another one, which is the one before."""
        self._begins_at = (rows[self._following] - rows[self._following - 1])[:, 0]
        """At which of its steps."""
        self._rendezvous = Rendezvous(settings.rendezvous, len(workload.ranks), settings.source)
        self._serial = settings.queue == SERIAL
        shape = self.moving.shape
        wake = workload.wake
        # Wakes are drawn in a fixed order: every replay of the same waits has the same ones.
        one = (shape[0] // runs, *shape[1:])
        drawn = np.random.default_rng(0).choice(wake, size=one) if wake.size else np.zeros(one)
        self._wake = _by_operation(np.concatenate([drawn] * runs))
        self.reach, self.wait_begin, self.wait_end, self.start, self.ready = (np.full(shape, np.nan) for _ in range(5))
        self.begin, self.end = np.zeros(shape[:-1]), np.zeros(shape[:-1])
        self._free = np.full(shape[:-1], np.nan)
        """When the channel of each rank is free, as of the step's begin. NaN before the first run."""
        apart = np.zeros(rows.shape, np.bool_)
        apart[:, min(WARM_UP, rows.shape[1] - 1) :] = True
        # A step that is in two sections counts in the first.
        seen = np.zeros(int(rows.max(initial=0)) + 1, np.bool_)
        for section in range(len(rows)):
            apart[section] &= ~seen[rows[section]]
            seen[rows[section][apart[section]]] = True
        self.counted = apart

    @property
    def stretches(self) -> list[tuple[_Float, _Float]]:
        """Begin and end of each rank's computes: to each reach, from there to each wait, and after the last one."""
        before = np.concatenate((self.begin[..., np.newaxis], self.wait_end[..., :-1]), axis=-1)
        last = self.wait_end[..., -1:], self.end[..., np.newaxis]
        return [(before, self.reach), (self.reach, self.wait_begin), last]

    def go(self, before: _Float, after: _Float, tail: _Float, moving: _Float) -> None:
        """Run with these computes (see :attr:`stretches`) and times on the channel."""
        sections, steps, _, positions = moving.shape
        k, passed = self._settings.prefetch_step, self._workload.passed
        # An operation is a position of a step. Instants are ``[operation, section, rank]`` here.
        to_reach, to_wait, on_channel = (_by_operation(each) for each in (before, after, moving))
        reach, wait_begin, wait_end = (np.empty_like(to_reach) for _ in range(3))
        start, ready = np.full_like(to_reach, np.nan), np.full_like(to_reach, np.nan)
        now = self._skew + np.arange(sections)[:, np.newaxis] * _APART_NS
        free = np.full_like(now, -np.inf)
        if np.isfinite(self._free).any():
            into, of = self._following, (self._following - 1, self._begins_at)
            now[into], free[into] = self.begin[of] + _APART_NS, self._free[of] + _APART_NS
            ready[:k, into] = self.ready[of][..., :k].transpose(2, 0, 1) + _APART_NS
            start[:k, into] = self.start[of][..., :k].transpose(2, 0, 1) + _APART_NS
        for step in range(steps):
            self.begin[:, step], self._free[:, step] = now, free
            for operation in range(step * positions, (step + 1) * positions):
                now = now + to_reach[operation]
                reach[operation] = now
                ahead = operation + k
                if ahead < len(ready):
                    last = self._rendezvous.last_issue_at(ahead % positions, now)
                    start[ahead] = np.maximum(last, free)
                    ready[ahead] = start[ahead] + on_channel[ahead]
                    done = np.fmax.reduce(ready[ahead], axis=1, keepdims=True) if self._serial else ready[ahead]
                    free = np.fmax(free, done)
                now = now + to_wait[operation]
                wait_begin[operation] = now
                there = ready[operation]
                now = np.where(there > now, there + self._wake[operation], now + passed)
                wait_end[operation] = now
            now = now + tail[:, step]
            self.end[:, step] = now
            now = (now.max(axis=1, keepdims=True) if self._workload.meets else now) + self._gap[:, step]

        def by_position(instants: _Float) -> _Float:
            return instants.reshape(steps, positions, *now.shape).transpose(2, 0, 3, 1)

        self.reach, self.wait_begin, self.wait_end = map(by_position, (reach, wait_begin, wait_end))
        self.start, self.ready = by_position(start), by_position(ready)


def _by_operation(column: _Float) -> _Float:
    """Return ``[section, step, rank, position]`` as ``[step and position, section, rank]``."""
    return np.ascontiguousarray(column.transpose(1, 3, 0, 2)).reshape(-1, column.shape[0], column.shape[2])
