"""What repairing a trouble would save: the recent steps, replayed without it.

The planner (:mod:`~swtrace.ledger.planning.planner`) replays the steps twice at once: as they were, and with one thing
changed. The ranks in trouble then compute, enter or transfer like the others. So the result holds whatever the pattern
of the trouble: a constant one, one in every seventh step, or one in some layers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.planner import NORMAL
from swtrace.ledger.planning.replay import Settings
from swtrace.ledger.planning.shared import Otherwise, SharedPlanner, on_device
from swtrace.ledger.planning.workload import Workload
from swtrace.ledger.rendezvous import Rendezvous

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]

MOST_MISSED = 0.1
"""If the replay of the run itself misses its step time by more than this share, no saving is stated."""
_SHORTEST = 0.1
"""Share of a step's compute that remains at least when delays are taken out."""
_DOUBT = 0.1
"""Standard deviation of a saving, as a share of it ..."""
_DOUBT_OF_STEP = 0.005
"""... and of step time, on top."""


class Part(StrEnum):
    """What is repaired."""

    COMPUTE = "compute"
    """These ranks compute like the others."""
    DELAY = "delay"
    """They never wait for a core."""
    ENTRY = "entry"
    """They enter steps with the others."""
    LINK = "link"
    """Transfers to them take what transfers to the others take."""
    SOURCE = "source"
    """Transfers from them take what transfers from the others take."""
    CHANNEL = "channel"
    """No transfer takes time, whoever receives it: more than any faster transport can give."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What to repair, and on which ranks."""

    part: Part
    ranks: tuple[int, ...] = ()
    """Group ranks; all if empty."""


@dataclass(frozen=True, slots=True)
class Saving:
    """What a repair saves, as shares of the mean step time of the slowest rank; an interval for 90 %."""

    share: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return plain values."""
        return asdict(self)


def saving(steps: Sequence[StepFacts], repair: Repair) -> Saving | None:
    """Return what a repair would have saved in these steps, see :func:`savings`."""
    return savings(steps, [repair])[0]


def savings(steps: Sequence[StepFacts], repairs: Sequence[Repair]) -> list[Saving | None]:
    """Return what each repair alone would have saved.

    In a pull series, whose ranks do not wait for each other, it is that of the rank that gains most.

    Args:
        steps: Steps of one series, oldest first, since the trouble began.
        repairs: What to repair.

    Returns:
        None where it is unknown: there are not enough consecutive steps that are complete
        (:meth:`~swtrace.ledger.planning.shared.SharedPlanner.of`), the replay misses the run itself, or no other rank
        shows how long something takes on a healthy one.
    """
    planner = SharedPlanner.of(steps)
    found: list[list[Saving]] = [[] for _ in repairs]
    for group in planner.otherwise([_Mended(repair) for repair in repairs]) if planner is not None else ():
        for number, changed_ns in enumerate(group.changed_ns):
            saved = None if changed_ns is None else _saving(group, changed_ns)
            found[number] += [] if saved is None else [saved]
    return [max(each, key=lambda one: one.share, default=None) for each in found]


def _saving(found: Otherwise, changed_ns: _Float) -> Saving | None:
    """Return what a repair saved ranks that run their steps together."""
    measured = found.measured_ns.mean(axis=0).max()
    missed = float(np.abs(found.replayed_ns.mean(axis=1).max(axis=1) / measured - 1).max())
    if missed > MOST_MISSED:
        return None
    shares = np.maximum(0.0, 1 - changed_ns.mean(axis=1).max(axis=1) / measured)
    share = float(shares.mean())
    spread = NORMAL * math.hypot(_DOUBT * share, _DOUBT_OF_STEP, missed * share, float(np.ptp(shares)) / 2)
    return Saving(share, max(0.0, share - spread), min(1.0, share + spread))


@dataclass(frozen=True, slots=True)
class _Mended:
    """A repair of steps that are replayed."""

    repair: Repair

    def __call__(self, workload: Workload, settings: Settings) -> tuple[Workload, Settings] | None:
        """Return what to replay; None if the steps do not show what the repair gives."""
        part, ranks = self.repair.part, self.repair.ranks or workload.ranks
        mended, from_them = np.isin(workload.ranks, ranks), np.isin(settings.source, ranks)
        changed = from_them if part is Part.SOURCE else mended
        alone = part not in {Part.CHANNEL, Part.DELAY} and changed.all()
        if alone or not (changed.any() or part is Part.CHANNEL) or (part is Part.DELAY and on_device(workload.info)):
            return None
        match part:
            case Part.COMPUTE:
                return _computing_alike(workload, settings, mended)
            case Part.DELAY:
                return _undelayed(workload, settings, mended)
            case Part.ENTRY:
                return _entering_together(workload, mended), settings
            case Part.LINK:
                late = delayed_by(mended, settings.rendezvous, settings.source)
                moving = received_alike(settings.moving, late)
            case Part.SOURCE:
                moving = sent_alike(settings.moving, from_them)
            case Part.CHANNEL:
                moving = 0.0 * settings.moving
        return workload, replace(settings, moving=moving)


def _computing_alike(workload: Workload, settings: Settings, mended: _Bool) -> tuple[Workload, Settings]:
    """Let ranks compute like the others in each stretch, and be slowed down by transfers like the others."""
    parts = _at_most_others(workload.parts, mended)
    contention = np.broadcast_to(settings.contention.compute, workload.step_ns.shape)
    alike = replace(settings.contention, compute=_at_most_others(contention, mended))
    return _with_parts(workload, parts), replace(settings, contention=alike)


def _undelayed(workload: Workload, settings: Settings, mended: _Bool) -> tuple[Workload, Settings]:
    """Take each step's delay out of its compute, and let transfers slow none of it down."""
    parts = workload.parts
    whole = parts.sum(axis=2)
    left = np.maximum(_SHORTEST, 1 - workload.delay / np.maximum(1.0, whole))
    shorter = np.where(mended, left, 1.0)[:, :, np.newaxis] * parts
    contention = np.where(mended, 0.0, np.broadcast_to(settings.contention.compute, whole.shape))
    return _with_parts(workload, shorter), replace(
        settings, contention=replace(settings.contention, compute=contention)
    )


def _entering_together(workload: Workload, mended: _Bool) -> Workload:
    """Let ranks begin steps, and arrive at their first shared layer, no later than the others."""
    parts = workload.parts
    parts[:, :, :1] = _at_most_others(parts[:, :, :1], mended)
    return replace(
        _with_parts(workload, parts),
        skew=_at_most_others(workload.skew, mended),
        gap=_at_most_others(workload.gap, mended),
    )


def received_alike(moving: _Float, late: _Bool) -> _Float:
    """Return transfers, ``[step, rank, position]``, of which the late ones take what the same ones to others take.

    If a transfer has no other receiver, all that are not late in the step say what it takes.

    Args:
        moving: Times on the channel; NaN where nothing is received.
        late: ``[rank, position]``, see :func:`delayed_by`.
    """
    others = np.where(late, np.nan, moving)
    return _at_most(moving, _median(others, (1,)), _median(others, (1, 2)), where=late)


def sent_alike(moving: _Float, late: _Bool) -> _Float:
    """Return transfers of which the late ones take what others to the same receiver take, or else any in the step.

    Args:
        moving: Times on the channel, ``[step, rank, position]``; NaN where nothing is received.
        late: ``[position]``: sent by a rank that sends late.
    """
    others = np.where(late, np.nan, moving)
    return _at_most(moving, _median(others, (2,)), _median(others, (1, 2)), where=late)


def delayed_by(receivers: _Bool, rendezvous: str, source: npt.NDArray[np.int64]) -> _Bool:
    """Return the transfers that are late if those to some ranks are, ``[rank, position]`` from ``[rank]``.

    In a tree, a rank passes bytes on, and is done when its receivers are.
    """
    return Rendezvous(rendezvous, len(receivers), source).passes(receivers)


def _with_parts(workload: Workload, parts: _Float) -> Workload:
    first = workload.curve[:, :, :1]
    return replace(workload, curve=np.concatenate((first, first + parts.cumsum(axis=2)), axis=2))


def _at_most_others(values: _Float, mended: _Bool) -> _Float:
    """Limit some ranks' values, ``[step, rank, ...]``, to the median of the other ranks'."""
    others = np.median(values[:, ~mended], axis=1, keepdims=True)
    return np.where(mended.reshape(-1, *[1] * (values.ndim - 2)), np.minimum(values, others), values)


def _at_most(values: _Float, *limits: _Float, where: _Bool) -> _Float:
    """Limit some values to the first limit that is known."""
    limit = limits[0]
    for other in limits[1:]:
        limit = np.where(np.isnan(limit), other, limit)
    return np.where(where & ~np.isnan(values), np.fmin(values, limit), values)


def _median(values: _Float, axes: tuple[int, ...]) -> _Float:
    """Return the median of values that are not NaN, with axes of length 1; NaN if there are none."""
    kept = [axis for axis in range(values.ndim) if axis not in axes]
    ordered = np.sort(values.transpose(*kept, *axes).reshape(*(values.shape[axis] for axis in kept), -1), axis=-1)
    count = np.isfinite(ordered).sum(axis=-1, keepdims=True)
    middle = np.maximum(0, np.concatenate(((count - 1) // 2, count // 2 - (count == 0)), axis=-1))
    return np.expand_dims(np.take_along_axis(ordered, middle, axis=-1).mean(axis=-1), axes)
