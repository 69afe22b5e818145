"""What a rank is doing follows from the marks in its ring."""

from __future__ import annotations

import pytest

from swtrace.diagnosis.standing import Doing, blockers, standings
from swtrace.trace.marks import Progress
from swtrace.trace.schema import Collective, Stage
from tests.support.marked_ranks import Group, at, between
from tests.support.schedules import key


@pytest.mark.parametrize(
    ("progress", "doing", "place"),
    [
        (at(40, 3, 1), Doing.COMPUTING, "after layer 3 of step 40"),
        (at(40, 5, 1), Doing.COMPUTING, "after layer 5 of step 40"),
        (at(40, None, 1, Stage.BEGUN), Doing.COMPUTING, "before the first layer of step 40"),
        (at(40, 2, 1, waits=2), Doing.WAITING, "after layer 2 of step 40"),
        (at(40, 5, 1, Stage.UNMARKED), Doing.IDLE, "before the first layer of step 41"),
        (at(40, 4, 1, Stage.UNMARKED), Doing.COMPUTING, "after layer 4 of step 40"),
        (between(39, 1), Doing.IDLE, "before the first layer of step 40"),
    ],
)
def test_a_rank_stands_where_its_progress_says(progress: Progress, doing: Doing, place: str) -> None:
    """A rank computes, waits or idles at its marks' layer and step. An unmarked step ends after its last layer."""
    standing = standings(Group({0: progress}).case().ranks.values())[key(0)]
    assert (standing.doing, standing.place) == (doing, place)


@pytest.mark.parametrize(("layer", "waits", "operation"), [(2, 2, 40 * 6 + 1), (2, 1, 40 * 6), (0, 0, 40 * 6 - 1)])
def test_the_awaited_broadcast_is_the_last_one_issued_for_the_layer(layer: int, waits: int, operation: int) -> None:
    """With a prefetch step of 1, the broadcast for a layer was issued one layer before, maybe in the step before."""
    standing = standings(Group({0: at(40, layer, 1, waits=waits)}).case().ranks.values())[key(0)]
    assert (standing.awaited, standing.step, standing.layer) == (operation, 40, waits)


def test_a_rank_waits_for_those_that_have_not_issued_its_broadcast() -> None:
    """A rank that has issued the broadcast does not block it, even if it stands at an earlier layer."""
    case = Group({0: at(40, 3, 2, waits=3), 1: at(40, 2, 2), 2: at(40, 1, 2)}).case()
    among = standings(case.ranks.values())
    assert blockers(among[key(0)], among) == ((key(2),), ())


def test_a_broadcast_that_needs_only_its_source_waits_for_no_other_rank() -> None:
    """Where a delivery needs only source and receiver, a third rank that is late does not block it."""
    doing = {0: at(40, 2, 2, waits=2), 1: at(40, 0, 2), 2: at(40, 3, 2)}
    among = standings(Group(doing, info={"rendezvous": "source"}).case().ranks.values())
    assert blockers(among[key(0)], among) == ((), ())


def test_compute_begins_anew_after_a_collective() -> None:
    """A rank that has left a collective computes since then, not since its last layer."""
    (rank,) = Group({0: at(40, 2, 9)}, collectives={0: (Collective.BARRIER, 2)}).case().ranks.values()
    assert standings([rank])[key(0)].doing is Doing.IN_COLLECTIVE
