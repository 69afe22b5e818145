"""A watch: rings and ledger joined, whatever comes and goes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from ledger import feeding
from ledger.schedules import RUN, Schedule, key, simulate

from swtrace.ledger import Ledger
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.records import STEP, Records
from swtrace.trace.schema import Kind
from swtrace.watch import Watch


def write(series: SeriesRecorder, records: Records) -> None:
    """Write a schedule's records into a ring, through the recorder that real ranks use."""
    for record in records:
        if record["kind"] == Kind.TRANSFER:
            fields = ("issued_ns", "ready_ns", "wait_begin_ns", "wait_end_ns", "step", "operation", "position")
            series.transfer(
                *(
                    int(record[name])
                    for name in (*fields, "reach_position", "source", "window", "observed_clock", "flags")
                )
            )
        else:
            row = record.reshape(1).view(STEP)[0]
            names = ("begin_ns", "arrival_ns", "end_ns", "step", "tokens", "requests", "phase", "waits")
            series.step(*(int(row[name]) for name in (*names, "run_delay_us", "steal_us", "flags")))


def made(steps: int = 20) -> Schedule:
    chance = random.Random(5)  # noqa: S311 - a reproducible schedule
    return simulate(ranks=2, layers=5, k=1, steps=steps, compute=lambda _r, _s, _p: chance.randrange(9), occupancy=7)


def expected(schedule: Schedule) -> Ledger:
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    return ledger


def test_rings_in_any_order_give_the_facts_of_their_records(tmp_path: Path) -> None:
    """What a watch states of two rings is what a ledger states of their records."""
    schedule = made()
    with Watch(tmp_path) as watch:
        recorders = [Recorder.create(tmp_path, schedule.identity(rank)) for rank in range(2)]
        for rank, recorder in enumerate(recorders):
            write(recorder.add_series(schedule.infos[rank]), schedule.records[rank])
        watch.drain()
        watch.ledger.flush()
        assert watch.ledger.facts().series == expected(schedule).facts().series
        assert [(status.identity.rank, status.alive) for status in watch.ranks()] == [(0, True), (1, True)]
        for recorder in recorders:
            recorder.close()
        assert [(status.alive, status.closed) for status in watch.ranks()] == [(False, True)] * 2


def test_no_step_is_finished_without_a_rank_whose_ring_was_just_made(tmp_path: Path) -> None:
    """A rank whose ring appears between two scheduled looks at the folder is waited for, if a series names it."""
    schedule = made()
    with Watch(tmp_path, rescan_s=3600.0) as watch:
        first = Recorder.create(tmp_path, schedule.identity(0))
        series = first.add_series(schedule.infos[0])
        watch.drain()
        write(series, schedule.records[0])
        second = Recorder.create(tmp_path, schedule.identity(1))
        watch.drain()
        write(second.add_series(schedule.infos[1]), schedule.records[1])
        watch.drain()
        watch.ledger.flush()
        facts = watch.ledger.facts()
        assert [rank.oddities.missing for rank in facts.ranks] == [0, 0]
        assert facts.series == expected(schedule).facts().series
        first.close()
        second.close()


def test_a_dead_rank_is_told_to_the_ledger_once_its_ring_is_drained(tmp_path: Path) -> None:
    """Steps that a dead rank never ended are finished without it, after its last record."""
    schedule = made()
    with Watch(tmp_path, rescan_s=0.0) as watch:
        recorders = [Recorder.create(tmp_path, schedule.identity(rank)) for rank in range(2)]
        write(recorders[0].add_series(schedule.infos[0]), schedule.records[0])
        half = schedule.records[1][schedule.records[1]["step"] < 10]
        write(recorders[1].add_series(schedule.infos[1]), half)
        watch.drain()
        assert watch.ledger.facts().series[0].pending_steps == 10
        recorders[1].close()
        watch.drain()
        facts = watch.ledger.facts()
        assert facts.series[0].pending_steps == 0
        assert facts.ranks[1].oddities.missing == 50
        recorders[0].close()


@pytest.mark.parametrize("old_first", [True, False])
def test_a_restarted_rank_takes_the_place_of_its_dead_predecessor(tmp_path: Path, *, old_first: bool) -> None:
    """Of two rings of one rank under one run id the younger one counts, in whatever order they are found."""
    schedule = made()
    old, young = schedule.identity(0), schedule.identity(0)
    object.__setattr__(young, "start_time_ns", old.start_time_ns + 1)
    with Watch(tmp_path, rescan_s=0.0) as watch:
        for identity in (old, young) if old_first else (young, old):
            recorder = Recorder.create(tmp_path, identity)
            series = recorder.add_series(schedule.infos[0])
            write(series, schedule.records[0] if identity is young else schedule.records[0][:3])
            watch.drain()
            recorder.close()
        watch.drain()
        watch.ledger.flush()
        (status,) = watch.ranks()
        assert status.identity.start_time_ns == young.start_time_ns
        (rank,) = watch.ledger.facts().series[0].ranks
        assert rank.rank == key(0)
        assert sum(rank.totals.waits.values()) == 5 * 20


def test_a_removed_ring_is_forgotten(tmp_path: Path) -> None:
    """When a dead rank's file is removed, the rank and its series go from the facts."""
    schedule = made()
    with Watch(tmp_path, run_id=RUN, rescan_s=0.0) as watch:
        recorder = Recorder.create(tmp_path, schedule.identity(0))
        write(recorder.add_series(schedule.infos[0]), schedule.records[0])
        watch.drain()
        recorder.close()
        watch.drain()
        assert len(watch.ledger.facts().ranks) == 1
        recorder.path.unlink()
        watch.poll()
        assert watch.ledger.facts().ranks == ()
        assert watch.ranks() == ()


def test_a_rank_whose_ring_is_removed_stays_one_rank_with_every_count(tmp_path: Path) -> None:
    """The rank makes its ring again: whoever watched on counts each record once, whoever comes later sees it all."""
    schedule = made()
    with Watch(tmp_path, rescan_s=0.0) as watch:
        recorders = [Recorder.create(tmp_path, schedule.identity(rank)) for rank in range(2)]
        series = [recorder.add_series(schedule.infos[rank]) for rank, recorder in enumerate(recorders)]
        for part in (schedule.records[0]["step"] < 7, schedule.records[0]["step"] >= 7):
            for rank in range(2):
                write(series[rank], schedule.records[rank][part])
            watch.poll()
            recorders[0].path.unlink(missing_ok=True)
            recorders[0].renew()
        watch.drain()
        watch.ledger.flush()
        facts = watch.ledger.facts()
        assert facts.series == expected(schedule).facts().series
        assert [(rank.records, rank.oddities.duplicate) for rank in facts.ranks] == [
            (len(schedule.records[rank]), 0) for rank in range(2)
        ]
        assert [status.alive for status in watch.ranks()] == [True, True]
        with Watch(tmp_path) as later:
            later.drain()
            later.ledger.flush()
            assert later.ledger.facts().series == facts.series
        for recorder in recorders:
            recorder.close()
