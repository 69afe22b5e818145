"""Late, missing, duplicate and out-of-order records; ranks that are ahead, behind, or gone."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtrace.ledger import Ledger
from swtrace.ledger.facts import CriticalPath, StepFacts
from swtrace.ledger.verdict import verdict
from swtrace.selection import Selection, sum_up_by_rank
from swtrace.trace.records import STEP
from swtrace.trace.schema import TransferFlag
from tests.support import feeding
from tests.support.schedules import Schedule, key, simulate, step_record, transfer_record


def make(steps: int = 12, seed: int = 1, ranks: int = 3) -> Schedule:
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    return simulate(
        ranks=ranks,
        layers=7,
        k=2,
        steps=steps,
        compute=lambda _r, _s, _p: chance.randrange(100_000, 900_000),
        occupancy=500_000,
    )


def same_path(a: CriticalPath | None, b: CriticalPath | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


def same(a: StepFacts, b: StepFacts) -> bool:
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if f.name == "path":
            if not same_path(x, y):
                return False
        elif isinstance(x, np.ndarray):
            if not np.array_equal(x, y):
                return False
        elif x != y:
            return False
    return True


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), largest=st.sampled_from([1, 3, 20, 200]))
def test_any_interleaving_gives_the_same_facts(seed: int, largest: int) -> None:
    """Splitting and interleaving the ranks' batches changes no fact."""
    schedule = make()
    whole = feeding.ledger(schedule)
    feeding.feed(whole, schedule)
    pieces = feeding.ledger(schedule)
    feeding.feed_interleaved(pieces, schedule, random.Random(seed), largest)  # noqa: S311
    expected, got = whole.take_steps(), pieces.take_steps()
    assert len(expected) == len(got) == 12
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))
    assert whole.facts() == pieces.facts()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_batches_of_many_ranks_at_once_give_the_same_facts(seed: int) -> None:
    """Processing the ranks' batches together gives the same facts as one after the other."""
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    schedule = make(steps=30)
    together, apart = feeding.ledger(schedule), feeding.ledger(schedule)
    at = [0] * 3
    while any(at[r] < len(records) for r, records in enumerate(schedule.records)):
        batches = []
        for rank in chance.choices(range(3), weights=(1, 4, 4), k=chance.randint(1, 6)):
            size = chance.choice([0, 1, 30, 100])
            batches.append((key(rank), schedule.records[rank][at[rank] : at[rank] + size]))
            at[rank] += size
        together.add_batches(batches)
        for rank_key, records in batches:
            apart.add(rank_key, records)
    together.flush()
    apart.flush()
    got, expected = together.take_steps(), apart.take_steps()
    assert len(got) == len(expected)
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))
    assert together.facts() == apart.facts()


def test_batches_of_ranks_whose_tables_differ_find_their_series() -> None:
    """Ranks may name two series by other indexes and lengths: each record goes where its own rank's table says."""
    one, two = make(), make(seed=2)
    together, apart = Ledger(), Ledger()
    batches = []
    for rank in range(3):
        series = (one.infos[rank], replace(two.infos[rank], name="other"))
        records = [one.records[rank].copy(), two.records[rank].copy()]
        if rank == 1:
            series, records = series[::-1], records[::-1]
        records[1]["series"] = 1
        for ledger in (together, apart):
            ledger.add_rank(one.identity(rank))
            ledger.set_series(key(rank), series if rank else (replace(series[0], num_layers=6), series[1]))
        batches.append((key(rank), np.concatenate(records)))
    for rank_key, each in batches:
        apart.add(rank_key, each)
    together.add_batches(batches)
    facts = together.facts()
    assert facts == apart.facts()
    assert [series.key.name for series in facts.series] == ["o_proj", "other"]
    assert [sum(rank.totals.waits.values()) for rank in facts.series[0].ranks] == [72, 72, 72]
    assert [sum(rank.totals.waits.values()) for rank in facts.series[1].ranks] == [84, 84, 84]
    assert [rank.oddities.unknown for rank in facts.ranks] == [12, 12, 12]


def test_a_late_record_hides_no_other() -> None:
    """A late record in the place of a step that is pending makes none of that step's a duplicate."""
    schedule = make(steps=40, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=2 * 7 * 16)
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1])
    ledger.flush()
    late = 40 - 16
    assert [rank.oddities.duplicate for rank in ledger.facts().ranks] == [0, 0]
    assert ledger.facts().ranks[1].oddities.late == late * 8
    assert [step.complete for step in ledger.take_steps()] == [False] * late + [True] * 16


def test_steps_finish_as_soon_as_every_rank_ended_them() -> None:
    """A step's facts are there when the last rank has ended it, not one step later, and not before."""
    schedule = make(steps=3)
    ledger = feeding.ledger(schedule)
    of_step = [[records[records["step"] == s] for s in range(3)] for records in schedule.records]
    ledger.add(key(0), of_step[0][0])
    ledger.add(key(1), of_step[1][0])
    assert ledger.take_steps() == ()
    ledger.add(key(2), of_step[2][0][:-1])
    assert ledger.take_steps() == ()
    ledger.add(key(2), of_step[2][0][-1:])
    assert [facts.step for facts in ledger.take_steps()] == [0]


def test_duplicates_are_ignored_and_counted() -> None:
    """A batch fed twice, in one piece or later, changes nothing but the count of duplicates."""
    schedule = make(steps=2)
    once, twice = feeding.ledger(schedule), feeding.ledger(schedule)
    feeding.feed(once, schedule)
    doubled = np.concatenate((schedule.records[0][:9], schedule.records[0]))
    twice.add(key(0), doubled)
    twice.add(key(1), schedule.records[1])
    twice.add(key(1), schedule.records[1][10:])
    twice.add(key(2), schedule.records[2])
    twice.flush()
    assert twice.facts().series == once.facts().series
    oddities = [rank.oddities for rank in twice.facts().ranks]
    assert [o.duplicate for o in oddities] == [9, len(schedule.records[1]) - 10, 0]


def test_missing_records_are_counted_and_leave_the_rest_right() -> None:
    """Records lost from one rank are missing there; other facts stand, and what depends on them is not claimed."""
    schedule = make(steps=6)
    whole = feeding.ledger(schedule)
    feeding.feed(whole, schedule)
    lost = (
        (schedule.records[1]["step"] == 2) & (schedule.records[1]["position"] < 4) & (schedule.records[1]["kind"] == 1)
    )
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1][~lost])
    ledger.add(key(2), schedule.records[2])
    ledger.flush()
    expected, got = whole.take_steps(), ledger.take_steps()
    assert [rank.oddities.missing for rank in ledger.facts().ranks] == [0, 4, 0]
    assert [facts.complete for facts in got] == [True, True, False, True, True, True]
    assert got[2].path is None
    assert np.array_equal(got[2].stall_ns[0], expected[2].stall_ns[0])
    assert not got[2].attributed[:, :5].any()  # layer 4's predecessor is not known either
    assert np.array_equal(got[2].transfer_ns[:, 5:], expected[2].transfer_ns[:, 5:])
    assert same(got[3], expected[3])


@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_lost_records_do_not_lower_the_stall_ratio(kept: float) -> None:
    """Ratios use whole steps only: a part of the stall over the whole duration would look too good."""
    chance = np.random.default_rng(7)
    schedule = simulate(ranks=2, layers=9, k=1, steps=60, compute=lambda _r, _s, _p: 1_000_000, occupancy=5_000_000)
    ledger = feeding.ledger(schedule)
    for rank, records in enumerate(schedule.records):
        lost = chance.random(len(records)) > kept
        lost[records["step"] > 57] = False  # the last steps are whole again
        lost[records["step"] % 3 == 0] = False
        ledger.add(key(rank), records[~lost])
    ledger.flush()
    steps = ledger.take_steps()
    (series,) = ledger.facts().series
    truth = [step for step in steps if step.complete and step.step > 0]
    for number, its in enumerate(series.ranks):
        assert 10 < its.recent.steps < 58
        assert its.recent.stall_ratio == pytest.approx(0.8, abs=0.02)
        assert its.last_stall_ns == truth[-1].stall_ns[number].sum()
    said = {finding.kind: finding for finding in verdict(series, steps).findings}
    assert said["missing_records"].numbers["partial_steps"] == sum(step.partial for step in steps) > 0
    everything = sum_up_by_rank(steps, Selection())
    assert [sums.steps for sums in everything.values()] == [its.recent.steps for its in series.ranks]


def test_a_dead_rank_holds_nobody_up() -> None:
    """Once a rank is known to have ended, steps are finished without it."""
    schedule = make(steps=6)
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1])
    ledger.add(key(2), schedule.records[2][schedule.records[2]["step"] < 2])
    assert [facts.step for facts in ledger.take_steps()] == [0, 1]
    ledger.rank_ended(key(2))
    assert [(facts.step, facts.complete) for facts in ledger.take_steps()] == [(s, False) for s in (2, 3, 4, 5)]


def test_out_of_order_within_a_step_is_harmless() -> None:
    """Records of a rank that arrive shuffled by up to a step are stored correctly."""
    schedule = make(steps=5)
    expected = feeding.ledger(schedule)
    feeding.feed(expected, schedule)
    ledger = feeding.ledger(schedule)
    chance = random.Random(7)  # noqa: S311
    for rank, records in enumerate(schedule.records):
        order = sorted(range(len(records)), key=lambda i: i + chance.randrange(6))
        for i in order:
            ledger.add(key(rank), records[i : i + 1])
    ledger.flush()
    assert ledger.facts() == expected.facts()


def test_late_records_are_counted_in_totals_only() -> None:
    """A record for a step that was finished without it still counts as a wait, and as late."""
    schedule = make(steps=4, ranks=2)
    ledger = feeding.ledger(schedule)
    early = schedule.records[1]["step"] == 0
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1][~early])
    before = sum(ledger.facts().series[0].ranks[1].totals.waits.values())
    ledger.add(key(1), schedule.records[1][early])
    after = sum(ledger.facts().series[0].ranks[1].totals.waits.values())
    assert after - before == 7
    assert ledger.facts().ranks[1].oddities.late == early.sum()


def test_a_hung_rank_makes_nothing_grow_without_bound() -> None:
    """While one rank is silent the oldest pending steps are finished early, counted, and the rest is kept."""
    schedule = make(steps=200, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=2 * 7 * 16)
    ledger.add(key(0), schedule.records[0])
    facts = ledger.facts()
    assert facts.series[0].pending_steps <= 16
    assert facts.ranks[1].oddities.evicted_steps == 200 - facts.series[0].pending_steps
    assert sum(facts.series[0].ranks[0].totals.waits.values()) == 7 * 200


def test_a_rank_whose_ring_reaches_further_back_is_laid_out_right() -> None:
    """The order in which rings are found does not matter, even if the first one has lost its oldest steps."""
    schedule = make(steps=10, ranks=2)
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), schedule.records[0][schedule.records[0]["step"] >= 4])
    ledger.add(key(1), schedule.records[1])
    ledger.flush()
    steps = ledger.take_steps()
    assert [facts.step for facts in steps] == list(range(10))
    assert [facts.complete for facts in steps] == [False] * 4 + [True] * 6
    assert sum(rank.oddities.late for rank in ledger.facts().ranks) == 0


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=0, max_size=64 * 40), st.integers(0, 3))
def test_garbage_records_never_raise(raw: bytes, series: int) -> None:
    """Records of any content are counted: used, or unknown."""
    schedule = make(steps=1, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=1 << 10)
    records = np.frombuffer(raw[: len(raw) // 64 * 64], schedule.records[0].dtype).copy()
    records["series"] = series
    ledger.add(key(0), records)
    ledger.flush()
    assert ledger.facts().ranks[0].records == len(records)


@pytest.mark.parametrize("record", [transfer_record(step=0, position=9), step_record(step=0, series=4)])
def test_what_the_tables_do_not_name_is_unknown(record: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
    """A position or series that the ring's tables do not name is counted as unknown and used for nothing."""
    ledger = feeding.ledger(make(steps=1))
    ledger.add(key(0), record)
    assert ledger.facts().ranks[0].oddities.unknown == 1
    assert ledger.take_steps() == ()


def test_a_step_jump_costs_no_time() -> None:
    """Step numbers that leap ahead finish what was pending and do not walk the steps between."""
    ledger = feeding.ledger(make(steps=1))
    ledger.add(key(0), transfer_record(step=0, position=0, wait_begin_ns=5))
    leap = [transfer_record(step=2_000_000_000, position=position, wait_begin_ns=5) for position in range(2)]
    ledger.add(key(0), np.concatenate(leap))
    ledger.flush()
    assert [facts.step for facts in ledger.take_steps()] == [0, 2_000_000_000]


@pytest.mark.parametrize("number", [(1 << 32) - 16, 1_000_000, 300])
@pytest.mark.parametrize("at", [0, 96])
def test_a_wild_step_number_is_ignored_and_counted(number: int, at: int) -> None:
    """One record with an impossible step number, at any place, changes only the count of such records."""
    schedule = make(steps=20)
    wild = transfer_record(step=number, position=1, wait_begin_ns=5)
    for largest in (7, 50):
        expected, ledger = feeding.ledger(schedule), feeding.ledger(schedule)
        feeding.feed(expected, schedule)
        records = [np.concatenate((schedule.records[0][:at], wild, schedule.records[0][at:])), *schedule.records[1:]]
        feeding.feed_interleaved(
            ledger,
            Schedule(schedule.infos, records, schedule.operations),
            random.Random(number),  # noqa: S311
            largest,
        )
        assert ledger.facts().series == expected.facts().series
        assert [rank.oddities.wild for rank in ledger.facts().ranks] == [1, 0, 0]
        assert [rank.oddities.late for rank in ledger.facts().ranks] == [0, 0, 0]


@pytest.mark.parametrize("largest", [7, 30])
def test_step_numbers_wrap(largest: int) -> None:
    """Steps whose numbers wrap at 2^32 follow one another as any others: the same facts, under numbers that go on."""
    schedule = make(steps=40)
    moved = []
    for records in schedule.records:
        moved.append(records.copy())
        moved[-1]["step"] += np.uint32((1 << 32) - 20)  # both kinds of record have it in one place
        steps = moved[-1]["kind"] == 2
        moved[-1].view(STEP)["step"][steps] = records.view(STEP)["step"][steps] + np.uint32((1 << 32) - 20)
    ledger, expected = feeding.ledger(schedule), feeding.ledger(schedule)
    feeding.feed(expected, schedule)
    chance = random.Random(largest)  # noqa: S311
    for rank in range(3):
        ledger.add(key(rank), moved[rank][:30])
    feeding.feed_interleaved(
        ledger, Schedule(schedule.infos, [each[30:] for each in moved], schedule.operations), chance, largest
    )
    got = ledger.take_steps()
    assert [facts.step for facts in got] == list(range((1 << 32) - 20, (1 << 32) + 20))
    assert [rank.oddities.late for rank in ledger.facts().ranks] == [0, 0, 0]
    assert ledger.facts().series[0].ranks[0].totals == expected.facts().series[0].ranks[0].totals


def test_duplicates_of_finished_steps_count_once() -> None:
    """Records repeated after their step is finished, in any order, are duplicates and change no total."""
    schedule = make(steps=12)
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    once = ledger.facts().series
    ledger.add(key(1), schedule.records[1][::-1].copy())
    ledger.add(key(2), schedule.records[2][20:50])
    assert ledger.facts().series == once
    assert [rank.oddities.duplicate for rank in ledger.facts().ranks] == [0, len(schedule.records[1]), 30]
    assert [rank.oddities.late for rank in ledger.facts().ranks] == [0, 0, 0]


def test_late_records_that_come_twice_count_once() -> None:
    """A record for a step finished without it counts as late once, and then as a duplicate, however old the step."""
    schedule = make(steps=1200, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=2 * 7 * 16)
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1])
    ledger.add(key(1), schedule.records[1])
    ledger.flush()
    totals = ledger.facts().series[0].ranks[1].totals
    assert sum(totals.waits.values()) == 7 * 1200
    assert ledger.facts().ranks[1].oddities.duplicate == len(schedule.records[1])


def test_one_large_batch_of_all_ranks_evicts_nothing() -> None:
    """More steps at once than can be pending are processed step by step: no rank is behind, so none is evicted."""
    schedule = make(steps=100)
    whole, bounded = feeding.ledger(schedule), feeding.ledger(schedule, max_cells=3 * 7 * 8)
    batches = [(key(rank), schedule.records[rank]) for rank in range(3)]
    whole.add_batches(batches)
    bounded.add_batches(batches)
    assert [rank.oddities.evicted_steps for rank in bounded.facts().ranks] == [0, 0, 0]
    assert bounded.facts().series == whole.facts().series


def test_a_silent_rank_is_evicted_many_steps_at_a_time() -> None:
    """Steps that wait for a silent rank are finished in bulk, an eighth at once, because each eviction costs time."""
    schedule = make(steps=400, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=2 * 7 * 64)
    finished = []
    for step in range(400):
        ledger.add(key(0), schedule.records[0][schedule.records[0]["step"] == step])
        if taken := len(ledger.take_steps()):
            finished.append(taken)
    assert sum(finished) >= 400 - 64
    assert min(finished) == 8


def test_broadcasts_under_way_at_the_end_are_open_not_missing() -> None:
    """Broadcasts for a step that never began create no step, and none of its records count as missing."""
    schedule = make(steps=3, ranks=2)
    ledger = feeding.ledger(schedule)
    for rank in range(2):
        tail = [
            transfer_record(
                step=3, position=p, issued_ns=9, operation=21 + p, flags=TransferFlag.OPEN | TransferFlag.UNWAITED
            )
            for p in range(2)
        ]
        ledger.add(key(rank), np.concatenate((schedule.records[rank], *tail)))
    ledger.flush()
    assert [facts.step for facts in ledger.take_steps()] == [0, 1, 2]
    facts = ledger.facts()
    assert facts.series[0].steps == 3
    for rank in range(2):
        assert facts.ranks[rank].oddities.missing == 0
        assert facts.series[0].ranks[rank].totals.open == 2
        assert facts.series[0].ranks[rank].totals.unwaited == 0


def test_forgetting_the_last_rank_drops_the_series() -> None:
    """A series is removed when its last rank is forgotten."""
    schedule = make(steps=2, ranks=2)
    ledger: Ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    ledger.forget(key(0))
    assert len(ledger.facts().series) == 1
    ledger.forget(key(1))
    assert ledger.facts().series == ()
    assert ledger.facts().ranks == ()


def test_records_of_pending_steps_that_come_again_from_a_rank_that_came_back_are_duplicates() -> None:
    """A rank that was forgotten and joins again may record pending steps again: they count once."""
    schedule = make(steps=2, ranks=2)
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), schedule.records[0])
    ledger.forget(key(0))
    ledger.add_rank(schedule.identity(0))
    ledger.set_series(key(0), (schedule.infos[0],))
    for record in range(len(schedule.records[0])):
        ledger.add(key(0), schedule.records[0][record : record + 1])
    ledger.add(key(1), schedule.records[1])
    ledger.flush()
    assert [rank.oddities.duplicate for rank in ledger.facts().ranks] == [0, len(schedule.records[0])]
