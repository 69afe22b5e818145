"""Name the ranks that compute longer than the others of their group: the stragglers.

A rank's *own compute* in a step is the step's duration without stall and wake. It is a difference of instants of one
clock, so ranks on several hosts can be compared. The test looks at the last steps of a series, up to
:data:`HISTORY_STEPS`, and asks for each rank: is its own compute higher than that of the others in the same steps?

*What is compared.* From each own compute, the step's median over the ranks is subtracted, because all ranks slow down
together when the batch grows. The result is clipped. The *reference* of a step is the mean of the ranks that are not
suspected. Ranks that are equal have equal distributions, however skewed, so the mean difference is then zero. A narrow
clip makes the test sensitive to a rank that is always slow, amid spikes of all ranks. A wide one keeps what a rank
loses in some steps only.

*How sure.* In windows of several lengths that end now, the mean difference beyond :data:`_TOLERATED` is divided by its
standard error, which is taken from the differences themselves. So heavy tails make the test less sensitive, but not
wrong. Successive steps are not independent: the variance is multiplied by the autocorrelation time that the whole
history shows, and the degrees of freedom are reduced accordingly. The ratio is converted to that of a normal
distribution (``sqrt(f ln(1 + t^2 / f))``, for *f* degrees of freedom), the *score*.

*Rare slow steps.* A rank that is slow in few steps has a large variance of its own. For such ranks, the number of slow
episodes is compared with that of the reference ranks. If the ranks are equal, each episode falls on any of them
with the same probability. If the slow steps have a common distance, this is improbable too, and counts.

*False alarms.* Looks that overlap are not independent, and neither are windows: about 10^5 to 10^6 independent ones
a day, at 50 steps per second. A normal variable exceeds :data:`LEAST_SCORE` with a probability of 1e-8, so at most 0.01
false names a day are expected if scores are normal. ``python -m benchmarks.stragglers healthy`` measures how often
lower limits are exceeded, for many kinds of noise, which shows how far the tail can be trusted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from swtrace.ledger.change import since
from swtrace.ledger.facts import Pattern, SeriesKey, StepFacts, Straggler
from swtrace.ledger.recent import own_ns, sums_of
from swtrace.trace.identity import RankKey
from swtrace.trace.schema import Phase

if TYPE_CHECKING:
    from swtrace.ledger.step import Steps

_Floats = npt.NDArray[np.float64]
_Int = npt.NDArray[np.int64]

HISTORY_STEPS = 512
"""The test looks back this many steps."""
LEAST_STEPS = 16
"""Fewer steps prove nothing."""
LEAST_SHARE = 0.025
"""A rank is named only if its mean excess is at least this share of the median step."""
_TOLERATED = 0.01
"""Equal ranks may differ by this share of the median step for good."""
LEAST_SCORE = 5.6
"""Least score. See the module's docstring for the rate of false alarms."""
LEAST_LOG_ODDS = math.log(1e-9)
"""Largest logarithm of the probability that equal ranks have such episodes."""
_PERSISTENT = 32
"""What passes within fewer steps is no straggler, once there are as many. Other processes take cores in bursts."""
_RECENT = 64
"""What is named must still be true in this many steps."""
_NARROW, _WIDE = 0.05, 1.0
"""Clips, as a share of the median step. The narrow one grows with the ranks' variation."""
_SPREAD = 3.0 * 1.4826
"""Median absolute deviations that the narrow clip leaves."""
_RESOLUTION = 0.001
"""Own compute varies at least by this share of the median step."""
_PERIODS = range(2, 33)
_REGULAR = math.log(1e-6)
"""Largest logarithm of the probability that episodes at random have a common distance."""
_TOGETHER_STEPS = 32
"""Ranks that became slow within so many steps are reported together."""


@dataclass(frozen=True, slots=True)
class OwnCompute:
    """Own compute of the ranks of a group in some steps, oldest first."""

    own_ns: _Int
    """``[step, rank]``"""
    step_ns: _Int
    """``[step]``: duration on the slowest rank."""
    step: _Int
    """``[step]``: its number."""
    begin_ns: _Int
    """``[step]``: when it began."""
    phase: npt.NDArray[np.uint8]
    """``[step]``: its common phase."""

    @classmethod
    def of(cls, steps: Steps) -> Self:
        """Return those of finished steps that can be compared: whole on all ranks, and none of them idle."""
        block = steps.block
        idle = block.phase == Phase.DUMMY
        rows = np.flatnonzero(steps.complete & ~steps.aborted & (idle.all(axis=1) | ~idle.any(axis=1)))
        phase = block.phase[rows]
        return cls(
            steps.own_ns[rows],
            steps.duration_ns[rows].max(axis=1),
            block.step[rows],
            block.begin_ns[rows].min(axis=1),
            np.where((phase == phase[:, :1]).all(axis=1), phase[:, 0], Phase.MIXED).astype(np.uint8),
        )

    @classmethod
    def of_facts(cls, steps: Iterable[StepFacts], ranks: int) -> Self:
        """Return the same, from the facts of steps of a group."""
        chosen = []
        for step in steps:
            idle = step.phase == Phase.DUMMY
            if step.complete and step.of_rank is None and not step.aborted and (idle.all() or not idle.any()):
                chosen.append(step)
        own = [own_ns(sums_of(step)) for step in chosen]
        return cls(
            np.array(own, np.int64).reshape(len(chosen), ranks),
            np.array([step.duration_ns.max() for step in chosen], np.int64),
            np.array([step.step for step in chosen], np.int64),
            np.array([step.begin_ns.min() for step in chosen], np.int64),
            np.array([step.common_phase for step in chosen], np.uint8),
        )

    @classmethod
    def joined(cls, several: Iterable[OwnCompute]) -> Self:
        """Return several in a row."""
        return cls(*(np.concatenate([getattr(each, field.name) for each in several]) for field in fields(cls)))

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.step)

    def take(self, rows: _Int | slice) -> OwnCompute:
        """Return some of the steps."""
        return OwnCompute(self.own_ns[rows], self.step_ns[rows], self.step[rows], self.begin_ns[rows], self.phase[rows])


@dataclass(frozen=True, slots=True)
class Suspect:
    """A rank that the test names, in some steps."""

    rank: int
    """Group rank."""
    score: float
    difference: _Floats
    """``[step]``: own compute minus the reference, in nanoseconds, not clipped."""
    steps: OwnCompute
    phase: Phase | None
    """The phase to which the steps were restricted."""
    window: int
    """Number of steps, up to the last one, in which it was found."""
    high_ns: float | None
    """Found by its episodes, which are steps with a larger difference; None if found by its mean."""


def suspects(steps: OwnCompute) -> tuple[Suspect, ...]:
    """Return the ranks that compute longer than the others, the worst first."""
    ranks = steps.own_ns.shape[1]
    if len(steps) < LEAST_STEPS or ranks < 2:  # noqa: PLR2004 - one rank cannot be slower
        return ()
    found: dict[int, Suspect] = {}
    for phase, chosen in _selections(steps):
        typical_ns = float(np.median(steps.step_ns[-_RECENT:]))
        share = len(chosen) / len(steps)
        for suspect in _among(chosen, phase, typical_ns, share):
            known = found.get(suspect.rank)
            if known is None:
                found[suspect.rank] = suspect
    return tuple(sorted(found.values(), key=lambda each: -float(each.difference[-each.window :].mean())))


def _selections(steps: OwnCompute) -> Iterator[tuple[Phase | None, OwnCompute]]:
    """Yield all steps, then those of each phase if there are several."""
    yield None, steps
    numbers, counts = np.unique(steps.phase, return_counts=True)
    if len(numbers) > 1:
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if count >= LEAST_STEPS and number in {Phase.PREFILL, Phase.DECODE}:
                yield Phase(number), steps.take(np.flatnonzero(steps.phase == number))


class _Differences:
    """Differences of the ranks' own compute in the steps of one selection, as shares of the median step."""

    def __init__(self, steps: OwnCompute, typical_ns: float) -> None:
        own = steps.own_ns / max(1.0, typical_ns)
        own -= np.median(own, axis=1, keepdims=True)
        self.raw: _Floats = own
        spread = float(np.median(np.abs(own - np.median(own, axis=0)))) * _SPREAD
        self.narrow = np.clip(own, -max(_NARROW, spread), max(_NARROW, spread))
        self.wide = np.clip(own, -_WIDE, _WIDE)
        self._spread = spread

    def high(self, least: float) -> float:
        """Return the difference above which a step is an episode."""
        return max(4.0 * least, 2.0 * self._spread)


def _among(steps: OwnCompute, phase: Phase | None, typical_ns: float, share: float) -> list[Suspect]:
    """Return the suspects of one selection.

    Args:
        steps: The steps.
        phase: Their phase.
        typical_ns: The median step.
        share: The share of the selected steps among all steps.
    """
    differences = _Differences(steps, typical_ns)
    least = LEAST_SHARE / share
    if not _worth_testing(differences, least):
        return []
    scores, windows = _scores(differences, least, set())
    slow = {int(rank) for rank in np.flatnonzero(scores >= LEAST_SCORE)}
    if slow:
        scores, windows = _scores(differences, least, slow)
        slow = {rank for rank in slow if scores[rank] >= LEAST_SCORE}
    rare = _episodes(differences, steps.step, least, slow)
    reference = [rank for rank in range(steps.own_ns.shape[1]) if rank not in slow and rank not in rare]
    raw = differences.raw * typical_ns
    base = np.median(raw[:, reference], axis=1)
    high_ns = differences.high(least) * typical_ns
    named = {rank: (float(scores[rank]), int(windows[rank]), None) for rank in slow}
    named_rare = {rank: (score, window, high_ns) for rank, (score, window) in rare.items()}
    return [
        Suspect(rank, score, raw[:, rank] - base, steps, phase, window, high)
        for rank, (score, window, high) in (named | named_rare).items()
    ]


def _worth_testing(differences: _Differences, least: float) -> bool:
    """Return whether any rank's mean differs enough from that of the others, in any window."""
    wide, count = differences.wide, len(differences.wide)
    for window in _windows(count):
        mean = wide[-window:].mean(axis=0)
        if mean.max() - mean.min() >= least:
            return True
    typical = np.median(differences.raw[-_RECENT:], axis=0)
    return bool(typical.max() - typical.min() >= least)


def _windows(count: int) -> list[int]:
    """Return the lengths of the windows that are tested, two for each power of two, and all steps."""
    powers = [1 << power for power in range(_PERSISTENT.bit_length() - 1, count.bit_length())]
    return [each for power in powers for each in (power, power * 3 // 2) if each < count] + [count]


def _reference(means: _Floats, named: set[int]) -> npt.NDArray[np.bool_]:
    """Return ``[rank]``: those that are not named; if none is, the lower half."""
    if named:
        reference = np.ones(len(means), np.bool_)
        reference[list(named)] = False
        return reference
    reference = np.zeros(len(means), np.bool_)
    reference[np.argsort(means)[: len(means) - len(means) // 2]] = True
    return reference


def _scores(differences: _Differences, least: float, named: set[int]) -> tuple[_Floats, _Int]:
    """Return the highest score of each rank over all windows and clips, and its window, ``[rank]``."""
    count, ranks = differences.raw.shape
    best, at = np.zeros(ranks), np.zeros(ranks, np.int64)
    for values, robust in ((differences.narrow, True), (differences.wide, False)):
        for window in _windows(count):
            last = values[-window:]
            means = last.mean(axis=0)
            reference = _reference(means, named)
            # The autocorrelation only lowers a score.
            candidates = np.flatnonzero(~reference & (means - means[reference].mean() > _TOLERATED))
            if not len(candidates):
                continue
            ahead = last[:, candidates] - last[:, reference].mean(axis=1, keepdims=True)
            candidates = candidates[_score(ahead, 1.0) >= max(LEAST_SCORE, best[candidates].min())]
            candidates = _still_slow(differences, values, candidates, reference, window, least, robust=robust)
            if not len(candidates):
                continue
            series = values[:, candidates] - values[:, reference].mean(axis=1, keepdims=True)
            score = _score(series[-window:], _autocorrelation_time(_without_change(series)))
            higher = score > best[candidates]
            best[candidates[higher]], at[candidates[higher]] = score[higher], window
    return best, at


def _still_slow(
    differences: _Differences,
    values: _Floats,
    candidates: _Int,
    reference: npt.NDArray[np.bool_],
    window: int,
    least: float,
    *,
    robust: bool,
) -> _Int:
    """Return the candidates whose excess is large enough in a window, and was so recently."""
    if not len(candidates):
        return candidates
    last = differences.raw[-window:] if robust else values[-window:]
    typical = np.median(last, axis=0) if robust else last.mean(axis=0)
    enough = typical - (np.median(typical[reference]) if robust else typical[reference].mean()) >= least
    if window > _RECENT:
        recent = values[-_RECENT:].mean(axis=0)
        enough &= recent - recent[reference].mean() >= least / 2
    return np.asarray(candidates[enough[candidates]], np.int64)


def _score(ahead: _Floats, time: _Floats | float) -> _Floats:
    """Return how many standard deviations the mean of differences is above what is tolerated, ``[candidate]``.

    Args:
        ahead: ``[step, candidate]``.
        time: Their autocorrelation time.
    """
    count = len(ahead)
    variance = ahead.var(axis=0, ddof=1) + _RESOLUTION**2
    t = np.maximum(0.0, ahead.mean(axis=0) - _TOLERATED) / np.sqrt(variance * time / count)
    freedom = np.maximum(0.5, count * 2.0 * time / (time * time + 1.0) - 1.0)
    return np.asarray(np.sqrt(freedom * np.log1p(t * t / freedom)), np.float64)


def _without_change(series: _Floats) -> _Floats:
    """Return values without their levels before and after the clearest change, ``[step, candidate]``."""
    count = len(series)
    if count < _RECENT:
        return np.asarray(series - series.mean(axis=0), np.float64)
    total = np.cumsum(series, axis=0)
    split = np.arange(1, count)[:, np.newaxis]
    weight = np.sqrt(split * (count - split) / count)
    change = np.abs((total[-1] - total[:-1]) / (count - split) - total[:-1] / split) * weight
    at = change.argmax(axis=0) + 1
    before = np.take_along_axis(total, at[np.newaxis] - 1, axis=0)[0]
    later = np.arange(count)[:, np.newaxis] >= at
    return np.asarray(series - np.where(later, (total[-1] - before) / (count - at), before / at), np.float64)


_DOUBT = 2.5
"""Standard errors that are added to the correlation of successive steps: few steps do not show how long fluctuations
last."""
_LAGS = ((1, 1), (2, 3), (4, 5), (8, 9), (16, 17))


def _autocorrelation_time(residual: _Floats) -> _Floats:
    """Return the autocorrelation time in steps, ``[candidate]``, at least 1.

    It is that of the slowest exponential decay that fits a significant correlation at some lag. For each lag above
    one, the smaller correlation of two neighbouring lags counts, because a period is no slow decay.
    """
    count = len(residual)
    variance = np.maximum((residual * residual).mean(axis=0), 1e-12)
    decay = np.zeros(residual.shape[1])
    for pair in _LAGS:
        if 4 * pair[1] > count:
            break
        at = np.array(
            [(residual[lag:] * residual[:-lag]).sum(axis=0) / (count - lag) / variance for lag in dict.fromkeys(pair)]
        ).min(axis=0)
        at += (1.0 + 4.0 * np.maximum(0.0, at)) / count
        if pair[1] == 1:
            at += _DOUBT / math.sqrt(count)
        significant = at > 2.0 / math.sqrt(count)
        upper = np.minimum(0.98, np.maximum(0.0, at)) ** (1.0 / pair[1])
        decay = np.where(significant, np.maximum(decay, upper), decay)
    return np.asarray((1.0 + decay) / (1.0 - decay), np.float64)


def _episodes(differences: _Differences, numbers: _Int, least: float, named: set[int]) -> dict[int, tuple[float, int]]:
    """Return the ranks that are slow in rare steps more often than the others, with score and window.

    Args:
        differences: The differences.
        numbers: ``[step]``
        least: Least mean excess.
        named: Ranks that were found already.
    """
    count = len(differences.raw)
    found: dict[int, tuple[float, int]] = {}
    for window in _windows(count):
        if window < _RECENT:
            continue
        means = differences.wide[-window:].mean(axis=0)
        lower = _reference(means, set())
        suspected = ~lower & (means - means[lower].mean() >= least)
        suspected[list(named)] = True
        reference = ~suspected
        candidates = np.flatnonzero(suspected)
        recent = differences.wide[-_RECENT:].mean(axis=0)
        for rank in candidates.tolist():
            if rank in found or rank in named or recent[rank] - recent[reference].mean() < least / 2:
                continue
            base = np.median(differences.raw[-window:][:, reference], axis=1)
            against = differences.raw[-window:] - base[:, np.newaxis]
            slow = against[:, rank]
            high = differences.high(least)
            hits = slow > high
            if not hits.any():
                continue
            others = against[:, reference] > high if reference.sum() > 1 else -slow[:, np.newaxis] > high
            log_odds = _log_odds(hits, others, numbers[-window:])
            if log_odds <= LEAST_LOG_ODDS:
                found[rank] = (math.sqrt(-2.0 * log_odds), window)
    return found


def _starts(hits: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return where a slow episode begins, ``[step, ...]``: at a slow step not preceded by one or two steps before."""
    before = np.zeros_like(hits)
    before[1:] |= hits[:-1]
    before[2:] |= hits[:-2]
    return hits & ~before


def _log_odds(hits: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_], numbers: _Int) -> float:
    """Return the logarithm of the probability of a rank's episodes if it is equal to the others.

    Args:
        hits: ``[step]``: the rank was slow.
        others: ``[step, rank]``: another one was.
        numbers: ``[step]``
    """
    starts = _starts(np.column_stack((hits, others)))
    counts = starts.sum(axis=0) / _clustering(starts)
    count, all_others = math.floor(counts[0]), math.ceil(counts[1:].sum())
    log_odds = _log_binomial_tail(count + all_others, count, 1.0 / (1 + others.shape[1]))
    at = period_of(numbers[hits])
    if at is not None:
        log_odds += at[2]
    return log_odds


def _clustering(starts: npt.NDArray[np.bool_]) -> float:
    """Return how many episodes come together, at least 1: the variance of their number in a stretch per mean.

    Args:
        starts: ``[step, rank]``: an episode begins.
    """
    stretch = max(LEAST_STEPS, len(starts) // 16)
    counts = np.add.reduceat(
        starts[len(starts) % stretch :].astype(np.int64), np.arange(0, len(starts) - stretch + 1, stretch)
    )
    mean = float(counts.mean(axis=0).sum())
    return max(1.0, float(counts.var(axis=0, ddof=1).sum()) / mean) if mean and len(counts) > 1 else 1.0


def period_of(numbers: _Int) -> tuple[int, int, float] | None:
    """Return the distance of most of these steps, the remainder, and the logarithm of the probability of that."""
    if len(numbers) < 4:  # noqa: PLR2004 - any three have some regularity
        return None
    best: tuple[int, int, float] | None = None
    for period in _PERIODS:
        counts = np.bincount(numbers % period, minlength=period)
        most = int(counts.argmax())
        log_odds = _log_binomial_tail(len(numbers), int(counts[most]), 1.0 / period) + math.log(period * len(_PERIODS))
        if log_odds < min(0.0, -1e-9 if best is None else best[2] - 1e-9):
            best = period, most, log_odds
    return best


def _log_binomial_tail(trials: int, successes: int, probability: float) -> float:
    """Return the logarithm of the probability of at least so many successes."""
    if successes <= trials * probability:
        return 0.0
    terms = [
        math.lgamma(trials + 1)
        - math.lgamma(each + 1)
        - math.lgamma(trials - each + 1)
        + each * math.log(probability)
        + (trials - each) * math.log1p(-probability)
        for each in range(successes, trials + 1)
    ]
    highest = max(terms)
    return highest + math.log(sum(math.exp(term - highest) for term in terms))


class ComputeHistory:
    """Own compute of the ranks of one series in its last steps.

    Args:
        ranks: The group.
        steps: How many steps are kept.
    """

    def __init__(self, ranks: tuple[RankKey, ...], steps: int = HISTORY_STEPS) -> None:
        self._ranks = ranks
        self._kept: deque[OwnCompute] = deque()
        self._steps, self._count = steps, 0

    def add(self, steps: OwnCompute) -> None:
        """Add finished steps that can be compared."""
        if len(steps):
            self._kept.append(steps)
            self._count += len(steps)
            while self._count - len(self._kept[0]) >= self._steps:
                self._count -= len(self._kept.popleft())

    def stragglers(self) -> tuple[Straggler, ...]:
        """Return the stragglers, the worst first."""
        if not self._kept:
            return ()
        if len(self._kept) > 1:
            self._kept = deque([OwnCompute.joined(self._kept)])
        steps = self._kept[0].take(slice(-self._steps, None))
        self._kept[0], self._count = steps, len(steps)
        return named(steps, self._ranks)


def stragglers_in(steps: Iterable[StepFacts], series: SeriesKey) -> tuple[Straggler, ...]:
    """Return the stragglers in some steps of a series, the worst first."""
    ranks = tuple(RankKey(series.run_id, rank) for rank in series.group_ranks)
    return named(OwnCompute.of_facts(steps, len(ranks)), ranks)


def named(steps: OwnCompute, ranks: tuple[RankKey, ...]) -> tuple[Straggler, ...]:
    """Return the stragglers in some steps, the worst first.

    Args:
        steps: The steps.
        ranks: By group rank.
    """
    typical_ns = float(np.median(steps.step_ns[-_RECENT:])) if len(steps) else 0.0
    groups: list[Straggler] = []
    for suspect in suspects(steps):
        one = _described(suspect, ranks[suspect.rank], typical_ns, len(steps))
        for number, group in enumerate(groups):
            if _alike(group, one):
                groups[number] = replace(
                    group, ranks=group.ranks + one.ranks, confidence=min(group.confidence, one.confidence)
                )
                break
        else:
            groups.append(one)
    return tuple(groups)


def _alike(group: Straggler, one: Straggler) -> bool:
    """Return whether a rank is slow in the same way as others."""
    same = (group.pattern, group.period, group.phase) == (one.pattern, one.period, one.phase)
    if group.since_step is None or one.since_step is None:
        return same and group.since_step == one.since_step
    return same and abs(group.since_step - one.since_step) <= _TOGETHER_STEPS


def _described(suspect: Suspect, rank: RankKey, typical_ns: float, count: int) -> Straggler:
    """Return what is known about a suspect, alone.

    Args:
        suspect: The suspect.
        rank: Its key.
        typical_ns: The median step.
        count: Number of steps of all phases.
    """
    difference, steps = suspect.difference, suspect.steps
    phase = suspect.phase or _only_phase(steps.phase[-suspect.window :], difference[-suspect.window :])
    chosen = np.arange(len(steps))
    if phase is not None:
        chosen = np.flatnonzero(steps.phase == phase)
        difference, steps = difference[chosen], steps.take(chosen)
    begin = (
        _since(difference, steps) if suspect.high_ns is None else _first_episode(difference > suspect.high_ns, steps)
    )
    region = difference[0 if begin is None else begin :]
    level = _level(region) if suspect.high_ns is None else float(np.median(region[region > suspect.high_ns]))
    affected = region > level / 2
    often, period = float(affected.mean()), None
    unclear = float((np.abs(region / level - 0.5) < _UNCLEAR_BAND).mean())
    if suspect.high_ns is not None or (often < _MOSTLY and unclear < _UNCLEAR):
        pattern = Pattern.INTERMITTENT
        period = _period(steps.step[len(steps) - len(region) :][affected])
        if begin is not None:
            begin += int(affected.argmax())
    else:
        pattern, often, level = Pattern.CONSTANT, 1.0, float(np.median(region))
    if phase is not None:
        pattern, often = Pattern.PHASE, often * len(chosen) / count
    return Straggler(
        ranks=(rank,),
        excess_ns=round(level),
        share=often * level / max(1.0, typical_ns),
        pattern=pattern,
        often=often,
        period=period,
        phase=phase,
        confidence=_confidence(suspect.score),
        since_ns=0 if begin is None else int(steps.begin_ns[begin]),
        since_step=None if begin is None else int(steps.step[begin]),
    )


_MOSTLY = 0.8
"""A straggler is slow all the time if it is in this share of steps."""
_STOPPED = 10.0
"""Episodes at random are hardly ever so many times further apart than in the median."""
_UNCLEAR_BAND, _UNCLEAR = 0.25, 0.1
"""Slow steps can be told from others if fewer than this share are near half of the excess."""


def _level(difference: _Floats) -> float:
    """Return the excess in the median affected step."""
    level = float(difference.mean())
    for _ in range(8):
        above = difference[difference > level / 2]
        if not len(above):
            break
        level = float(np.median(above))
    return level


def _period(numbers: _Int) -> int | None:
    """Return the distance of affected steps; None if they have none in common."""
    found = period_of(numbers)
    if found is None or found[2] > _REGULAR:
        return None
    period, remainder, _ = found
    return period if (numbers % period == remainder).mean() >= _MOSTLY else None


def _only_phase(phases: npt.NDArray[np.uint8], difference: _Floats) -> Phase | None:
    """Return the phase in whose steps nearly all of the difference is; None if several have it or there is only one."""
    means = {
        int(phase): float(np.median(difference[phases == phase]))
        for phase in np.unique(phases)
        if (phases == phase).sum() >= LEAST_STEPS // 2
    }
    if len(means) < 2:  # noqa: PLR2004 - nothing to compare
        return None
    worst, following = sorted(means, key=lambda phase: -means[phase])[:2]
    if worst not in {Phase.PREFILL, Phase.DECODE} or means[following] > means[worst] / 4:
        return None
    return Phase(worst)


def _since(difference: _Floats, steps: OwnCompute) -> int | None:
    """Return the index from which a rank is slow; None if it was before all steps."""
    level = _level(difference[-_RECENT:])
    found = since(np.clip(difference, -level, 2 * level))
    return 0 if found is None and steps.step[0] < LEAST_STEPS else found


def _first_episode(slow: npt.NDArray[np.bool_], steps: OwnCompute) -> int | None:
    """Return the index of the first episode after which they never stop for long; None if it was before all steps."""
    at = np.flatnonzero(slow)
    gaps = np.diff(at)
    longest = _STOPPED * float(np.median(gaps[-_RECENT:]))
    stops = np.flatnonzero(gaps > longest)
    begin = int(at[stops[-1] + 1 if len(stops) else 0])
    return begin if begin > longest or steps.step[0] < LEAST_STEPS else None


def _confidence(score: float) -> float:
    """Return how sure a name is: the probability of no such score in a day of equal ranks."""
    return min(0.999, max(0.9, 1.0 - _LOOKS_PER_DAY * 0.5 * math.erfc(score / math.sqrt(2.0))))


_LOOKS_PER_DAY = 86_400 * 50 / LEAST_STEPS
"""Independent tests in a day, at 50 steps per second."""
