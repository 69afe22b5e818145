"""The critical path: its parts sum to its length, and the excess names the rank at the root."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtrace.ledger.facts import CAUSES, Cause, LedgerFacts, StepFacts
from tests.support import feeding
from tests.support.schedules import key, simulate

MS = 1_000_000


def run(compute: Callable[[int, int, int], int], **how: int) -> tuple[LedgerFacts, tuple[StepFacts, ...]]:
    schedule = simulate(**{"ranks": 3, "layers": 9, "k": 1, "steps": 16, "occupancy": 100_000} | how, compute=compute)  # type: ignore[arg-type]
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    return ledger.facts(), ledger.take_steps()


@settings(max_examples=80)
@given(
    ranks=st.integers(2, 4),
    layers=st.integers(3, 9),
    k=st.integers(0, 3),
    rendezvous=st.sampled_from(["source", "group"]),
    queue=st.sampled_from(["serial", "receiver", "none"]),
    occupancy=st.integers(1, 4000),
    seed=st.integers(0, 1 << 30),
)
def test_parts_of_the_path_sum_to_the_step(
    *, ranks: int, layers: int, k: int, rendezvous: str, queue: str, occupancy: int, seed: int
) -> None:
    """Compute, entry, transfer and wake on the path add up to first arrival .. last end, to the nanosecond."""
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    schedule = simulate(
        ranks=ranks,
        layers=layers,
        k=min(k, layers - 2),
        steps=5,
        compute=lambda _r, _s, _p: chance.randrange(0, 3000),
        gap=lambda _r, _s: chance.randrange(0, 4000),
        latency=chance.randrange(0, 300),
        occupancy=occupancy,
        rendezvous=rendezvous,
        queue=queue,
        wake=chance.randrange(0, 60),
    )
    ledger = feeding.ledger(schedule, epsilon_ns=1)
    feeding.feed(ledger, schedule)
    for facts in ledger.take_steps():
        path = facts.path
        assert path is not None
        assert path.length_ns == facts.end_ns.max() - facts.arrival_ns.min()
        parts = (path.compute_ns.sum(), path.entry_ns.sum(), path.transfer_ns, path.wake_ns)
        assert min(parts) >= 0
        assert sum(parts) == path.length_ns
        assert (path.excess_ns <= path.compute_ns).all()


@pytest.mark.parametrize("slow", [0, 1, 2])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_straggler_is_named(slow: int, k: int) -> None:
    """A rank whose every layer takes longer is named, and no other."""
    facts, _ = run(lambda rank, _s, _p: 3 * MS if rank == slow else MS, k=k)
    (straggler,) = facts.series[0].stragglers
    assert straggler.ranks == (key(slow),)
    assert straggler.excess_ns == pytest.approx(9 * 2 * MS, rel=0.01)


def test_the_root_is_named_not_the_messenger() -> None:
    """Rank 1 issues late only because it waited for rank 0: rank 2's stall is skew of rank 1, the path names rank 0."""
    facts, steps = run(lambda rank, _s, p: 6 * MS if (rank, p) == (0, 2) else MS, k=0)
    last = steps[-1]
    skew = last.cause_ns[CAUSES.index(Cause.SKEW)]
    messenger = [(p, int(last.late_rank[2, p])) for p in range(9) if skew[2, p] > MS]
    assert messenger
    assert {late for _, late in messenger} == {0, 1} or {late for _, late in messenger} == {0}
    (straggler,) = facts.series[0].stragglers
    assert straggler.ranks == (key(0),)


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 30), ranks=st.integers(2, 4))
def test_balanced_ranks_name_nobody(seed: int, ranks: int) -> None:
    """If all ranks' computes vary alike, no rank is named, even with much stall."""
    chance = random.Random(seed)  # noqa: S311
    facts, _ = run(
        lambda _r, _s, _p: chance.randrange(MS, 2 * MS),
        ranks=ranks,
        steps=40,
        occupancy=chance.choice([MS // 10, 2 * MS]),
    )
    assert facts.series[0].stragglers == ()


def test_one_slow_step_names_nobody() -> None:
    """A single pause, however long, makes no straggler."""
    facts, steps = run(lambda rank, step, p: 500 * MS if (rank, step, p) == (1, 7, 3) else MS)
    assert steps[7].path is not None
    assert steps[7].path.excess_ns[1] > 400 * MS
    assert facts.series[0].stragglers == ()


def test_a_slow_channel_is_no_ranks_fault() -> None:
    """Where transfers are longer than computes, the path is transfer, and no rank is named."""
    facts, steps = run(lambda _r, _s, _p: MS, occupancy=4 * MS)
    assert facts.series[0].stragglers == ()
    path = steps[-1].path
    assert path is not None
    assert path.transfer_ns > 0.8 * path.length_ns


def test_late_entry_is_entry_on_the_path() -> None:
    """A rank that always enters late shows as entry on the path, not as excess compute."""
    schedule = simulate(
        ranks=2,
        layers=6,
        k=1,
        steps=8,
        compute=lambda _r, _s, _p: MS,
        gap=lambda rank, _s: 15 * MS if rank == 1 else 0,
        occupancy=100_000,
    )
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    path = ledger.take_steps()[-1].path
    assert path is not None
    assert path.entry_ns[1] > 10 * MS
    assert path.excess_ns.max() < MS
