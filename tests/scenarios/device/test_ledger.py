"""What a ledger counts of a device's run, from the records that the runtime really wrote."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from swtrace.ledger import Ledger
from swtrace.ledger.facts import LedgerFacts, Oddities, Outcome
from swtrace.trace.records import STEP
from swtrace.trace.ring_reader import RingReader
from swtrace.trace.schema import RUN_STEPS, Kind, Untimed
from tests.support.device.expected import Durations
from tests.support.device.lone_rank import ForwardDiedError, Program
from tests.support.device.rig import SimulatedRig
from tests.support.device.simulated_device import SimulatedDevice

LAYERS = 7


def counted(program: Program) -> LedgerFacts:
    """Return what a ledger states of the program's ring."""
    assert program.recorder is not None
    ledger = Ledger()
    ledger.add_rank(program.recorder.identity)
    with RingReader.open(program.recorder.path) as reader:
        ledger.set_series(program.recorder.identity.key, reader.series())
        ledger.add(program.recorder.identity.key, reader.read())
    ledger.rank_ended(program.recorder.identity.key)
    return ledger.facts()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("every", [1, 3, 1 << 20])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_every_step_wait_and_broadcast_is_counted_once(tmp_path: Path, k: int, every: int, seed: int) -> None:
    """Timed, sampled, replayed, too far ahead or dead: the counts are the runtime's own, and nothing is odd."""
    chance = random.Random(f"{k} {every} {seed}")  # noqa: S311 - reproducible runs
    rig = SimulatedRig(SimulatedDevice())
    durations = Durations((20_000,) * LAYERS, (20_000,) * LAYERS, (50_000,) * LAYERS)
    program = Program(rig, tmp_path, durations, prefetch_step=k, rank=seed % 2, time_every=every)
    program.capture()
    died = 0
    for _ in range(20):
        kind = chance.choice(["eager", "eager", "replay", "died", "caught up"])
        if kind == "eager":
            program.eager(chance.randint(1, 6))
        elif kind == "replay":
            program.replay(chance.randint(1, 6))
        elif kind == "died":
            with pytest.raises(ForwardDiedError), program.series.step():
                program.forward(stop_at=chance.randrange(1, LAYERS))
            died += 1
        else:
            rig.catch_up()
    rig.catch_up()
    program.close()

    records = program.records()
    steps = records[records["kind"] == Kind.STEP].view(STEP)
    facts = counted(program)
    (rank,) = facts.ranks
    assert rank.oddities == Oddities(duplicate=0, late=0, missing=0, unknown=0, wild=0, impossible=0, evicted_steps=0)
    assert rank.records == len(records)
    totals = facts.series[0].ranks[0].totals
    statistics = program.series.statistics()
    assert totals.steps == len(steps) == statistics.steps
    assert totals.aborted_steps == died
    assert sum(totals.waits.values()) == int(steps["waits"].sum())
    assert totals.unwaited == len(steps) * LAYERS - int(steps["waits"].sum())
    assert totals.waits[Outcome.UNTIMED] == int(steps["waits"][steps["untimed"] != 0].sum())
    assert totals.untimed_steps == {
        reason.name.lower(): int((steps["untimed"] == reason).sum()) for reason in Untimed if reason
    }
    assert totals.sent + totals.received == len(steps) * LAYERS - k + totals.open
    assert totals.open in {0, k}
    sent = sum(program.owned) * len(steps) - sum(program.owned[:k])
    assert totals.sent - sent in {0, sum(program.owned[:k])}
    timed = int(np.count_nonzero(steps["untimed"] == 0))
    assert sum(durations.count for durations in totals.step_duration.values()) == timed
    if every == 1 << 20:
        assert timed == np.count_nonzero(steps["untimed"][:RUN_STEPS] == 0)
