"""How many ranks read from one owner at once, against a simulation that knows every copy."""

from __future__ import annotations

import random

from swtrace.ledger.facts import StepFacts
from swtrace.ledger.readers import Readers
from tests.support.feeding import feed_interleaved, ledger
from tests.support.simulated_pull import PullSchedule, simulate_pull

_LAYERS = 8


def _schedule(steps: tuple[int, ...] = (30, 12, 9, 5)) -> PullSchedule:
    chance = random.Random(3)  # noqa: S311 - a reproducible schedule
    return simulate_pull(
        layers=_LAYERS,
        k=2,
        steps=steps,
        compute=lambda rank, _step, _position: (1 + rank) * chance.randrange(50_000, 150_000),
        copy=lambda *_: chance.randrange(50_000, 250_000),
        gap=lambda *_: chance.randrange(300_000),
        start=(0, 100_000, 0, 3_000_000),
    )


def _steps(schedule: PullSchedule) -> tuple[StepFacts, ...]:
    made = ledger(schedule)
    feed_interleaved(made, schedule, random.Random(1), 40)  # noqa: S311
    return made.history(made.facts().series[0].key)


def _true(schedule: PullSchedule, step: StepFacts, position: int) -> int:
    """Return how many ranks read from the owner while a step's copy moved."""
    (copy,) = (
        each for each in schedule.copies if (each.rank, each.step, each.position) == (step.of_rank, step.step, position)
    )
    return len({
        move.rank
        for move in schedule.moves
        if move.owner == copy.owner and move.start_ns < copy.ready_ns and move.ready_ns > copy.start_ns
    })  # fmt: skip


def test_counts_are_the_true_ones() -> None:
    """Every count that is stated is the number of ranks that really read at once."""
    schedule = _schedule()
    steps = _steps(schedule)
    readers = Readers(steps, range(4))
    stated = 0
    seen = set()
    for step in steps:
        for position, count in enumerate(readers.of(step).tolist()):
            if count:
                assert count == _true(schedule, step, position)
                stated += 1
                seen.add(count)
    assert stated > 60
    assert seen >= {1, 2, 3}


def test_nothing_is_stated_where_a_rank_is_unknown() -> None:
    """Without the records of some of a rank's steps, copies meanwhile have no count; all others keep theirs."""
    schedule = _schedule((30, 40, 12, 4))
    steps = _steps(schedule)
    gap = [step for step in steps if step.of_rank == 1 and 10 <= step.step < 20]
    begin, end = int(gap[0].begin_ns[1]), int(gap[-1].end_ns[1])
    whole = Readers(steps, range(3))
    readers = Readers([step for step in steps if not (step.of_rank == 1 and 10 <= step.step < 20)], range(3))
    inside = outside = 0
    for step in steps:
        if step.of_rank not in {0, 2}:
            continue
        for before, count, ready in zip(
            whole.of(step).tolist(), readers.of(step).tolist(), step.ready_ns[step.of_rank].tolist(), strict=True
        ):
            if begin <= ready <= end:
                assert count == 0
                inside += before > 0
            elif count:
                assert count == before
                outside += 1
    assert inside > 20
    assert outside > 20
