"""Late, missing, duplicate and out-of-order records; ranks that are ahead, behind, or gone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swtrace.errors import IntakeError
from swtrace.ledger import Ledger
from swtrace.ledger.facts import StepFacts
from swtrace.ledger.ledger import _TOGETHER
from swtrace.ledger.pending import PendingSteps
from swtrace.trace.identity import RankKey
from swtrace.trace.schema import TransferFlag
from tests.support import feeding
from tests.support.random_steps import random_schedule, same_step
from tests.support.schedules import Schedule, key, step_record, transfer_record


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), largest=st.sampled_from([1, 3, 20, 200]))
def test_any_interleaving_gives_the_same_facts(seed: int, largest: int) -> None:
    """Splitting and interleaving the ranks' batches changes no fact."""
    schedule = random_schedule()
    whole = feeding.ledger(schedule)
    feeding.feed(whole, schedule)
    pieces = feeding.ledger(schedule)
    feeding.feed_interleaved(pieces, schedule, random.Random(seed), largest)  # noqa: S311
    expected, got = whole.take_steps(), pieces.take_steps()
    assert len(expected) == len(got) == 12
    assert all(same_step(a, b) for a, b in zip(expected, got, strict=True))
    assert whole.facts() == pieces.facts()


def test_a_late_record_hides_no_other() -> None:
    """A late record in the place of a step that is pending makes none of that step's a duplicate."""
    schedule = random_schedule(steps=40, ranks=2)
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
    schedule = random_schedule(steps=3)
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
    schedule = random_schedule(steps=2)
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
    schedule = random_schedule(steps=6)
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
    assert same_step(got[3], expected[3])


def test_a_dead_rank_holds_nobody_up() -> None:
    """Once a rank is known to have ended, steps are finished without it."""
    schedule = random_schedule(steps=6)
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1])
    ledger.add(key(2), schedule.records[2][schedule.records[2]["step"] < 2])
    assert [facts.step for facts in ledger.take_steps()] == [0, 1]
    ledger.rank_ended(key(2))
    assert [(facts.step, facts.complete) for facts in ledger.take_steps()] == [(s, False) for s in (2, 3, 4, 5)]


def test_out_of_order_within_a_step_is_harmless() -> None:
    """Records of a rank that arrive shuffled by up to a step are stored correctly."""
    schedule = random_schedule(steps=5)
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
    schedule = random_schedule(steps=4, ranks=2)
    ledger = feeding.ledger(schedule)
    early = schedule.records[1]["step"] == 0
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1][~early])
    before = sum(ledger.facts().series[0].ranks[1].totals.waits.values())
    ledger.add(key(1), schedule.records[1][early])
    after = sum(ledger.facts().series[0].ranks[1].totals.waits.values())
    assert after - before == 7
    assert ledger.facts().ranks[1].oddities.late == early.sum()


def test_a_rank_whose_ring_reaches_further_back_is_laid_out_right() -> None:
    """The order in which rings are found does not matter, even if the first one has lost its oldest steps."""
    schedule = random_schedule(steps=10, ranks=2)
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), schedule.records[0][schedule.records[0]["step"] >= 4])
    ledger.add(key(1), schedule.records[1])
    ledger.flush()
    steps = ledger.take_steps()
    assert [facts.step for facts in steps] == list(range(10))
    assert [facts.complete for facts in steps] == [False] * 4 + [True] * 6
    assert sum(rank.oddities.late for rank in ledger.facts().ranks) == 0


@settings(max_examples=100)
@given(st.binary(min_size=0, max_size=64 * 40), st.integers(0, 3))
def test_garbage_records_never_raise(raw: bytes, series: int) -> None:
    """Records of any content are counted: used, or unknown."""
    schedule = random_schedule(steps=1, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=1 << 10)
    records = np.frombuffer(raw[: len(raw) // 64 * 64], schedule.records[0].dtype).copy()
    records["series"] = series
    ledger.add(key(0), records)
    ledger.flush()
    assert ledger.facts().ranks[0].records == len(records)


@pytest.mark.parametrize("record", [transfer_record(step=0, position=9), step_record(step=0, series=4)])
def test_what_the_tables_do_not_name_is_unknown(record: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
    """A position or series that the ring's tables do not name is counted as unknown and used for nothing."""
    ledger = feeding.ledger(random_schedule(steps=1))
    ledger.add(key(0), record)
    assert ledger.facts().ranks[0].oddities.unknown == 1
    assert ledger.take_steps() == ()


def test_duplicates_of_finished_steps_count_once() -> None:
    """Records repeated after their step is finished, in any order, are duplicates and change no total."""
    schedule = random_schedule(steps=12)
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
    schedule = random_schedule(steps=1200, ranks=2)
    ledger = feeding.ledger(schedule, max_cells=2 * 7 * 16)
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1])
    ledger.add(key(1), schedule.records[1])
    ledger.flush()
    totals = ledger.facts().series[0].ranks[1].totals
    assert sum(totals.waits.values()) == 7 * 1200
    assert ledger.facts().ranks[1].oddities.duplicate == len(schedule.records[1])


def test_broadcasts_under_way_at_the_end_are_open_not_missing() -> None:
    """Broadcasts for a step that never began create no step, and none of its records count as missing."""
    schedule = random_schedule(steps=3, ranks=2)
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
    schedule = random_schedule(steps=2, ranks=2)
    ledger: Ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    ledger.forget(key(0))
    assert len(ledger.facts().series) == 1
    ledger.forget(key(1))
    assert ledger.facts().series == ()
    assert ledger.facts().ranks == ()


def step_by_step(ledger: Ledger, schedule: Schedule) -> None:
    for step in range(int(schedule.records[0]["step"].max()) + 1):
        ledger.add_batches([(key(r), each[each["step"] == step]) for r, each in enumerate(schedule.records)])


@pytest.mark.parametrize("queue", ["serial", "receiver", "none"])
def test_steps_finished_together_are_those_finished_one_by_one(queue: str) -> None:
    """Steps, paths and facts are the same if they are read after each step or only at the end."""
    schedule = random_schedule(steps=40, queue=queue)
    asked, unasked = feeding.ledger(schedule), feeding.ledger(schedule)
    one_by_one: list[StepFacts] = []
    for step in range(40):
        asked.add_batches([(key(r), each[each["step"] == step]) for r, each in enumerate(schedule.records)])
        one_by_one += asked.take_steps()
    step_by_step(unasked, schedule)
    together = unasked.take_steps()
    assert len(one_by_one) == len(together) == 40
    assert all(same_step(a, b) for a, b in zip(one_by_one, together, strict=True))
    assert all(step.path is not None for step in together)
    assert asked.facts() == unasked.facts()


def test_what_is_collected_is_bounded() -> None:
    """Between reads, a ledger holds only a bounded number of unprocessed records, and it counts them all."""
    schedule = random_schedule(steps=2500, ranks=2)
    ledger = feeding.ledger(schedule)
    most = 0
    for first in range(0, len(schedule.records[0]), 8):
        ledger.add_batches([(key(r), each[first : first + 8]) for r, each in enumerate(schedule.records)])
        held = sum(len(records) for each in ledger._collected for records in each.values())
        assert held == ledger._collected_records
        most = max(most, held)
    assert _TOGETHER / 2 < most < _TOGETHER
    assert [rank.records for rank in ledger.facts().ranks] == [20_000, 20_000]
    assert ledger.facts().series[0].ranks[0].totals.steps == 2500
    assert ledger._collected == []


def test_whose_records_raise_is_named_when_they_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names exactly the ranks whose records raise, at the call that processes them; the others' are kept."""
    schedule, other = random_schedule(), random_schedule(ranks=2)
    ledger, expected = feeding.ledger(schedule), feeding.ledger(schedule)
    for rank in range(2):
        ledger.add_rank(replace(schedule.identity(rank), run_id="bad"))
        ledger.set_series(of_bad_run(rank), (replace(other.infos[rank], name="bad"),))
    bad = {id(series.pending) for series in ledger._by_number.values() if series.constants.series.name == "bad"}
    room = PendingSteps.room

    def no_room(pending: PendingSteps, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        if id(pending) in bad:
            raise MemoryError
        return room(pending, steps)

    monkeypatch.setattr(PendingSteps, "room", no_room)
    step_by_step(ledger, schedule)
    ledger.add(of_bad_run(1), other.records[1])
    with pytest.raises(IntakeError) as raised:
        ledger.facts()
    assert list(raised.value.reasons) == [("bad", 1)]
    feeding.feed(expected, schedule)
    assert ledger.facts().series[0] == expected.facts().series[0]


def of_bad_run(rank: int) -> RankKey:
    return key(rank)._replace(run_id="bad")
