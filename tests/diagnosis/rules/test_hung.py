"""A rank that hangs is named with the chain of those that wait for it; slow and idle ranks are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.finding import Finding, Level
from swtrace.trace.marks import Marks, Progress
from swtrace.trace.schema import Collective, Stage
from tests.support.marked_ranks import NOW_NS, Group, S, at, between

WAITING = {0: at(40, 3, 3.4, waits=3), 2: at(40, 3, 3.3, waits=3)}
"""Two ranks that wait for layer 3, which rank 0 stores; its broadcast needs rank 1."""


def hung(group: Group) -> Finding:
    """Return the only finding about hung ranks."""
    (finding,) = group.findings("hung")
    return finding


def test_a_rank_in_its_own_compute_is_named_with_those_that_wait() -> None:
    """The finding names rank, layer, step and age, and says who waits for which layer since when."""
    finding = hung(Group({1: at(40, 1, 3.5), 2: WAITING[2]}, ranks=3))
    assert finding.level is Level.BAD
    assert finding.sentence == "Rank 1 hangs in its own compute after layer 1 of step 40, for 3.5 s."
    assert (finding.ranks, finding.layer, finding.since_step, finding.confidence) == ((1,), 1, 40, 1.0)
    assert finding.since_ns == NOW_NS - int(3.5 * S) + 5 * S
    assert finding.evidence == (
        "Rank 2 is waiting for layer 3 of step 40 from rank 0, for 3.3 s; rank 1 has not issued it.",
    )


def test_the_chain_ends_at_the_rank_that_waits_for_no_other() -> None:
    """Rank 0 waits for rank 1, which waits for rank 2: rank 2 is named, and both others are evidence."""
    doing = {0: at(40, 3, 3, waits=3), 1: at(40, 1, 3, waits=1), 2: at(39, 5, 3.1)}
    finding = hung(Group(doing))
    assert finding.ranks == (2,)
    assert [sentence[:6] for sentence in finding.evidence] == ["Rank 0", "Rank 1"]


def test_a_rank_that_did_not_enter_the_step_is_named() -> None:
    """A rank between two steps hangs for as long as another one waits for it, not since its last step."""
    finding = hung(Group({0: at(40, 1, 3.2, waits=1), 1: between(39, 60), 2: at(40, 1, 3, waits=1)}))
    assert finding.sentence == "Rank 1 has not begun step 40, in which rank 0 has waited for 3.2 s."
    assert finding.ranks == (1,)


def test_ranks_in_a_collective_wait_for_the_one_that_is_in_none() -> None:
    """Which ranks a collective needs is unknown, so this is inferred."""
    doing = {rank: at(40, 3, 4) for rank in range(3)}
    finding = hung(Group(doing, collectives=dict.fromkeys((0, 2), (Collective.ALL_REDUCE, 4.0))))
    assert finding.sentence == "Rank 1 hangs in its own compute after layer 3 of step 40, for 4.0 s."
    assert finding.confidence < 1.0
    assert finding.evidence[0].startswith("Rank 0 is in an all-reduce outside the series, after layer 3 of step 40")
    assert finding.evidence[0].endswith("for 4.0 s; rank 1 is in no collective.")


def test_a_rank_in_a_collective_that_the_others_are_not_in_is_named() -> None:
    """If the others wait for its broadcast, the rank in the collective is the one that hangs."""
    finding = hung(Group({**WAITING, 1: at(40, 1, 9)}, collectives={1: (Collective.BARRIER, 8.0)}))
    assert finding.sentence == "Rank 1 hangs in a barrier outside the series, after layer 1 of step 40, for 8.0 s."


def test_ranks_that_all_hang_in_a_collective_are_all_named() -> None:
    """If all ranks are in a collective, none of them is singled out."""
    doing = {rank: at(40, 3, 4) for rank in range(3)}
    finding = hung(Group(doing, collectives=dict.fromkeys(range(3), (Collective.ALL_GATHER, 2.0))))
    assert finding.ranks == (0, 1, 2)
    assert finding.sentence.startswith("Ranks 0, 1, 2 hang in an all-gather outside the series, after layer 3")


def test_a_broadcast_that_does_not_move_is_named() -> None:
    """If every rank has issued the broadcast, the transport is to blame, and that is not certain."""
    finding = hung(Group({rank: at(40, 3, 3, waits=3) for rank in (1, 2)} | {0: at(40, 3, 0.1)}))
    assert "although every rank has issued it: nothing has moved for 3.0 s" in finding.sentence
    assert finding.confidence < 1.0


def test_a_rank_that_cannot_be_seen_is_named_as_such() -> None:
    """If the source is not observed, the finding says so instead of naming an observed rank."""
    finding = hung(Group({1: at(40, 3, 3, waits=3), 2: at(40, 3, 3, waits=3)}))
    assert finding.ranks == (0,)
    assert "rank 0 cannot be seen from here" in finding.sentence
    assert finding.confidence <= 0.5


def test_ranks_that_wait_for_each_other_are_named_together() -> None:
    """Two ranks that use two series in another order each wait for the other."""
    case = Group({0: between(40, 3), 1: between(40, 3)}, ranks=2).case()
    (first, second) = case.ranks.values()
    waiting, behind = at(40, 3, 3, waits=3), at(40, 0, 3)
    ranks = [
        replace(rank, series=(info, replace(info, name="other")), ring=replace(rank.ring, marks=Marks(progress)))
        for rank, info, progress in (
            (first, first.series[0], (waiting, behind)),
            (second, second.series[0], (behind, waiting)),
        )
    ]
    (finding,) = [one for one in verdict(case.facts, case.steps, ranks).findings if one.kind == "hung"]
    assert finding.sentence == "Ranks 0, 1 have waited for each other for 3.0 s."


@pytest.mark.parametrize(
    "doing",
    [
        {rank: between(39, 3600) for rank in range(3)},
        {rank: at(40, 5, 3600, Stage.UNMARKED) for rank in range(3)},
        {rank: at(40, 3, 9) for rank in range(3)},
        {**WAITING, 1: at(40, 1, 0.2)},
        {0: at(40, 3, 0.5, waits=3), 1: at(40, 1, 3), 2: at(40, 3, 0.5, waits=3)},
    ],
    ids=["idle", "idle, steps not marked", "all compute", "the root makes progress", "nobody waits for long"],
)
def test_healthy_ranks_are_not_named(doing: dict[int, Progress]) -> None:
    """Ranks that idle, compute alike or make progress do not hang."""
    assert not Group(doing).findings("hung")


def test_idle_ranks_in_a_collective_are_not_named() -> None:
    """Ranks may wait for their next request in a collective."""
    doing = {rank: between(39, 3600) for rank in range(3)}
    assert not Group(doing, collectives=dict.fromkeys((1, 2), (Collective.BROADCAST, 3600.0))).findings("hung")


def test_a_series_with_long_steps_needs_longer_silence() -> None:
    """With layers that take 1 s each, 3.5 s of compute are no hang, but 20 s are."""
    long = Group({**WAITING, 1: at(40, 1, 3.5)}, layer_ns=S)
    assert not long.findings("hung")
    late = {0: at(40, 3, 20, waits=3), 1: at(40, 1, 20), 2: at(40, 3, 20, waits=3)}
    assert Group(late, layer_ns=S).findings("hung")


def test_the_first_steps_may_take_long() -> None:
    """While a model is compiled, a rank may be later than others by seconds."""
    doing = {0: at(3, 3, 20, waits=3), 1: at(3, 1, 20), 2: at(3, 3, 20, waits=3)}
    assert not Group(doing, steps=3).findings("hung")
    doing = {0: at(3, 3, 31, waits=3), 1: at(3, 1, 31), 2: at(3, 3, 31, waits=3)}
    assert Group(doing, steps=3).findings("hung")


def test_all_ranks_without_progress_are_named_after_longer() -> None:
    """If no rank waits, all of them together may hang in something that swtrace does not see."""
    finding = hung(Group({rank: at(40, 3, 11) for rank in range(3)}))
    assert finding.ranks == (0, 1, 2)
    assert finding.confidence < 1.0


def test_a_dead_rank_is_not_reported_as_hung() -> None:
    """The finding about the death says what it was doing and who waits for it."""
    group = Group({**WAITING, 1: at(40, 1, 3.5)}, changes={1: {"alive": False, "died": True, "down_since_ns": NOW_NS}})
    assert not group.findings("hung")
    (died,) = group.findings("died")
    assert died.evidence[0] == "When rank 1 died, it was in its own compute after layer 1 of step 40."
    assert [sentence[:6] for sentence in died.evidence[1:]] == ["Rank 0", "Rank 2"]
    assert (died.layer, died.since_step, died.since_ns) == (1, 40, NOW_NS + 5 * S)


def on_device(step: int, completed: int, age_s: float, host_s: float = 60) -> Progress:
    """Return the progress of a host that has launched all steps before ``step``, and that of its device."""
    return between(step - 1, host_s)._replace(completed=completed, completed_ns=NOW_NS - int(age_s * S))


def test_devices_that_do_not_complete_a_step_are_named() -> None:
    """If all hosts have launched the step, the devices hang, and all of them are named."""
    doing = {0: on_device(41, 40, 3), 1: on_device(41, 40, 3.4), 2: on_device(41, 41, 0.1)}
    finding = hung(Group(doing, info={"clock": "device"}))
    assert finding.sentence.startswith("The devices of ranks 0, 1 have not completed step 40, which their hosts have")
    assert finding.ranks == (0, 1)
    assert finding.evidence[0] == "The device of rank 1 has completed 40 of 41 launched steps, and none for 3.4 s."


def test_a_host_that_holds_up_other_ranks_devices_is_named() -> None:
    """A device waits for a broadcast that another rank's host has not launched."""
    stuck = at(40, 2, 3.5)._replace(completed=40, completed_ns=NOW_NS)
    finding = hung(Group({0: on_device(41, 40, 3), 1: stuck, 2: on_device(41, 40, 3)}, info={"clock": "device"}))
    assert finding.ranks == (1,)
    assert finding.sentence.startswith("Rank 1 hangs in its own compute after layer 2 of step 40: the device of rank 0")


@pytest.mark.parametrize("ended", [{"closed": True}, {"alive": False, "closed": True}, {"alive": False}])
def test_devices_of_ranks_that_have_ended_are_not_named(ended: dict[str, bool]) -> None:
    """Their rings say for good that the device had not caught up."""
    doing = {rank: on_device(41, 40, 10_800) for rank in range(3)}
    changes = dict.fromkeys(doing, ended)
    assert not Group(doing, info={"clock": "device"}, changes=changes).findings("hung")
    (finding,) = Group(doing, info={"clock": "device"}, changes={0: ended, 1: ended}).findings("hung")
    assert finding.ranks == (2,)


def test_devices_of_a_closed_series_are_not_named() -> None:
    doing = {rank: on_device(41, 40, 10_800) for rank in range(3)}
    changes = {rank: {"closed_series": frozenset({0})} for rank in doing}
    assert not Group(doing, info={"clock": "device"}, changes=changes).findings("hung")


def test_idle_devices_are_not_named() -> None:
    """A device that has completed all launched steps is idle, however long."""
    doing = {rank: on_device(41, 41, 3600, host_s=3600) for rank in range(3)}
    assert not Group(doing, info={"clock": "device"}).findings("hung")


def test_a_rank_that_the_others_have_passed_is_named() -> None:
    """If no rank waits for it in the series, those that have ended its step show that it should have gone on."""
    finding = hung(Group({0: between(40, 2), 1: at(40, 3, 2.1), 2: between(40, 2)}))
    assert finding.ranks == (1,)
    assert finding.sentence == "Rank 1 hangs in its own compute after layer 3 of step 40, for 2.1 s."
    assert finding.evidence == ("Rank 0 has ended step 40, 2.0 s ago.", "Rank 2 has ended step 40, 2.0 s ago.")


def test_a_rank_that_never_enters_a_step_that_others_have_ended_is_named() -> None:
    """No rank is in a step, and all are idle, but one has run fewer steps than the others."""
    finding = hung(Group({0: between(40, 2), 1: between(39, 2.2), 2: between(40, 2)}))
    assert finding.ranks == (1,)
    assert finding.sentence == "Rank 1 has not begun step 40, while others have ended it, for 2.2 s."


def test_a_rank_that_is_alone_in_a_collective_is_named() -> None:
    """If most ranks have ended the step and one is in a collective, that one is out of line."""
    doing = {0: between(40, 2), 1: at(40, 3, 2.1), 2: between(40, 2)}
    finding = hung(Group(doing, collectives={1: (Collective.ALL_GATHER, 2.1)}))
    assert finding.ranks == (1,)
