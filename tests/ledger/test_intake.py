"""Batches of many ranks at once give the facts of single ones."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from swtrace.ledger import Ledger
from tests.support import feeding
from tests.support.random_steps import random_schedule, same_step
from tests.support.schedules import key


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30))
def test_batches_of_many_ranks_at_once_give_the_same_facts(seed: int) -> None:
    """Processing the ranks' batches together gives the same facts as one after the other."""
    chance = random.Random(seed)  # noqa: S311 - reproducible schedules
    schedule = random_schedule(steps=30)
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
    assert all(same_step(a, b) for a, b in zip(got, expected, strict=True))
    assert together.facts() == apart.facts()


def test_batches_of_ranks_whose_tables_differ_find_their_series() -> None:
    """Ranks may name two series by other indexes and lengths: each record goes where its own rank's table says."""
    one, two = random_schedule(), random_schedule(seed=2)
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
            ledger.set_series(
                key(rank), series if rank else (replace(series[0], layers=series[0].layers[:6]), series[1])
            )
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
