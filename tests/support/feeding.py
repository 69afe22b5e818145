"""Feed a ledger with a schedule's records: in order, or in any interleaving of the ranks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from swtrace.ledger import Ledger
from tests.support.schedules import Schedule, key


def ledger(
    schedule: Schedule,
    *,
    ranks: Sequence[int] | None = None,
    epsilon_ns: int = 20_000,
    max_cells: int = 1 << 21,
    history: Sequence[int] = (),
) -> Ledger:
    """Return a ledger that knows the schedule's ranks (or some of them), and how many records of each are history."""
    made = Ledger(epsilon_ns=epsilon_ns, keep_untaken=10_000, max_cells=max_cells)
    for rank in range(len(schedule.infos)) if ranks is None else ranks:
        made.add_rank(schedule.identity(rank), history=history[rank] if history else 0)
        made.set_series(key(rank), (schedule.infos[rank],))
    return made


def feed(made: Ledger, schedule: Schedule, *, ranks: Sequence[int] | None = None) -> None:
    """Add all records, one rank after the other, and finish."""
    for rank in range(len(schedule.infos)) if ranks is None else ranks:
        made.add(key(rank), schedule.records[rank])
    made.flush()


def feed_interleaved(made: Ledger, schedule: Schedule, chance: random.Random, largest: int) -> None:
    """Add all records in batches of random sizes from random ranks, each rank in its own order."""
    at = [0] * len(schedule.records)
    while open_ranks := [r for r, records in enumerate(schedule.records) if at[r] < len(records)]:
        rank = chance.choice(open_ranks)
        size = chance.randint(1, largest)
        made.add(key(rank), schedule.records[rank][at[rank] : at[rank] + size])
        at[rank] += size
    made.flush()
