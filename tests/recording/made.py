"""Recordings for tests: of simulated schedules, without rings, and of rings that this process writes."""

from __future__ import annotations

import random
from pathlib import Path

from ledger.schedules import Schedule, key, simulate

from swtrace.ledger import Ledger
from swtrace.recording import Recording
from swtrace.recording.capture import TellingLedger
from swtrace.recording.replay import Replayed, replay
from swtrace.recording.writer import RecordingWriter


def schedule(
    *, ranks: int = 3, steps: int = 40, seed: int = 1, compute: int = 90, occupancy: int = 100_000
) -> Schedule:
    """Return a run of which about half of the waits stall; ``compute`` in us."""
    chance = random.Random(seed)  # noqa: S311 - a reproducible schedule
    return simulate(
        ranks=ranks,
        layers=6,
        k=1,
        steps=steps,
        compute=lambda _rank, _step, _position: chance.randrange(compute * 500, compute * 1500),
        occupancy=occupancy,
        wake=1_000,
    )


def record(
    path: Path, made: Schedule, *, chance: random.Random | None = None, largest: int = 50, **options: object
) -> Ledger:
    """Record a schedule in batches of random sizes from random ranks; return the ledger that took part."""
    chance = chance or random.Random(2)  # noqa: S311 - as above
    with RecordingWriter(path, **options) as writer:  # type: ignore[arg-type]
        ledger = TellingLedger(writer)
        tell(ledger, made, chance, largest)
    ledger.flush()
    return ledger


def tell(ledger: Ledger, made: Schedule, chance: random.Random, largest: int) -> None:
    """Tell a ledger a whole schedule."""
    for rank, info in enumerate(made.infos):
        ledger.add_rank(made.identity(rank))
        ledger.set_series(key(rank), (info,))
    at = [0] * len(made.records)
    while unread := [rank for rank, records in enumerate(made.records) if at[rank] < len(records)]:
        rank = chance.choice(unread)
        size = chance.randint(1, largest)
        ledger.add(key(rank), made.records[rank][at[rank] : at[rank] + size])
        at[rank] += size
        if at[rank] >= len(made.records[rank]):
            ledger.rank_ended(key(rank))


def replayed(path: Path | list[Path], *, salvage: bool = False) -> Replayed:
    """Replay a whole recording."""
    with Recording.open(path, salvage=salvage) as recording:
        return replay(recording)
