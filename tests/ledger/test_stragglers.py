"""Ranks that compute longer are named with how, since when and by how much; equal ranks never are.

``python -m benchmarks.stragglers`` measures the same at length.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from swtrace.ledger.facts import Pattern, Straggler
from swtrace.ledger.stragglers import HISTORY_STEPS, ComputeHistory, OwnCompute, named, suspects
from swtrace.trace.identity import RankKey
from swtrace.trace.records import STEP
from swtrace.trace.schema import Kind, Phase
from tests.support import feeding
from tests.support.own_computes import NOISE, TYPICAL_NS, Floats, noisy, of, slow
from tests.support.schedules import key, simulate

MS = 1_000_000


def last_named(own_ns: Floats, phase: npt.NDArray[np.uint8] | None = None) -> tuple[Straggler, ...]:
    """Return who is named after all steps."""
    first = max(0, len(own_ns) - HISTORY_STEPS)
    ranks = tuple(map(key, range(own_ns.shape[1])))
    return named(of(own_ns[first:], first, None if phase is None else phase[first:]), ranks)


def only(found: tuple[Straggler, ...]) -> Straggler:
    (straggler,) = found
    return straggler


# -- who is named ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 5])
@pytest.mark.parametrize("kind", NOISE)
def test_equal_ranks_are_not_named(kind: str, ranks: int) -> None:
    """Whatever the noise, no rank of an equal group is named at any time."""
    own, _ = noisy(kind, 5_000, ranks, seed=11)
    for end in range(16, len(own), 96):
        first = max(0, end - HISTORY_STEPS)
        assert suspects(of(own[first:end], first)) == (), f"at step {end}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("pattern", ["constant", "set"])
def test_all_slow_ranks_and_no_other_are_named_within_64_steps(pattern: str, ranks: int, seed: int) -> None:
    """If ranks that vary by 3 % become 5 to 10 % slower, up to half of them, all are named 64 steps later."""
    case = slow(pattern, "1 %", ranks, (0.05, 0.1), seed)
    after = case.own_ns[max(0, case.begin + 64 - HISTORY_STEPS) : case.begin + 64]
    assert {each.rank for each in suspects(of(after, case.begin))} == set(case.ranks)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("pattern", ["every 3", "every 7", "30 %", "15 %"])
def test_ranks_that_are_slow_in_some_steps_are_named(pattern: str, ranks: int) -> None:
    """A rank that loses 5 to 10 % in some steps only is named in the end, and said to be intermittent."""
    case = slow(pattern, "1 %", ranks, (0.05, 0.1), seed=4)
    straggler = only(last_named(case.own_ns))
    assert [rank.rank for rank in straggler.ranks] == list(case.ranks)
    assert straggler.pattern is Pattern.INTERMITTENT


def test_a_single_pause_names_nobody() -> None:
    """One step that takes 30 times as long is no pattern."""
    own, _ = noisy("1 %", 200, 3, seed=1)
    own[180, 1] += 30 * TYPICAL_NS
    assert last_named(own) == ()


def test_a_difference_that_does_not_matter_names_nobody() -> None:
    """A rank that is certainly slower, but by 1.5 % of the step, is not named."""
    own, _ = noisy("1 %", 600, 4, seed=2)
    own[:, 2] += 0.015 * 20 * MS
    assert last_named(own) == ()


def test_a_repaired_rank_is_no_longer_named() -> None:
    """64 steps after the last slow one, a rank is as good as the others."""
    own, _ = noisy("1 %", 700, 4, seed=3)
    own[300:620, 2] += 3 * MS
    assert last_named(own[:620])
    assert last_named(own[:690]) == ()


def test_all_ranks_slower_together_name_nobody() -> None:
    """Larger batches on all ranks are no rank's fault."""
    own, chance = noisy("1 %", 600, 4, seed=5)
    own *= 1.0 + 4.0 * (chance.random((600, 1)) < 0.2)
    assert last_named(own) == ()


# -- what is said about it -------------------------------------------------------------------------


def test_a_constant_straggler_has_excess_share_and_begin() -> None:
    """A rank that computes 2 ms longer since step 640 is described by these figures."""
    own, _ = noisy("1 %", 800, 4, seed=6)
    own[640:, 1] += 2 * MS
    straggler = only(last_named(own))
    assert straggler.ranks == (key(1),)
    assert (straggler.pattern, straggler.period, straggler.phase) == (Pattern.CONSTANT, None, None)
    assert straggler.excess_ns == pytest.approx(2 * MS, rel=0.05)
    assert straggler.share == pytest.approx(0.09, abs=0.01)
    assert straggler.since_step == pytest.approx(640, abs=2)
    assert straggler.since_ns == (straggler.since_step or 0) * 20 * MS
    assert straggler.confidence > 0.99


def test_a_straggler_older_than_the_history_has_no_begin() -> None:
    """If all compared steps are slow and earlier ones are gone, the begin is unknown."""
    own, _ = noisy("1 %", 800, 4, seed=6)
    own[:, 1] += 2 * MS
    straggler = only(last_named(own))
    assert (straggler.since_step, straggler.since_ns) == (None, 0)


def test_ranks_that_become_slow_together_are_one_finding() -> None:
    """Two ranks that are slow since the same step are reported together, the worse one first; another one is not."""
    own, _ = noisy("1 %", 800, 8, seed=7)
    own[500:, 1] += 2 * MS
    own[500:, 6] += 3 * MS
    own[700:, 4] += 1 * MS
    assert [[rank.rank for rank in each.ranks] for each in last_named(own)] == [[6, 1], [4]]


def test_a_regular_straggler_has_a_period() -> None:
    """A rank that is slow in every seventh step is said to be so, with the excess in these steps."""
    own, _ = noisy("5 %", 800, 4, seed=8)
    own[602::7, 3] += 9 * MS
    straggler = only(last_named(own))
    assert (straggler.ranks, straggler.pattern, straggler.period) == ((key(3),), Pattern.INTERMITTENT, 7)
    assert straggler.excess_ns == pytest.approx(9 * MS, rel=0.1)
    assert straggler.often == pytest.approx(1 / 7, rel=0.1)
    assert straggler.since_step == 602


@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.DECODE])
def test_a_straggler_of_one_phase_is_named_with_it(phase: Phase) -> None:
    """A rank that is slow only in prefill or in decode is named for that phase."""
    own, chance = noisy("1 %", 900, 4, seed=9)
    phases = np.where(chance.random(900) < 0.25, Phase.PREFILL, Phase.DECODE).astype(np.uint8)
    own[phases == Phase.PREFILL] *= 3
    own[(phases == phase) & (np.arange(900) >= 500), 2] += 6 * MS
    straggler = only(last_named(own, phases))
    assert (straggler.ranks, straggler.pattern, straggler.phase) == ((key(2),), Pattern.PHASE, phase)
    assert straggler.often == pytest.approx((phases == phase).mean(), abs=0.05)
    assert straggler.since_step == pytest.approx(500, abs=12)


# -- which steps are compared ----------------------------------------------------------------------


def test_the_history_is_bounded_and_forgets_the_oldest() -> None:
    """Steps that are added one by one are the same as all at once, and only the last ones count."""
    own, _ = noisy("1 %", 1_300, 3, seed=10)
    own[:600, 1] += 5 * MS
    own[1_200:, 2] += 5 * MS
    history = ComputeHistory(tuple(map(key, range(3))))
    for number in range(len(own)):
        history.add(of(own[number : number + 1], number))
        if number % 97 == 0:
            history.stragglers()
    assert history.stragglers() == last_named(own)
    assert sum(map(len, history._kept)) <= HISTORY_STEPS


def test_idle_ranks_are_not_compared() -> None:
    """A rank whose steps are dummies computes less, which makes no straggler of the others."""
    schedule = simulate(ranks=3, layers=6, k=1, steps=60, compute=lambda rank, _s, _p: MS // (1 + (rank == 2)))
    for records, phase in zip(schedule.records, (Phase.DECODE, Phase.DECODE, Phase.DUMMY), strict=True):
        records.view(STEP)["phase"][records["kind"] == Kind.STEP] = phase
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    assert ledger.facts().series[0].stragglers == ()


def test_selected_steps_give_the_same_as_the_ledger() -> None:
    """The straggler in a ledger's steps is that of the ledger."""
    schedule = simulate(ranks=3, layers=6, k=1, steps=60, compute=lambda rank, _s, _p: MS + MS // 5 * (rank == 1))
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    (series,) = ledger.facts().series
    ranks = tuple(RankKey(series.key.run_id, rank) for rank in series.key.group_ranks)
    assert named(OwnCompute.of_facts(ledger.take_steps(), 3), ranks) == series.stragglers != ()
