"""The facts of a pull series, whose ranks run steps of their own, against a simulation of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from swtrace.ledger import Ledger
from swtrace.ledger.facts import CAUSES, Cause, Outcome
from swtrace.observing import watch_rings
from swtrace.series import RankGroup, Series
from swtrace.series.recording import process_recorder
from swtrace.settings import Settings
from swtrace.trace.schema import Kind
from tests.support.feeding import feed_interleaved, ledger
from tests.support.replicas import run_replicas
from tests.support.schedules import BYTES, key
from tests.support.simulated_pull import PullSchedule, simulate_pull
from tests.support.stacks import Stack, true_weights

_LAYERS, _K = 7, 2


def _random(seed: int) -> PullSchedule:
    """Return four ranks: one ten times as fast as the next, one that starts late, one that is killed in a step."""
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    pace = (1, 10, 3, 5)
    return simulate_pull(
        layers=_LAYERS,
        k=chance.randrange(4),
        steps=[chance.randint(60, 80), chance.randint(5, 8), chance.randint(10, 20), chance.randint(3, 12)],
        compute=lambda rank, _step, _position: pace[rank] * chance.randrange(50_000, 150_000),
        copy=lambda _rank, _step, _position: chance.randrange(20_000, 700_000),
        gap=lambda _rank, _step: chance.choice((0, 0, 5_000, 40_000_000)),
        start=(0, 0, chance.randrange(10**9), 0),
        killed={3: chance.randint(1, _LAYERS)},
        wake=chance.randrange(3_000),
    )


@pytest.mark.parametrize("seed", range(8))
def test_every_stall_is_attributed_exactly(seed: int) -> None:
    """Each wait's stall, backlog and transfer part is the simulated one, and nothing else explains it."""
    schedule = _random(seed)
    made = ledger(schedule)
    feed_interleaved(made, schedule, random.Random(seed), 40)  # noqa: S311
    found = {(step.of_rank, step.step): step for step in made.take_steps()}
    assert len(schedule.copies) > 100
    for copy in schedule.copies:
        step = found[copy.rank, copy.step]
        at = copy.rank, copy.position
        causes = {cause: ns for cause, ns in zip(CAUSES, step.cause_ns[:, *at].tolist(), strict=True) if ns}
        expected = {Cause.BACKLOG: copy.backlog_ns, Cause.TRANSFER: copy.stall_ns - copy.backlog_ns}
        assert int(step.stall_ns[at]) == copy.stall_ns
        assert causes == {cause: ns for cause, ns in expected.items() if ns}
        assert int(step.transfer_ns[at]) == copy.ready_ns - copy.start_ns
        assert int(step.last_issue_ns[at]) == copy.issued_ns
        assert int(step.late_rank[at]) == copy.rank


@pytest.mark.parametrize("seed", range(8))
def test_totals_are_each_rank_s_own(seed: int) -> None:
    """Steps, waits, bytes and stall of each rank are those that it recorded; owners send nothing."""
    schedule = _random(seed)
    made = ledger(schedule)
    feed_interleaved(made, schedule, random.Random(seed), 40)  # noqa: S311
    (facts,) = made.facts().series
    ended = Counter(step.of_rank for step in made.take_steps() if step.ended.any())
    for rank in facts.ranks:
        number, totals = rank.rank.rank, rank.totals
        theirs = [copy for copy in schedule.copies if copy.rank == number]
        records = schedule.records[number]
        received = int(((records["kind"] == 1) & (records["flags"] & 5 == 0)).sum())
        assert totals.steps == ended[number]
        assert totals.received == received
        assert (totals.sent, totals.bytes, totals.sent_duration.count) == (0, received * BYTES, 0)
        if number != 3:
            assert totals.stall_ns == sum(copy.stall_ns for copy in theirs)
            assert totals.waits[Outcome.ON_TIME] + totals.waits[Outcome.STALLED] == len(theirs)
        assert sum(totals.cause_ns.values()) == totals.stall_ns


@pytest.mark.parametrize("seed", range(8))
def test_a_step_is_finished_as_soon_as_its_rank_has_ended_it(seed: int) -> None:
    """At every moment, exactly the steps that a rank has ended are finished, whatever the others do or if they end."""
    schedule, chance = _random(seed), random.Random(seed)  # noqa: S311 - reproducible
    made = ledger(schedule, max_cells=1)
    ended, finished, at = Counter[int](), Counter[int](), [0] * 4
    while unread := [rank for rank in range(4) if at[rank] < len(schedule.records[rank])]:
        rank = chance.choice(unread)
        batch = schedule.records[rank][at[rank] : at[rank] + chance.randint(1, 30)]
        made.add(key(rank), batch)
        at[rank] += len(batch)
        ended[rank] += int((batch["kind"] == Kind.STEP).sum())
        finished.update(step.of_rank for step in made.take_steps() if step.of_rank is not None)
        assert finished == +ended
        if at[rank] == len(schedule.records[rank]):
            made.rank_ended(key(rank))
            left = [step.ended.any() for step in made.take_steps()]
            assert left == ([False] if rank == 3 else [])  # the step in which rank 3 was killed
    assert [rank.oddities.evicted_steps for rank in made.facts().ranks] == [0] * 4
    assert [rank.oddities.late for rank in made.facts().ranks] == [0] * 4


def test_no_step_waits_for_another_rank() -> None:
    """A rank's step is finished with the rank's own STEP record, whatever the other ranks have recorded."""
    schedule = simulate_pull(layers=_LAYERS, k=1, steps=[20, 1, 3], compute=lambda *_: 1_000)
    made = ledger(schedule)
    made.add(key(0), schedule.records[0])
    finished = made.take_steps()
    assert [(step.of_rank, step.step) for step in finished] == [(0, number) for number in range(20)]
    assert all(step.complete for step in finished)


def test_a_rank_ahead_of_the_others_evicts_nothing() -> None:
    """However far ranks are apart, no step is finished early to make room."""
    schedule = simulate_pull(layers=_LAYERS, k=1, steps=[400, 1, 40], compute=lambda *_: 1_000)
    made = ledger(schedule, max_cells=4 * _LAYERS)
    feed_interleaved(made, schedule, random.Random(1), 30)  # noqa: S311
    facts = made.facts()
    oddities = [replace(rank.oddities, missing=0) for rank in facts.ranks]
    assert [each.evicted_steps for each in oddities] == [0, 0, 0]
    assert len(made.take_steps()) == 441


def test_ranks_are_not_compared() -> None:
    """A pull series has no skew, no entry skew, no straggler and no alignment, however late a rank is."""
    slow = 3
    schedule = simulate_pull(
        layers=_LAYERS,
        k=1,
        steps=[40, 40],
        compute=lambda rank, _step, _position: 100_000 * (slow if rank else 1),
        copy=lambda *_: 200_000,
        start=(0, 50_000),
    )
    made = ledger(schedule, epsilon_ns=0)
    feed_interleaved(made, schedule, random.Random(1), 30)  # noqa: S311
    (facts,) = made.facts().series
    assert (facts.stragglers, facts.alignment, facts.impossible_steps) == ((), (), 0)
    assert all(rank.recent.skew_ns == 0 and rank.recent.excess_ns == 0 for rank in facts.ranks)
    assert not any(step.entry_known or step.entry_skew_ns.any() for step in made.take_steps())


def test_a_copy_may_be_ready_before_its_owner_reaches_that_step() -> None:
    """A rank far ahead of a layer's owner contradicts no clock."""
    schedule = simulate_pull(layers=_LAYERS, k=1, steps=[30, 30], compute=lambda *_: 100_000, start=(0, 10**10))
    made = ledger(schedule)
    feed_interleaved(made, schedule, random.Random(1), 30)  # noqa: S311
    assert all(rank.oddities.impossible == 0 for rank in made.facts().ranks)
    assert all(step.comparable and step.attributed[step.receiver].all() for step in made.take_steps())


def test_a_step_has_the_shape_of_the_group() -> None:
    """A step of rank 1 has nothing on other ranks, and its path is rank 1's."""
    schedule = simulate_pull(layers=_LAYERS, k=1, steps=[1, 3, 1], compute=lambda *_: 100_000, copy=lambda *_: 150_000)
    made = ledger(schedule)
    made.add(key(1), schedule.records[1])
    last = made.take_steps()[-1]
    assert last.present.shape == (3, _LAYERS)
    assert last.ended.tolist() == [False, True, False]
    assert [each and each.rank_in_group for each in last.infos] == [None, 1, None]
    assert last.path is not None
    assert last.path.last_rank == 1
    assert np.flatnonzero(last.path.compute_ns).tolist() == [1]
    assert last.path.length_ns == int(last.duration_ns[1])


def test_a_rank_that_left_is_forgotten_alone() -> None:
    """Forgetting a rank leaves the others' facts; a rank that comes back counts from zero."""
    schedule = simulate_pull(layers=_LAYERS, k=1, steps=[5, 5], compute=lambda *_: 1_000)
    made = ledger(schedule)
    for rank in range(2):
        made.add(key(rank), schedule.records[rank])
    made.forget(key(1))
    (facts,) = made.facts().series
    assert [(rank.rank.rank, rank.totals.steps) for rank in facts.ranks] == [(0, 5)]
    _come_back(made, schedule)
    (facts,) = made.facts().series
    assert [(rank.rank.rank, rank.totals.steps) for rank in facts.ranks] == [(0, 5), (1, 5)]
    assert len(made.history(facts.key)) == 10


def _come_back(made: Ledger, schedule: PullSchedule) -> None:
    made.add_rank(replace(schedule.identity(1), start_time_ns=2))
    made.set_series(key(1), (schedule.infos[1],))
    made.add(key(1), schedule.records[1])


def test_history_is_in_order_of_time() -> None:
    """The steps of all ranks follow each other as they ended, not by number."""
    schedule = simulate_pull(
        layers=_LAYERS, k=1, steps=[30, 3], compute=lambda rank, _step, _position: 10_000 * (10 if rank else 1)
    )
    made = ledger(schedule)
    feed_interleaved(made, schedule, random.Random(1), 30)  # noqa: S311
    (facts,) = made.facts().series
    ends = [int(step.end_ns.max()) for step in made.history(facts.key)]
    assert ends == sorted(ends)
    assert len(ends) == 33


def _serve(rank: int, folder: str, steps: tuple[int, ...]) -> int:
    """Run so many steps on a rank that pulls, and record them."""
    settings = Settings(directory=Path(folder), run_id="real", timeout_s=60.0, time_every=1)
    group = RankGroup(tuple(range(len(steps))), rank)
    series = Series("s", group, 0, 6, prefetch_step=2, recorder=process_recorder, settings=settings)
    stack = Stack(series, 0, true_weights(6))
    series.post_process()
    for step in range(steps[rank]):
        with series.step():
            stack.forward(step)
    series.close()
    return rank


def test_the_facts_of_real_ranks_that_pull_are_their_own(tmp_path: Path) -> None:
    """Of real processes, each rank's steps, copies and causes are its own; no stall waits for another rank."""
    steps = (60, 6, 1)
    run_replicas(3, _serve, str(tmp_path), steps)
    seen = watch_rings(tmp_path, keep_steps=True)
    seen.drain()
    (facts,) = seen.observe().facts.series
    finished = seen.take_steps()
    seen.close()
    assert [rank.totals.steps for rank in facts.ranks] == list(steps)
    assert [(rank.info.transport, rank.info.kind, rank.totals.sent) for rank in facts.ranks] == [
        ("pull", "pull", 0)
    ] * 3
    assert facts.pending_steps == 0
    for rank in facts.ranks:
        causes = {cause for cause, ns in rank.totals.cause_ns.items() if ns}
        assert causes <= {Cause.BACKLOG, Cause.TRANSFER}
        assert sum(rank.totals.cause_ns.values()) == rank.totals.stall_ns
        mine = [step for step in finished if step.only_rank == rank.rank]
        assert [step.step for step in mine] == list(range(steps[rank.info.rank_in_group]))
        assert all(step.complete and step.attributed.sum() == step.receiver.sum() for step in mine)
