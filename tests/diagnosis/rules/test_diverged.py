"""Ranks further apart than lockstep allows are named at once."""

from __future__ import annotations

import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Level
from tests.support.feeding import ledger
from tests.support.marked_ranks import NOW_NS, Group, S, at, between
from tests.support.schedules import key, simulate
from tests.support.verdicts import even


def test_ranks_at_different_steps_are_named_with_both() -> None:
    """A rank that was restarted alone counts from 0 while the others go on."""
    (finding,) = Group({0: at(4210, 3, 0.1), 1: at(3, 2, 0.1), 2: at(4210, 2, 0.1)}).findings("diverged")
    assert finding.level is Level.BAD
    assert finding.ranks == (1, 0)
    assert finding.sentence == (
        "Ranks 1 and 0 no longer run the same steps: rank 1 is at step 3, rank 0 at step 4,210."
    )
    assert finding.evidence == (
        "Rank 1 has issued 21 broadcasts and is in its own compute after layer 2 of step 3.",
        "Rank 0 has issued 25,264 broadcasts and is in its own compute after layer 3 of step 4,210.",
    )


def test_a_rank_may_be_ahead_by_the_steps_that_the_series_allows() -> None:
    """Between the layers of one rank, another one may run ahead, up to the other's next layer."""
    assert not Group({0: at(41, 3, 0.1, waits=3), 1: between(39, 0.1), 2: at(40, 2, 0.1)}).findings("diverged")


def test_a_ring_that_was_read_later_may_be_further_ahead() -> None:
    """If one ring was read seconds before another one, its rank has gone on since then."""
    group = Group({0: at(340, 3, 0.1), 1: at(40, 2, 0.1)})
    assert group.findings("diverged")
    group.changes = {1: {"taken_ns": NOW_NS - 5 * S}}
    assert not group.findings("diverged")


@pytest.mark.parametrize("info", [{"rendezvous": "receiver"}, {"transport": "none"}], ids=["pull", "observed"])
def test_ranks_that_run_their_own_steps_do_not_diverge(info: dict[str, str]) -> None:
    """Ranks that pull, or that only observe, may run any steps."""
    assert not Group({0: at(4210, 3, 0.1), 1: at(3, 2, 0.1)}, ranks=2, info=info).findings("diverged")


def test_a_rank_that_has_ended_does_not_diverge() -> None:
    """The steps of a rank that has ended stay where they were."""
    group = Group({0: at(4210, 3, 0.1), 1: at(3, 2, 0.1)}, changes={1: {"alive": False, "closed": True}})
    assert not group.findings("diverged")


def test_a_rank_that_numbers_its_steps_otherwise_is_named() -> None:
    """A rank whose step number is one ahead has skipped a step: its broadcasts have the numbers of the step before."""
    schedule = simulate(ranks=3, layers=6, k=1, steps=12, compute=even(1_000_000), occupancy=100_000)
    made = ledger(schedule)
    for rank, records in enumerate(schedule.records):
        if rank == 2:
            records["step"][records["step"] > 4] += 1
        made.add(key(rank), records)
    made.flush()
    (facts,) = made.facts().series
    said = verdict(facts, made.history(facts.key)).headline
    assert (said.kind, said.ranks) == ("diverged", (2,))
    assert said.evidence == (
        "Rank 2 has issued 6 fewer broadcasts than its step number says, compared with the other ranks: 1 steps.",
    )
