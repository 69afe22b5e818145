"""A roster handles events that do not fit and origins that answer at different times."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from swtrace.observing import Link, OriginStatus, Roster
from swtrace.observing.events import Event, RankForgotten, RecordsRead, RingsSeen
from swtrace.observing.merged import Merged
from swtrace.observing.origin import Polled
from swtrace.observing.roster import TOGETHER_NS, watch_rings
from swtrace.trace.identity import RankKey
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
            if isinstance(event, RingsSeen)
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
