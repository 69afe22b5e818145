"""Untimed steps are counted in full but are part of no duration, and the first stall after them has no cause."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtrace.diagnosis.diagnosis import Verdict, verdict
from swtrace.diagnosis.finding import Level
from swtrace.ledger import Ledger
from swtrace.ledger.facts import CAUSES, Cause, Outcome, StepFacts
from swtrace.trace.records import STEP, Records
from swtrace.trace.schema import NO_WINDOW, Clock, Kind, Observed, Phase, StepFlag, TransferFlag, Untimed
from tests.support import feeding
from tests.support.schedules import BYTES, Schedule, info, key, simulate, step_record, transfer_record

LAYERS, K = 7, 2


def make(steps: int = 12, ranks: int = 3, seed: int = 1, occupancy: int = 500_000) -> Schedule:
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    return simulate(
        ranks=ranks,
        layers=LAYERS,
        k=K,
        steps=steps,
        compute=lambda _r, _s, _p: chance.randrange(100_000, 900_000),
        occupancy=occupancy,
    )


def left_untimed(records: Records, which: Callable[[int], Untimed]) -> Records:
    """Return a rank's records as it would have written them without timing some of its steps."""
    steps = records["step"]
    reasons = np.array([which(int(step)) for step in steps], np.uint8)
    is_step = records["kind"] == Kind.STEP
    kept = records[is_step | (reasons == 0)].copy()
    reasons, is_step = reasons[is_step | (reasons == 0)], is_step[is_step | (reasons == 0)]
    as_steps = kept.view(STEP)
    as_steps["untimed"][is_step] = reasons[is_step]
    for instant in ("begin_ns", "arrival_ns", "end_ns"):
        as_steps[instant][is_step & (reasons != 0)] = 0
    result: Records = kept
    return result


def every(n: int) -> Callable[[int], Untimed]:
    return lambda step: Untimed.SAMPLED if step % n else Untimed.TIMED


def without(schedule: Schedule, *which: Callable[[int], Untimed]) -> Schedule:
    """Return the schedule with some steps of each rank untimed: one rule for each, or one for all."""
    rules = which * len(schedule.records) if len(which) == 1 else which
    records = [left_untimed(each, rule) for each, rule in zip(schedule.records, rules, strict=True)]
    return Schedule(schedule.infos, records, schedule.operations)


@settings(max_examples=40)
@given(
    ranks=st.integers(2, 4),
    k=st.integers(0, 3),
    untimed=st.lists(st.lists(st.sampled_from(Untimed), min_size=9, max_size=9), min_size=4, max_size=4),
)
def test_counts_are_those_of_the_same_run_timed(ranks: int, k: int, untimed: list[list[Untimed]]) -> None:
    """Whichever steps a rank leaves untimed, steps, broadcasts and bytes are those of a timed run, and waits add up."""
    schedule = simulate(ranks=ranks, layers=LAYERS, k=k, steps=9, compute=lambda _r, _s, _p: 50, occupancy=100)
    rules = [lambda step, row=row: row[step] for row in untimed[:ranks]]
    whole, partly = feeding.ledger(schedule), feeding.ledger(schedule)
    feeding.feed(whole, schedule)
    feeding.feed(partly, without(schedule, *rules))
    expected, got = whole.facts(), partly.facts()
    assert [rank.oddities.missing for rank in got.ranks] == [0] * ranks
    for one, other, reasons in zip(expected.series[0].ranks, got.series[0].ranks, untimed, strict=False):
        want, totals = one.totals, other.totals
        for count in ("steps", "sent", "received", "bytes", "unwaited", "aborted_steps", "unwaited_steps"):
            assert getattr(totals, count) == getattr(want, count), count
        assert sum(totals.waits.values()) == sum(want.waits.values()) == 9 * LAYERS
        assert totals.waits[Outcome.UNTIMED] == LAYERS * sum(reason is not Untimed.TIMED for reason in reasons)
        assert totals.untimed_steps == {
            reason.name.lower(): reasons.count(reason) for reason in Untimed if reason is not Untimed.TIMED
        }
        assert totals.step_duration["decode"].count == reasons.count(Untimed.TIMED)
        assert sum(totals.cause_ns.values()) == totals.stall_ns
        assert totals.stall.count == totals.waits[Outcome.ON_TIME] + totals.waits[Outcome.STALLED]


def test_untimed_steps_have_no_facts_and_enter_no_sum() -> None:
    """Steps that all ranks leave untimed give no facts; sums, last stall and history are those of the timed ones."""
    schedule = make()
    whole, partly = feeding.ledger(schedule), feeding.ledger(schedule)
    feeding.feed(whole, schedule)
    feeding.feed(partly, without(schedule, every(4)))
    timed = {facts.step: facts for facts in whole.take_steps() if facts.step % 4 == 0}
    steps = partly.take_steps()
    assert [facts.step for facts in steps] == [0, 4, 8]
    assert all(facts.complete for facts in steps)
    series = partly.facts().series[0]
    assert [facts.step for facts in partly.history(series.key)] == [0, 4, 8]
    assert (series.steps, series.pending_steps) == (3, 0)
    for number, rank in enumerate(series.ranks):
        assert rank.recent.steps == 3
        assert rank.recent.step_ns == sum(int(facts.duration_ns[number]) for facts in timed.values())
        assert rank.recent.stall_ns == rank.totals.stall_ns == sum(f.stall_ns[number].sum() for f in timed.values())
        assert rank.last_step == 8
        assert rank.last_stall_ns == timed[8].stall_ns[number].sum()
        assert rank.effective_prefetch_step == K


def test_an_untimed_step_is_finished_at_once() -> None:
    """Nothing waits for the transfers of an untimed step: it, and those before it, are finished with its end."""
    schedule = without(make(steps=2, ranks=2), lambda step: Untimed.BUSY if step == 1 else Untimed.TIMED)
    ledger = feeding.ledger(schedule)
    first = [records[records["step"] == 0] for records in schedule.records]
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), first[1])
    assert [facts.step for facts in ledger.take_steps()] == [0]
    assert ledger.facts().series[0].pending_steps == 1
    ledger.add(key(1), schedule.records[1][-1:])
    assert ledger.facts().series[0].pending_steps == 0
    assert ledger.take_steps() == ()


def test_a_step_that_some_ranks_left_untimed_has_facts_of_the_others() -> None:
    """Where one rank leaves a step untimed, it counts as not ended there; the others' stall stands, without a cause."""
    schedule = make(ranks=3, steps=6)
    whole, mixed = feeding.ledger(schedule), feeding.ledger(schedule)
    feeding.feed(whole, schedule)

    def timed(_step: int) -> Untimed:
        return Untimed.TIMED

    feeding.feed(mixed, without(schedule, timed, lambda step: Untimed.BUSY if step == 3 else Untimed.TIMED, timed))
    expected, got = whole.take_steps(), mixed.take_steps()
    assert [facts.step for facts in got] == list(range(6))
    assert [facts.complete for facts in got] == [True, True, True, False, True, True]
    third = got[3]
    assert third.ended.tolist() == [True, False, True]
    assert third.duration_ns[1] == 0
    assert third.path is None
    for rank in (0, 2):
        assert np.array_equal(third.stall_ns[rank], expected[3].stall_ns[rank])
        assert third.duration_ns[rank] == expected[3].duration_ns[rank]
    assert not third.entry_known  # whether the third rank came last, nobody knows
    assert third.entry_skew_ns.tolist() == [0, 0, 0]
    assert not third.attributed.any()
    facts = mixed.facts()
    assert [rank.oddities.missing for rank in facts.ranks] == [0, 0, 0]
    assert [rank.recent.steps for rank in facts.series[0].ranks] == [6, 5, 6]
    assert [rank.totals.untimed_steps["busy"] for rank in facts.series[0].ranks] == [0, 1, 0]


def by_hand(*untimed: int, rank: int) -> Records:
    """Return one rank's records of three steps of three layers on two ranks, k = 1.

    A layer is reached every 1000, and needs its weight 50 later. Operation ``n`` is issued by both ranks at
    ``1000 + 1000 n``, ready at ``1100 + 1000 n``, and is the broadcast of position ``(n + 1) % 3``.
    """
    written = []
    for step in range(3):
        begin = 1000 + 3000 * step
        if step not in untimed:
            for position in range(3):
                number = 3 * step + position - 1
                own = position % 2 == rank
                needed = begin + 1000 * position + 50
                flags = (TransferFlag.OWN if own else 0) | (TransferFlag.CROSSES_STEPS if not position else 0)
                flags |= TransferFlag.PREFILLED if number < 0 else 0
                written.append(
                    transfer_record(
                        step=step,
                        position=position,
                        source=position % 2,
                        window=NO_WINDOW if own else 0,
                        issued_ns=1000 + 1000 * number if number >= 0 else needed,
                        ready_ns=1100 + 1000 * number if number >= 0 else needed,
                        wait_begin_ns=needed,
                        wait_end_ns=needed,
                        operation=max(0, number),
                        reach_position=(position - 1) % 3,
                        observed_clock=Observed.EVENT | Clock.DEVICE << 4,
                        flags=flags,
                    )
                )
        instants = {"begin_ns": begin, "arrival_ns": begin, "end_ns": begin + 2900} if step not in untimed else {}
        reason = Untimed.SAMPLED if step in untimed else Untimed.TIMED
        written.append(step_record(step=step, waits=3, untimed=reason, observed_clock=Clock.DEVICE << 4, **instants))
    return np.concatenate(written)


def attributed_after(*untimed: int) -> list[tuple[int, list[bool], list[int]]]:
    """Return step, whether each position's broadcast is attributed, and its transfer, of the steps that were timed."""
    ledger = Ledger(keep_untaken=10)
    schedule = Schedule([info(rank, 2, 3, 1) for rank in range(2)], [], [])
    for rank in range(2):
        ledger.add_rank(schedule.identity(rank))
        ledger.set_series(key(rank), (schedule.infos[rank],))
    for rank in range(2):
        ledger.add(key(rank), by_hand(*untimed, rank=rank))
    return [
        (facts.step, [bool(any(column)) for column in facts.attributed.T], [int(max(ns)) for ns in facts.transfer_ns.T])
        for facts in ledger.take_steps()
    ]


def test_after_untimed_steps_the_first_operation_has_no_known_predecessor() -> None:
    """After a gap the channel's last operation is unknown, so the first transfer is not claimed; all others are."""
    whole = (0, [False, True, True], [0, 100, 100])
    assert attributed_after() == [whole, (1, [True, True, True], [100] * 3), (2, [True, True, True], [100] * 3)]
    assert attributed_after(1) == [whole, (2, [False, True, True], [0, 100, 100])]
    assert attributed_after(0) == [(1, [False, True, True], [0, 100, 100]), (2, [True, True, True], [100] * 3)]
    assert attributed_after(2) == [whole, (1, [True, True, True], [100] * 3)]


def test_a_stall_after_a_gap_is_unattributed() -> None:
    """The stall of the first operation after untimed steps has no cause: the one before may still have been moving."""
    schedule = simulate(ranks=2, layers=4, k=0, steps=5, compute=lambda _r, _s, _p: 10, occupancy=500_000)
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, without(schedule, every(2)))
    unattributed = CAUSES.index(Cause.UNATTRIBUTED)

    def unknown(facts: StepFacts) -> list[int]:
        return [int(ns) for ns in facts.cause_ns[unattributed].sum(axis=0)]

    first, second, third = ledger.take_steps()
    assert unknown(first) == [0, 0, 0, 0]
    for facts in (second, third):
        assert unknown(facts) == [int(facts.stall_ns[:, 0].sum()), 0, 0, 0]
        assert (facts.stall_ns.sum(axis=0) > 400_000).all()
        assert int(facts.cause_ns.sum()) == int(facts.stall_ns.sum())


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), largest=st.sampled_from([1, 3, 20]))
def test_any_interleaving_gives_the_same_facts(seed: int, largest: int) -> None:
    """How batches are cut and interleaved changes no fact, with steps untimed on all ranks or on one."""
    rules = [every(3), lambda step: Untimed.BUSY if step == 6 else every(3)(step), every(3)]
    schedule = without(make(), *rules)
    whole, pieces = feeding.ledger(schedule), feeding.ledger(schedule)
    feeding.feed(whole, schedule)
    feeding.feed_interleaved(pieces, schedule, random.Random(seed), largest)  # noqa: S311
    assert whole.facts() == pieces.facts()
    assert [f.step for f in whole.take_steps()] == [f.step for f in pieces.take_steps()] == [0, 3, 6, 9]


def test_a_lost_step_record_of_a_sampled_step_is_no_lost_transfers() -> None:
    """Where the ranks time every n-th step only, the other steps have no transfers to miss on any rank."""
    schedule = without(make(ranks=2, steps=3), every(3))
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), schedule.records[0])
    ledger.add(key(1), schedule.records[1][schedule.records[1]["step"] != 1])
    ledger.flush()
    assert [rank.oddities.missing for rank in ledger.facts().ranks] == [0, 0]


def test_what_untimed_steps_left_out_is_counted_from_their_records() -> None:
    """Of an untimed step, what no linear waited for is unwaited, aborted is aborted, and step 0 sends k fewer."""
    schedule = make(ranks=3, steps=1)
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), step_record(step=0, waits=0, untimed=Untimed.BUSY))
    ledger.add(key(0), step_record(step=1, waits=5, untimed=Untimed.REPLAY, flags=StepFlag.ABORTED))
    ledger.add(key(0), step_record(step=2, waits=LAYERS, untimed=77))
    totals = ledger.facts().series[0].ranks[0].totals
    assert totals.waits[Outcome.UNTIMED] == sum(totals.waits.values()) == 12
    assert totals.unwaited == 7 + 2
    assert (totals.steps, totals.aborted_steps, totals.unwaited_steps) == (3, 1, 1)
    # Rank 0 keeps layers 0, 3 and 6 of 7; layers 0 and 1 were there before step 0.
    assert (totals.sent, totals.received) == (2 + 3 + 3, 3 + 4 + 4)
    assert totals.bytes == 19 * BYTES
    assert {reason: steps for reason, steps in totals.untimed_steps.items() if steps} == {
        "busy": 1,
        "replay": 1,
        "unknown": 1,
    }
    assert totals.step_duration[Phase.DECODE.name.lower()].count == 0
    ledger.flush()
    assert ledger.take_steps() == ()


@pytest.mark.parametrize("reason", [reason for reason in Untimed if reason is not Untimed.TIMED])
def test_transfers_beside_an_untimed_step_are_not_lost(reason: Untimed) -> None:
    """A peer that died amid a step that the others left untimed has facts of what it recorded."""
    schedule = make(ranks=2, steps=2, occupancy=2_000_000)
    ledger = feeding.ledger(schedule)
    theirs = schedule.records[1]
    ledger.add(key(0), left_untimed(schedule.records[0], lambda step: reason if step == 1 else Untimed.TIMED))
    ledger.add(key(1), theirs[(theirs["step"] == 0) | (theirs["position"] < 4) & (theirs["kind"] == Kind.TRANSFER)])
    ledger.flush()
    last = ledger.take_steps()[-1]
    assert last.step == 1
    assert last.present.sum(axis=1).tolist() == [0, 4]
    totals = ledger.facts().series[0].ranks[1].totals
    assert sum(totals.cause_ns.values()) == totals.stall_ns > 0


def said_of(*which: Callable[[int], Untimed], steps: int = 24) -> Verdict:
    """Return the verdict over a run, hidden if it were timed, some of whose steps are not."""
    schedule = simulate(
        ranks=2, layers=LAYERS, k=1, steps=steps, compute=lambda _r, _s, _p: 1_000_000, occupancy=300_000
    )
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, without(schedule, *which))
    facts = ledger.facts().series[0]
    return verdict(facts, ledger.history(facts.key))


def test_the_verdict_says_how_many_steps_it_is_not_about() -> None:
    """Sampled steps give a note that names the setting, and the verdict is about the timed steps."""
    said = said_of(every(4))
    (about,) = (finding for finding in said.findings if finding.kind == "untimed")
    assert about.level is Level.NOTE
    assert about.sentence.startswith("18 of 24 steps are untimed: 18 not sampled (SWTRACE_TIME_EVERY=1")
    assert about.numbers["sampled"] == 18
    assert said.headline.kind == "hidden"
    assert "untimed" not in {finding.kind for finding in said_of(every(1)).findings}


def test_the_verdict_warns_of_untimed_steps_that_nobody_asked_for() -> None:
    """Steps that are untimed for other reasons than sampling give a warning if they are more than a few."""
    warned = said_of(lambda step: Untimed.BUSY if step % 2 else Untimed.TIMED)
    assert next(finding for finding in warned.findings if finding.kind == "untimed").level is Level.WARNING
    ended = said_of(lambda step: Untimed.UNFINISHED if step == 23 else Untimed.TIMED)
    about = next(finding for finding in ended.findings if finding.kind == "untimed")
    assert about.level is Level.NOTE
    assert "1 because the run ended" in about.sentence


def test_a_run_without_a_timed_step_is_not_judged_and_not_called_bypassed() -> None:
    """With no timed step at all nothing is judged, its waits are known to have been there, and the reason is said."""
    said = said_of(lambda _step: Untimed.NO_ANCHOR)
    assert said.headline.kind == "nothing"
    assert "was timed" in said.headline.sentence
    assert [finding.kind for finding in said.findings] == ["nothing", "untimed"]
    unwaited = step_record(step=24, waits=0, untimed=Untimed.NO_ANCHOR)
    schedule = without(make(ranks=2), lambda _step: Untimed.NO_ANCHOR)
    ledger = feeding.ledger(schedule)
    ledger.add(key(0), np.concatenate((schedule.records[0], unwaited)))
    assert verdict(ledger.facts().series[0]).headline.kind == "nothing"


def test_what_the_host_launched_is_known_and_makes_no_fact() -> None:
    """A record of a launch beside a device's transfer is no oddity, and changes no fact."""
    schedule = make(ranks=2, steps=3)
    plain, beside = feeding.ledger(schedule), feeding.ledger(schedule)
    feeding.feed(plain, schedule)
    launch = transfer_record(kind=Kind.LAUNCH, step=1, position=2, issued_ns=5, wait_begin_ns=6)
    with_launches = [np.concatenate((records[:5], launch, records[5:])) for records in schedule.records]
    feeding.feed(beside, Schedule(schedule.infos, with_launches, schedule.operations))
    assert beside.facts().series == plain.facts().series
    assert [rank.oddities for rank in beside.facts().ranks] == [rank.oddities for rank in plain.facts().ranks]
    assert [rank.records for rank in beside.facts().ranks] == [3 * 8 + 1] * 2
