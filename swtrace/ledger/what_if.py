"""The effect of another prefetch step: a replay of measured steps with only the prefetch step changed.

These stay as measured, per rank: the compute before each reach and between reach and wait, the gap between steps, the
cost of each wait beside its stall, each receiver's time on the channel, and which delivery it queues behind
(:mod:`~swtrace.ledger.channel`). In a pull series, a rank is replayed on its own, with its own copier. In the replay, a
layer's broadcast is issued at the reach ``k`` positions earlier, and then ::

    ready    = max(last issue, before) + time on the channel
    wait end = max(wait begin, ready) + cost of the wait

On an ideal channel this is exact. On a real one it is a model, which assumes that compute does not change with traffic.
So a replay with the configured ``k`` is compared with the measurement, and only a model that :attr:`WhatIf.fits` is
used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace.ledger.channel import SERIAL
from swtrace.ledger.facts import StepFacts
from swtrace.ledger.rendezvous import Rendezvous
from swtrace.trace.schema import TransferFlag

_Int = npt.NDArray[np.int64]

FIT_RATIO = 0.02
"""A replay with the configured prefetch step fits if its stall ratio is this close to the measured one ..."""
FIT_SHARE = 0.15
"""... or within this share of it."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """Replayed steps; arrays are ``[step, rank]``."""

    prefetch_step: int
    stall_ns: _Int
    slack_ns: _Int
    step_ns: _Int
    """Begin to end. The times before the arrival and after the last wait stay as measured."""
    waits: int
    """Receivers' waits of all replayed steps."""

    @property
    def stall_ratio(self) -> float:
        """Stall ratio of the most stalled rank."""
        return float((self.stall_ns.sum(axis=0) / np.maximum(1, self.step_ns.sum(axis=0))).max())

    @property
    def stall_per_step_ns(self) -> float:
        """Mean stall per step of the most stalled rank."""
        return float(self.stall_ns.mean(axis=0).max())

    @property
    def slack_per_wait_ns(self) -> float:
        """Mean slack per wait."""
        return float(self.slack_ns.sum() / max(1, self.waits))


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The same steps, replayed with the configured prefetch step and with another one."""

    measured_stall_ratio: float
    """Of the most stalled rank, over the replayed steps."""
    real: Rerun
    other: Rerun

    @property
    def fits(self) -> bool:
        """Whether the model reproduces the measurement well enough to be used."""
        error = abs(self.real.stall_ratio - self.measured_stall_ratio)
        return error <= max(FIT_RATIO, FIT_SHARE * self.measured_stall_ratio)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Consecutive steps as durations; ``[step, rank, position]`` unless said otherwise."""

    gap: _Int
    """``[step, rank]``: last wait end of the previous step to the arrival; the arrival itself for the first step."""
    before_reach: _Int
    after_reach: _Int
    moving: _Int
    wait_cost: _Int
    receiver: npt.NDArray[np.bool_]
    rendezvous: Rendezvous
    behind: _Int | None
    """How many operations back the delivery is that each one queues behind; 0 if there is none. None: operations move
    one at a time."""
    stall: _Int
    length: _Int
    """``[step, rank]``: begin to end."""
    besides: _Int
    """``[step, rank]``: the part of the length before the arrival and after the last wait."""


def what_if(steps: Sequence[StepFacts], prefetch_step: int, *, most: int = 12) -> WhatIf | None:
    """Replay the newest consecutive steps with another prefetch step.

    Args:
        steps: Finished steps of one series, oldest first. Of a pull series, only those of the rank that ended the last
            one are replayed.
        prefetch_step: The prefetch step to try.
        most: Replay at most this many steps.

    Returns:
        None if fewer than four consecutive steps are complete with every transfer attributed, or if the prefetch step
        is larger than the number of layers minus 2.
    """
    run = _consecutive(steps)[-(most + 2) :]
    info = next((info for step in run for info in step.infos if info is not None), None)
    if len(run) < 4 or info is None or prefetch_step > info.num_layers - 2:  # noqa: PLR2004 - two warm up, one looks ahead
        return None
    rendezvous = Rendezvous(info.rendezvous, len(run[0].ranks), run[0].source.astype(np.int64))
    measured = _measure(run, info.prefetch_step, rendezvous, serial=info.queue == SERIAL)
    # The first step only warms up, because its first broadcasts were issued before the replay begins.
    stall, length = measured.stall[1:].sum(axis=0), np.maximum(1, measured.length[1:].sum(axis=0))
    return WhatIf(
        measured_stall_ratio=float((stall / length).max()),
        real=_replay(measured, info.prefetch_step),
        other=_replay(measured, prefetch_step),
    )


def _consecutive(steps: Sequence[StepFacts]) -> list[StepFacts]:
    """Return the newest run of consecutive steps that have everything a replay needs."""
    run: list[StepFacts] = []
    for step in reversed(steps):
        if run and step.of_rank != run[-1].of_rank:
            continue
        if run and step.step != run[-1].step - 1:
            break
        usable = (
            step.complete
            and step.path is not None
            and bool((step.attributed | ~step.receiver).all())
            and not (step.flags & TransferFlag.PREFILLED).any()
        )
        if not usable:
            if run:
                break
            continue
        run.append(step)
    return run[::-1]


def _measure(run: list[StepFacts], k: int, rendezvous: Rendezvous, *, serial: bool) -> _Measured:
    def stack(name: str, rows: list[StepFacts] = run) -> _Int:
        return np.stack([getattr(step, name) for step in rows]).astype(np.int64)

    issued, begin, end, ready = (stack(name) for name in ("issued_ns", "wait_begin_ns", "wait_end_ns", "ready_ns"))
    receiver = np.stack([step.receiver for step in run])
    arrival = stack("arrival_ns")
    # A reach issues the broadcast k ahead. The last k broadcasts of a step belong to the next step.
    reach = np.concatenate((issued[:-1, :, k:], issued[1:, :, :k]), axis=2)
    issued, begin, end, ready, receiver = issued[:-1], begin[:-1], end[:-1], ready[:-1], receiver[:-1]
    before = np.concatenate((arrival[:-1, :, np.newaxis], end[:, :, :-1]), axis=2)
    stall = stack("stall_ns")[:-1]
    gap = arrival[:-1].copy()
    gap[1:] -= end[:-1, :, -1]
    gap[0] -= arrival[0].min()
    length = stack("duration_ns")[:-1]
    return _Measured(
        gap=gap,
        before_reach=reach - before,
        after_reach=begin - reach,
        moving=stack("transfer_ns")[:-1],
        wait_cost=np.where(receiver, stack("wake_ns")[:-1], end - begin),
        receiver=receiver,
        rendezvous=rendezvous,
        behind=None if serial else _behind(np.where(receiver, ready, 0)),
        stall=stall.sum(axis=2),
        length=length,
        besides=length - (end[:, :, -1] - arrival[:-1]),
    )


def _behind(ready: _Int) -> _Int:
    """Return how many operations back the last delivery is that was ready before each one, on the same receiver."""
    steps, ranks, layers = ready.shape
    by_operation = ready.transpose(0, 2, 1).reshape(-1, ranks)
    behind = np.zeros_like(by_operation)
    for back in range(1, min(layers, len(by_operation) - 1) + 1):
        earlier, this = by_operation[:-back], by_operation[back:]
        found = (behind[back:] == 0) & (earlier > 0) & (this > 0) & (earlier <= this)
        if back > 1 and not found.any():
            break
        behind[back:][found] = back
    return behind.reshape(steps, layers, ranks).transpose(0, 2, 1)


def _replay(measured: _Measured, k: int) -> Rerun:
    steps, ranks, layers = measured.receiver.shape
    total = steps * layers
    ready = np.full((total + k, ranks), np.iinfo(np.int64).min // 2, np.int64)  # the first k are ready
    now = np.zeros(ranks, np.int64)
    free_at = 0
    stall = np.zeros((steps, ranks), np.int64)
    slack = np.zeros((steps, ranks), np.int64)
    length = np.zeros((steps, ranks), np.int64)
    for step in range(steps):
        now += measured.gap[step]
        arrival = now.copy()
        for position in range(layers):
            now += measured.before_reach[step, :, position]
            ahead = step * layers + position + k
            if ahead < total:
                ahead_step, ahead_position = divmod(ahead, layers)
                receiver = measured.receiver[ahead_step, :, ahead_position]
                last = measured.rendezvous.last_issue_at(ahead_position, now)
                before: _Int | int = free_at
                if measured.behind is not None:
                    back = measured.behind[ahead_step, :, ahead_position]
                    before = np.where(back > 0, ready[ahead - back, np.arange(ranks)], 0)
                ready[ahead] = np.maximum(last, before) + measured.moving[ahead_step, :, ahead_position]
                free_at = max(free_at, int(ready[ahead][receiver].max(initial=0)))
            now += measured.after_reach[step, :, position]
            receiver = measured.receiver[step, :, position]
            there = ready[step * layers + position]
            known = receiver & (there > 0)
            held = np.where(known, np.maximum(0, there - now), 0)
            slack[step] += np.where(known, np.maximum(0, now - there), 0)
            stall[step] += held
            now += held + measured.wait_cost[step, :, position]
        length[step] = now - arrival + measured.besides[step]
    return Rerun(
        prefetch_step=k,
        stall_ns=stall[1:],
        slack_ns=slack[1:],
        step_ns=length[1:],
        waits=int(measured.receiver[1:].sum()),
    )
