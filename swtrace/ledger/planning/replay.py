"""Replay measured steps under other settings.

A shared layer's transfer is issued at the reach ``k`` shared layers earlier, and then ::

    start    = max(last issue, end of the transfer before on the channel)
    ready    = start + time on the channel
    wait end = ready + wake, if the rank waits for it, else wait begin

Compute between these instants is that of the curves (:mod:`~swtrace.ledger.planning.workload`). It takes longer while
transfers of the rank are under way, and when they are depends on how long it takes. So the replay runs a few times,
each time with the contention that follows from the run before.

Steps are replayed in sections at once, each behind :data:`WARM_UP` steps that do not count, because the transfers of a
section's first layers were issued before it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace.ledger.channel import SERIAL
from swtrace.ledger.planning.contention import Busy, Contention, meanwhile, senders
from swtrace.ledger.planning.workload import Workload
from swtrace.ledger.rendezvous import Rendezvous

_Float = npt.NDArray[np.float64]

WARM_UP = 3
_SECTION = 13
"""Steps of a section that count."""
_APART_NS = 1e15
"""Between the begins of two sections, so that all of them can be on one clock."""
_ROUNDS = 3
"""Runs until contention and instants agree."""


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


@dataclass(frozen=True, slots=True)
class Replayed:
    """Replayed steps, in ns; ``[step, rank]``."""

    step_ns: _Float
    stall_ns: _Float
    slack_ns: _Float
    waits: int
    """Receivers' waits of all replayed steps."""


def replay(workload: Workload, settings: Settings) -> Replayed:
    """Replay the steps."""
    rows = _sections(workload.steps)
    places = np.array([*settings.shared, *np.add(settings.shared, workload.linear_at), workload.knots[-1]])
    to = workload.compute_to(places)[rows]
    positions = len(settings.shared)
    reach_at, linear_at, end_at = to[..., :positions], to[..., positions:-1], to[..., -1]
    previous = np.concatenate((np.zeros_like(reach_at[..., :1]), linear_at[..., :-1]), axis=-1)
    before, after = reach_at - previous, linear_at - reach_at + settings.overhead_ns
    tail = end_at - (linear_at[..., -1] if positions else 0.0)
    run = _Run(workload, settings, rows)
    contention = settings.contention
    slows = contention.compute[:, np.newaxis]
    slower = [np.zeros_like(before), np.zeros_like(after), np.zeros_like(tail)]
    moving, sending = run.moving, senders(settings.source, settings.rendezvous)
    for turn in range(_ROUNDS if positions and contention.any else 1):
        if turn:
            busy, stretches = Busy.of(run.start, run.ready, sending, workload.ranks), run.stretches
            slower = [slows * busy.within(*stretch) for stretch in stretches]
            slower[2] = slower[2][..., 0]
            moving = run.moving * contention.stretch(*meanwhile(run.start, run.ready, stretches))
        run.go(before + slower[0], after + slower[1], tail + slower[2], moving)
    counted = run.counted
    return Replayed(
        step_ns=(run.end - run.begin)[counted],
        stall_ns=run.stall.sum(axis=-1)[counted],
        slack_ns=run.slack.sum(axis=-1)[counted],
        waits=int(np.isfinite(settings.moving[rows][counted]).sum()),
    )


def _sections(steps: int) -> npt.NDArray[np.int64]:
    """Return the steps of each section, ``[section, step]``; sections have equal lengths, and may overlap."""
    length = min(steps, WARM_UP + _SECTION)
    count = max(1, -(-(steps - WARM_UP) // _SECTION))
    begins = np.minimum(np.arange(count) * _SECTION, steps - length)
    return np.asarray(begins[:, np.newaxis] + np.arange(length), np.int64)


class _Run:
    """One run through all sections. Instants are ``[section, step, rank]``, with positions last where there are any."""

    def __init__(self, workload: Workload, settings: Settings, rows: npt.NDArray[np.int64]) -> None:
        self._workload, self._settings = workload, settings
        self._skew, self._gap, self.moving = workload.skew[rows[:, 0]], workload.gap[rows], settings.moving[rows]
        self._rendezvous = Rendezvous(settings.rendezvous, len(workload.ranks), settings.source)
        self._serial = settings.queue == SERIAL
        shape = self.moving.shape
        wake = workload.wake
        # Wakes are drawn in a fixed order: every replay of the same waits has the same ones.
        drawn = np.random.default_rng(0).choice(wake, size=shape) if wake.size else np.zeros(shape)
        self._wake = drawn
        self.reach, self.wait_begin, self.wait_end, self.stall, self.slack = (np.zeros(shape) for _ in range(5))
        self.start, self.ready = np.full(shape, np.nan), np.full(shape, np.nan)
        self.begin, self.end = np.zeros(shape[:-1]), np.zeros(shape[:-1])
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
        sections, steps, ranks, positions = moving.shape
        k = self._settings.prefetch_step
        passed = self._workload.passed
        now = self._skew + np.arange(sections)[:, np.newaxis] * _APART_NS
        free = np.full((sections, ranks), -np.inf)
        for step in range(steps):
            self.begin[:, step] = now
            for position in range(positions):
                now = now + before[:, step, :, position]
                self.reach[:, step, :, position] = now
                ahead, target = divmod(step * positions + position + k, positions)
                if ahead < steps:
                    last = self._rendezvous.last_issue_at(target, now)
                    start = np.maximum(last, free)
                    ready = start + moving[:, ahead, :, target]
                    self.start[:, ahead, :, target], self.ready[:, ahead, :, target] = start, ready
                    free = np.fmax(free, np.fmax.reduce(ready, axis=1, keepdims=True) if self._serial else ready)
                now = now + after[:, step, :, position]
                self.wait_begin[:, step, :, position] = now
                late = np.nan_to_num(self.ready[:, step, :, position] - now, nan=0.0)
                held = late > 0
                self.stall[:, step, :, position] = np.where(held, late, 0.0)
                self.slack[:, step, :, position] = np.where(held, 0.0, -late)
                now = now + np.where(held, late + self._wake[:, step, :, position], passed)
                self.wait_end[:, step, :, position] = now
            now = now + tail[:, step]
            self.end[:, step] = now
            now = now + self._gap[:, step]
