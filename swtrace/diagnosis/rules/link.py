"""Ranks that receive or send transfers slowly, compared with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swtrace import units
from swtrace.diagnosis.case import Case
from swtrace.diagnosis.finding import HIDDEN_BELOW, WORTH, Finding, Level
from swtrace.diagnosis.rule import STALLS, About, Needs, Rule
from swtrace.ledger.facts import StepFacts
from swtrace.ledger.planning.repair import Part, Repair, Saving, delayed_by
from swtrace.units import milliseconds, ratio

_Float = npt.NDArray[np.float64]

_LONGER = 0.25
"""Transfers must take longer by this share, on average over the steps ..."""
_LONGER_IF_LATER, _ALIKE = 1.5, 0.25
"""... or by this share, if whether the receiver itself issues last differs by more than this: over gloo, a transfer
takes about twice as long if its receiver issues last. And they must take longer ..."""
_NOTABLE, _OFTEN = 0.15, 0.1
"""... and by this share in so many of them: a single slow step is no pattern."""
_MOST = 10.0
"""Slower steps count as this slow, so that a single one is no average."""
_HARMFUL = 0.05
"""A finding is bad if a repair probably saves this share of step time."""
_SURE = 4.0
"""Standard errors by which they must take longer. Of equal ranks, either may take longer by chance."""
_EFFECTS = (*STALLS, "channel_bound", "channel_tight", "late_issue")
_FEWEST_STEPS, _FEWEST_TRANSFERS = 8, 16
_BLOCKS = 8
"""Means of so many blocks of steps say how much the average varies."""


class SlowLink(Rule):
    """The ranks to which transfers take longer than the same ones to the other ranks."""

    kinds = ("slow_link",)
    about = About.CAUSE
    needs = Needs.STALLS
    explains = (*_EFFECTS, "slow_source")

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about all such ranks."""
        moved = _Moved.of(case)
        if moved is None or not case.facts.lockstep:
            return
        group = np.arange(moved.ranks)
        source, rendezvous = moved.source, case.facts.ranks[0].info.rendezvous
        suspects = _suspects(moved.by_source.transpose(0, 2, 1))
        late = delayed_by(np.isin(group, suspects), rendezvous, source)
        alike = _mean_of(np.where(late, np.nan, moved.moving), (1,), (1, 2))
        slow = moved.slow(suspects, alike, lambda rank: np.s_[:, rank])
        if not slow:
            return
        numbers = case.global_ranks(*(each.rank for each in slow))
        named = units.listed("rank", [case.facts.named(number) for number in numbers])
        if moved.ranks == 2:  # noqa: PLR2004 - the only other direction
            (other,) = case.global_ranks(1 - slow[0].rank)
            named, than = f"rank {case.facts.named(other)} to {named}", "in the other direction"
            what = f"Transfers from {named}"
        else:
            what, than = f"Transfers to {named}", "the same ones to the other ranks"
        advice = (
            "Check that rank's network: link speed and errors (`ethtool`, `ip -s link`), the adapter's NUMA node, "
            "other traffic. On one host, check what else uses its memory and cores."
        )
        yield _finding(case, "slow_link", Part.LINK, slow, what, than, advice)


class SlowSource(Rule):
    """The ranks from which transfers take longer than from the other ranks."""

    kinds = ("slow_source",)
    about = About.CAUSE
    needs = Needs.STALLS
    explains = (*_EFFECTS, "slow_link")

    def find(self, case: Case) -> Iterator[Finding]:
        """Yield one finding about all such ranks."""
        moved = _Moved.of(case)
        if moved is None or moved.ranks <= 2:  # noqa: PLR2004 - of two ranks, what one sends is what the other receives
            return
        suspects = _suspects(moved.by_source)
        alike = _mean_of(np.where(np.isin(moved.source, suspects), np.nan, moved.moving), (2,), (1, 2))
        slow = moved.slow(suspects, alike, lambda rank: np.s_[:, :, moved.source == rank])
        if not slow:
            return
        named = units.listed(
            "rank", [case.facts.named(number) for number in case.global_ranks(*(e.rank for e in slow))]
        )
        advice = (
            "Check how that rank sends: link speed and errors (`ethtool`, `ip -s link`), the adapter's NUMA node, "
            "other traffic; where its weights lie; whether it has a core to send with."
        )
        yield _finding(
            case, "slow_source", Part.SOURCE, slow, f"Transfers from {named}", "from the other ranks", advice
        )


@dataclass(frozen=True, slots=True)
class _Slow:
    """A rank whose transfers take longer."""

    rank: int
    longer: _Float
    """``[step]``: by how much, as a share."""
    steps: list[StepFacts]
    took_ns: float
    """Mean of a transfer, ..."""
    alike_ns: float
    """... and of those to compare with."""
    transfers: int

    @property
    def errors(self) -> float:
        """How many standard errors they take longer, in all steps or in the last ones, as it may have just begun."""
        found = []
        for count in (len(self.longer) // part for part in (1, 2, 4)):
            if count >= _FEWEST_STEPS:
                means = [block.mean() for block in np.array_split(self.longer[-count:], min(_BLOCKS, count))]
                error = float(np.std(means, ddof=1)) / math.sqrt(len(means))
                found.append(float(np.mean(means)) / max(1e-9, error))
        return max(found)

    @property
    def confidence(self) -> float:
        """How sure it is that they take longer."""
        return min(0.999, 0.5 * (1 + math.erf(self.errors / math.sqrt(2))))


@dataclass(frozen=True, slots=True)
class _Moved:
    """The transfers of some steps."""

    steps: list[StepFacts]
    moving: _Float
    """``[step, rank, position]``; NaN where unknown, and where the rank receives nothing."""
    source: npt.NDArray[np.int64]
    """``[position]``"""
    bound: _Float
    """``[step, rank, position]``: largest error of these times by the alignment of clocks."""
    receiver_last: npt.NDArray[np.bool_]
    """``[step, rank, position]``: the receiver issued last."""

    @classmethod
    def of(cls, case: Case) -> _Moved | None:
        """Return the transfers of the regular steps; None if they are unknown or too few."""
        steps = [step for step in case.regular if (step.attributed & step.receiver).any()]
        if len(steps) < _FEWEST_STEPS:
            return None
        known = np.array([step.attributed & step.receiver for step in steps])
        moving = np.where(known, np.array([step.transfer_ns for step in steps], np.float64), np.nan)
        bound = np.array([step.transfer_bound_ns for step in steps], np.float64)
        last = np.array([step.late_rank for step in steps]) == np.arange(moving.shape[1])[:, np.newaxis]
        return cls(steps, moving, np.asarray(steps[-1].source, np.int64), bound, last)

    @property
    def ranks(self) -> int:
        """Size of the group."""
        return int(self.moving.shape[1])

    @property
    def by_source(self) -> _Float:
        """``[step, rank, source]``: mean of the transfers to a rank from each source; NaN if there are none."""
        known = np.isfinite(self.moving)
        of = np.eye(self.ranks)[self.source]
        count = known.astype(np.float64) @ of
        return np.where(count, (np.where(known, self.moving, 0.0) @ of) / np.maximum(1, count), np.nan)

    def slow(self, suspects: list[int], alike: _Float, of: Callable[[int], tuple[slice | int, ...]]) -> list[_Slow]:
        """Return the suspects whose transfers take clearly longer than alike ones, the worst first.

        Args:
            suspects: Group ranks.
            alike: As ``moving``: what alike transfers of other ranks take. Not limited to what the own ones take, which
                would make own ones seem longer wherever times vary.
            of: Returns the index of a rank's own transfers.
        """
        found = []
        for rank in suspects:
            known = np.isfinite(self.moving) & np.isfinite(alike)
            took, others, bound = (
                np.where(known, each, 0.0)[of(rank)].reshape(len(alike), -1).sum(axis=1)
                for each in (self.moving, alike, self.bound)
            )
            ran = np.flatnonzero(others)
            transfers = int(known[of(rank)].sum())
            if transfers < _FEWEST_TRANSFERS or len(ran) < _FEWEST_STEPS:
                continue
            longer = np.clip((took[ran] - others[ran]) / others[ran].mean(), -_MOST, _MOST)
            steps = [self.steps[row] for row in ran]
            slow = _Slow(rank, longer, steps, took.sum() / transfers, others.sum() / transfers, transfers)
            if (
                longer.mean() >= self._least(known, of(rank))
                and slow.errors >= _SURE
                and took.sum() - others.sum() > bound.sum()
                and (longer >= _NOTABLE).mean() >= _OFTEN
            ):
                found.append(slow)
        return sorted(found, key=lambda slow: -float(slow.longer.mean()))

    def _least(self, known: npt.NDArray[np.bool_], own: tuple[slice | int, ...]) -> float:
        """Return by which share a rank's own transfers must take longer than the others'."""
        others = known.copy()
        others[own] = False
        if self.ranks == 2:  # noqa: PLR2004 - only the other direction, which is never quite alike
            return _LONGER_IF_LATER
        if not others.any():
            return _LONGER
        apart = self.receiver_last[own][known[own]].mean() - self.receiver_last[others].mean()
        return _LONGER if abs(apart) <= _ALIKE else _LONGER_IF_LATER


def _mean_of(moving: _Float, *over: tuple[int, ...]) -> _Float:
    """Return the means over the first axes over which any are known, for each transfer; NaN if none."""
    found = np.full(moving.shape, np.nan)
    for axes in over:
        count = np.isfinite(moving).sum(axis=axes, keepdims=True)
        mean = np.where(count, np.nansum(moving, axis=axes, keepdims=True) / np.maximum(1, count), np.nan)
        found = np.where(np.isfinite(found), found, mean)
    return found


def _suspects(means: _Float) -> list[int]:
    """Return the ranks whose transfers seem to take longer than half of the others' do; fewer than half of all.

    Args:
        means: ``[step, like, rank]``: means of transfers. Those that are alike, but for the rank, can be compared.
    """
    ranks = means.shape[2]
    if ranks == 2:  # noqa: PLR2004 - nothing is alike, so the directions are compared
        means = np.nanmax(np.nan_to_num(means), axis=1, keepdims=True)
    ordered = np.sort(means, axis=2)
    count = np.isfinite(means).sum(axis=2, keepdims=True)
    middle = np.take_along_axis(ordered, np.maximum(0, count - 1) // 2, axis=2)
    known = np.isfinite(means)
    took = np.where(known, means, 0.0).sum(axis=1)
    others = np.where(known, middle, 0.0).sum(axis=1)
    longer = np.minimum(_MOST, took / np.maximum(1.0, others) - 1).mean(axis=0)
    order = [int(rank) for rank in np.argsort(-longer) if longer[rank] >= _NOTABLE]
    return order[: max(1, (ranks - 1) // 2)]


def _finding(case: Case, kind: str, part: Part, slow: list[_Slow], what: str, than: str, advice: str) -> Finding:
    worst, numbers = slow[0], case.global_ranks(*(each.rank for each in slow))
    since_step, since_ns = case.since(worst.steps, worst.longer)
    repair = Repair(part, tuple(sorted(each.rank for each in slow)))
    saving = case.saving(repair, since_step)
    often = float((worst.longer >= _NOTABLE).mean())
    when = "" if often > 1 - _OFTEN else f" in {ratio(often)} of the steps"
    level = _level(case, saving)
    factor = 1 + float(worst.longer.mean())
    hides = " They hide all the same." if level is Level.NOTE else ""
    return Finding(
        kind,
        level,
        f"{what} take {'' if len(slow) == 1 else 'up to '}{factor:.1f} times as long as {than}{when}: "
        f"{milliseconds(worst.took_ns)} instead of {milliseconds(worst.alike_ns)} on average.{hides}",
        {"times": factor, "transfer_ns": worst.took_ns, "others_transfer_ns": worst.alike_ns, "often": often},
        ranks=numbers,
        advice=advice,
        confidence=worst.confidence,
        since_ns=since_ns,
        since_step=since_step,
        evidence=tuple(
            f"Rank {case.facts.named(number)}: {milliseconds(each.took_ns)} per transfer, and {than} "
            f"{milliseconds(each.alike_ns)} (mean of {each.transfers:,} transfers in the last "
            f"{units.counted(len(each.steps), 'step')})."
            for number, each in zip(numbers, slow, strict=True)
        ),
        repair=repair,
        saving=saving,
    )


def _level(case: Case, saving: Saving | None) -> Level:
    """Return the level by what a repair saves; if this is unknown, by how much the ranks stall."""
    if saving is None:
        ratios = [rank.recent.stall_ratio or 0.0 for rank in case.facts.ranks]
        return Level.WARNING if max(ratios) >= HIDDEN_BELOW else Level.NOTE
    if saving.low < WORTH:  # no two links are equal
        return Level.NOTE
    return Level.BAD if saving.share >= _HARMFUL else Level.WARNING
