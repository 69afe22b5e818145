"""A roster handles events that do not fit and origins that answer at different times."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from swtrace.ledger.alignment import Probe
from swtrace.observing import Link, OriginStatus, Roster
from swtrace.observing.events import (
    ClockProbed,
    Event,
    RankEnded,
    RankForgotten,
    RankJoined,
    RecordsRead,
    RingsSeen,
    RingState,
    SeriesListed,
)
from swtrace.observing.merged import Merged
from swtrace.observing.origin import Polled
from swtrace.observing.roster import TOGETHER_NS, watch_rings
from swtrace.trace.clocks import ClockAnchor
from swtrace.trace.identity import RankKey
from swtrace.trace.marks import Marks, Progress
from swtrace.trace.ring_reader import RingStatistics
from swtrace.trace.schema import Stage
from tests.support.host_clocks import HOUR_NS, HostClock, Hosts
from tests.support.schedules import key
from tests.support.simulated_recordings import Told, events_of, schedule
from tests.support.writer_process import Order, Writers


def events(*ranks: int) -> list[Event]:
    """Return the events of some ranks of a schedule, in order."""
    wanted = {key(rank) for rank in ranks}
    found: list[Event] = []
    for event in events_of(schedule(), random.Random(1), 50):  # noqa: S311 - reproducible
        of = (
            event.batches[0][0]
            if isinstance(event, RecordsRead)
            else None
            if isinstance(event, RingsSeen | ClockProbed)
            else event.rank
        )
        if of in wanted:
            found.append(event)
    return found


class Refusing(Told):
    """An origin that drops a rank when asked to."""

    def __init__(self, *ranks: int) -> None:
        super().__init__(events(*ranks))
        self.refused: dict[RankKey, str] = {}

    def refuse(self, rank: RankKey, why: str) -> tuple[Event, ...]:
        """Remember it, and forget the rank."""
        self.refused[rank] = why
        return (RankForgotten(rank),)


class Late(Told):
    """A host that answers at its third poll."""

    polls = 0

    def poll(self, limit: int | None = None) -> Polled:
        """Return nothing before the third poll."""
        self.polls += 1
        return super().poll(limit) if self.polls >= 3 else Polled((), more=False)

    def status(self) -> tuple[OriginStatus, ...]:
        """Return whether it has answered."""
        return (OriginStatus("late", Link.LIVE if self.polls >= 3 else Link.CONNECTING),)


def test_a_rank_whose_table_cannot_be_used_costs_no_other_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The origin drops the rank, later events of the rank are ignored, and the others' steps are finished."""
    origin = Refusing(0, 1, 2)
    roster = Roster(origin)
    set_series = roster.ledger.set_series

    def fails(rank: RankKey, series: object) -> None:
        if rank == key(1):
            raise ValueError("a bad table")
        set_series(rank, series)  # type: ignore[arg-type]

    monkeypatch.setattr(roster.ledger, "set_series", fails)
    roster.drain()
    roster.ledger.flush()
    seen = roster.observe()
    assert origin.refused == {key(1): "ValueError: a bad table"}
    assert [rank.key for rank in seen.ranks] == [key(0), key(2)]
    (series,) = seen.facts.series
    assert [rank.totals.steps for rank in series.ranks] == [40, 40]


def test_no_step_is_finished_before_every_host_has_answered() -> None:
    """Records of a host that answers at once wait for one that answers later: its ranks are part of every step."""
    roster = Roster(Merged([Told(events(0)), Late(events(1, 2))]))
    roster.poll()
    roster.poll()
    assert roster.observe().ranks == ()
    roster.drain()
    roster.ledger.flush()
    facts = roster.observe().facts
    assert [rank.oddities.missing + rank.oddities.late for rank in facts.ranks] == [0, 0, 0]
    (series,) = facts.series
    assert series.steps == 40
    assert all(step.complete for step in roster.observe().history[series.key])


@pytest.mark.parametrize(
    ("ends", "died"),
    [
        pytest.param("kill:0 kill:1 kill:2", set(), id="all killed at once: stopped"),
        pytest.param("close:0 close:1 close:2", set(), id="all closed: stopped"),
        pytest.param("close:0 close:1 kill:2", set(), id="the last one had to be killed: stopped"),
        pytest.param("kill:0", {0}, id="one killed, others go on: died"),
        pytest.param("kill:0 close:1 close:2", {0}, id="one killed, others end after it: died"),
        pytest.param("kill:0 later kill:1 kill:2", {0}, id="one killed, others killed later: it died"),
    ],
)
def test_a_death_is_told_from_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, died: set[int]
) -> None:
    """A rank died if it did not close its ring while others of its run went on."""
    now = [1]
    monkeypatch.setattr("swtrace.trace.ring_reader.now_ns", lambda: now[0])
    with Writers() as writers, watch_rings(tmp_path, rescan_s=0.0) as watch:
        pids = [writers.start(Order(str(tmp_path), rank=rank, count=10))[0] for rank in range(3)]
        watch.drain()
        for end in ends.split():
            if end == "later":
                now[0] += 10 * TOGETHER_NS
                continue
            what, _, rank = end.partition(":")
            now[0] += 1
            writers.kill(pids[int(rank)], signal.SIGTERM if what == "close" else signal.SIGKILL)
            watch.drain()
        assert {status.identity.rank for status in watch.observe().ranks if status.died} == died


@pytest.mark.parametrize(
    ("stage", "down_ns", "died"),
    [
        pytest.param(Stage.MARKED, 0, {2}, id="within a step: it died"),
        pytest.param(Stage.BETWEEN, 0, set(), id="between steps: stopped"),
        pytest.param(Stage.MARKED, 2 * TOGETHER_NS, set(), id="long after the others closed: stopped"),
    ],
)
def test_a_reader_that_sees_all_ranks_gone_at_once_knows_a_death_by_the_step(
    stage: Stage, down_ns: int, died: set[int]
) -> None:
    """Others close their rings at once when they lose a rank, so the order in which they are seen gone says nothing."""
    nothing = RingStatistics(0, 0, 0, 0, 0)
    rings = [
        RingState(key(rank), alive=False, closed=True, statistics=nothing, taken_ns=10**11, down_since_ns=10**9)
        for rank in range(3)
    ]
    marks = Marks((Progress(issued=7, stage=stage, since_ns=10**8),))
    rings[2] = replace(rings[2], closed=False, marks=marks, down_since_ns=10**9 + 1 + down_ns)
    roster = Roster(Told([RankJoined(schedule().identity(rank)) for rank in range(3)], tuple(rings)))
    roster.drain()
    assert {rank.identity.rank for rank in roster.observe().ranks if rank.died} == died


def test_a_probe_of_a_clock_reaches_the_ledger() -> None:
    """Ranks on a host that is never a source are compared once another process has probed its clock."""
    made = schedule(ranks=7, steps=20)  # six layers: rank 6 is never a source
    hosts = Hosts(made, (0,) * 6 + (1,), (HostClock(), HostClock(HOUR_NS)))
    joined = [RankJoined(hosts.identity(rank)) for rank in range(7)]
    listed = [SeriesListed(key(rank), (info,)) for rank, info in enumerate(made.infos)]
    read = [RecordsRead(tuple((key(rank), records) for rank, records in enumerate(hosts.seen().records)))]
    ended = [RankEnded(key(rank)) for rank in range(7)]
    probes = [ClockProbed(Probe("boot-1", "boot-0", HOUR_NS + at_ns, at_ns - 100, at_ns + 100)) for at_ns in (200, 300)]
    comparable = []
    for measured in ([], probes):
        roster = Roster(Told([*joined, *listed, *measured, *read, *ended]))
        roster.drain()
        (steps,) = roster.observe().history.values()
        comparable.append([step.comparable for step in steps])
    assert comparable == [[False] * 20, [True] * 20]


@pytest.mark.parametrize(("later_ns", "died"), [(0, set()), (2 * TOGETHER_NS, {0})])
def test_the_ends_of_ranks_on_two_hosts_are_compared_by_the_calendar(later_ns: int, died: set[int]) -> None:
    """Ranks of two hosts that were killed at once were stopped together, whatever their clocks show."""
    rings, joined = [], []
    for rank, (boot, monotonic_ns, ended_ns) in enumerate((("a", 10**9, 0), ("b", 10**15, later_ns))):
        joined.append(RankJoined(replace(schedule().identity(rank), boot_id=boot)))
        ring = RingState(key(rank), alive=False, closed=False, statistics=RingStatistics(0, 0, 0, 0, 0))
        rings.append(
            replace(
                ring, anchor=ClockAnchor(monotonic_ns, 10**18), down_since_ns=monotonic_ns + ended_ns, taken_ns=10**16
            )
        )
    roster = Roster(Told(joined, tuple(rings)))
    roster.drain()
    assert {rank.identity.rank for rank in roster.observe().ranks if rank.died} == died
