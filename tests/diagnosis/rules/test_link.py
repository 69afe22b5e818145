"""Ranks that receive or send slowly are named."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from swtrace.diagnosis.finding import Level
from swtrace.ledger.planning.repair import Part, Repair
from tests.support.schedules import simulate
from tests.support.verdicts import even, finding, judge, judged, kinds, pulled


@pytest.mark.parametrize("queue", ["serial", "receiver"])
def test_a_rank_with_a_slow_link_is_named(queue: str) -> None:
    """Transfers to it take longer, whoever sends them; transfers from it do not."""
    said = judged(
        occupancy=400_000,
        slower=lambda receiver, _source: 1_200_000 * (receiver == 1),
        queue=queue,
        rendezvous="source",
    )

    slow = finding(said, "slow_link")
    assert slow.ranks == (1,)
    assert slow.level is Level.BAD
    assert slow.repair == Repair(Part.LINK, (1,))
    assert slow.saving.share > 0.05
    assert slow.sentence.startswith(
        "Transfers to rank 1 take 4.0 times as long as the same ones to the other ranks: 1.60 ms instead of 0.40 ms"
    )
    assert "slow_source" not in kinds(said)


def test_a_slow_source_is_named() -> None:
    """Transfers from it take longer, whoever receives them."""
    said = judged(occupancy=400_000, slower=lambda _receiver, source: 2_000_000 * (source == 2), queue="receiver")

    slow = finding(said, "slow_source")
    assert slow.ranks == (2,)
    assert slow.repair == Repair(Part.SOURCE, (2,))
    assert slow.saving.share > 0.1
    assert "Transfers from rank 2 take 6.0 times as long as from the other ranks" in slow.sentence
    assert "slow_link" not in kinds(said)


def test_of_two_ranks_a_direction_is_named() -> None:
    """What one sends slowly, the other receives slowly: this is said once."""
    schedule = simulate(
        ranks=2,
        layers=12,
        k=1,
        steps=24,
        compute=even(1_000_000),
        occupancy=400_000,
        slower=lambda receiver, _source: 2_000_000 * (receiver == 0),
        queue="receiver",
    )
    said = judge(schedule)

    slow = finding(said, "slow_link")
    assert slow.sentence.startswith("Transfers from rank 1 to rank 0 take 6.0 times as long as in the other direction")
    assert "slow_source" not in kinds(said)


def _next(longer: Iterator[int], _receiver: int, _source: int) -> int:
    return next(longer)


@pytest.mark.parametrize("ranks", [2, 3])
def test_transfers_that_vary_alike_name_nobody(ranks: int) -> None:
    """Most transfers are short and some are long, to each rank: the long ones of a rank are no slow link."""
    for seed in range(8):
        longer = iter(np.random.default_rng(seed).exponential(1_500_000, 24 * 12 * ranks).astype(int).tolist())
        schedule = simulate(
            ranks=ranks,
            layers=12,
            k=1,
            steps=24,
            compute=even(1_000_000),
            occupancy=400_000,
            slower=partial(_next, longer),
            queue="receiver",
        )
        assert not {"slow_link", "slow_source"} & kinds(judge(schedule)), f"seed {seed}"


def test_a_slow_link_that_hides_is_a_note() -> None:
    """A repair would save nothing."""
    said = judged(occupancy=200_000, slower=lambda receiver, _source: 300_000 * (receiver == 1), queue="receiver")

    slow = finding(said, "slow_link")
    assert slow.level is Level.NOTE
    assert slow.sentence.endswith("They hide all the same.")
    assert slow.saving.share < 0.02


def test_an_owner_whose_copies_take_longer_is_named_in_a_pull_series() -> None:
    """Whoever reads from it; readers are not compared with each other."""
    said = pulled(copy=lambda _rank, _step, position: 300_000 + 1_500_000 * (position % 3 == 2))

    assert finding(said, "slow_source").ranks == (2,)
    assert "slow_link" not in kinds(said)
