"""Rings of a folder and the roster of their ranks, while rings appear and disappear."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from swtrace.ledger import Ledger
from swtrace.ledger.pending import PendingSteps
from swtrace.observing import HostRings, Roster, watch_rings
from swtrace.trace.identity import RankIdentity
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.records import STEP, Records
from swtrace.trace.schema import STEP_FIELDS, Kind
from tests.support import feeding
from tests.support.schedules import RUN, Schedule, key, simulate


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
            series.step(flags=int(row["flags"]), **{field.name: int(row[field.name]) for field in STEP_FIELDS})


def made(steps: int = 20) -> Schedule:
    chance = random.Random(5)  # noqa: S311 - a reproducible schedule
    return simulate(ranks=2, layers=5, k=1, steps=steps, compute=lambda _r, _s, _p: chance.randrange(9), occupancy=7)


def expected(schedule: Schedule) -> Ledger:
    ledger = feeding.ledger(schedule)
    feeding.feed(ledger, schedule)
    return ledger


def test_rings_in_any_order_give_the_facts_of_their_records(tmp_path: Path) -> None:
    """A watch over two rings gives the same facts as a ledger over their records."""
    schedule = made()
    with watch_rings(tmp_path) as watch:
        recorders = [Recorder.create(tmp_path, schedule.identity(rank)) for rank in range(2)]
        for rank, recorder in enumerate(recorders):
            write(recorder.add_series(schedule.infos[rank]), schedule.records[rank])
        watch.drain()
        watch.ledger.flush()
        assert watch.ledger.facts().series == expected(schedule).facts().series
        assert [(status.identity.rank, status.ring.alive) for status in watch.observe().ranks] == [(0, True), (1, True)]
        for recorder in recorders:
            recorder.close()
        assert [(status.ring.alive, status.ring.closed) for status in watch.observe().ranks] == [(False, True)] * 2


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("told", ["when its ring is found", "with its first records"])
def test_no_step_is_finished_without_a_rank_whose_ring_was_just_made(tmp_path: Path, told: str, *, ends: bool) -> None:
    """A rank whose ring appears between two scheduled looks at the folder is waited for, if a series names it."""
    schedule = made()
    with watch_rings(tmp_path, rescan_s=3600.0) as watch:
        first = Recorder.create(tmp_path, schedule.identity(0))
        if told == "with its first records":
            watch.drain()
        series = first.add_series(schedule.infos[0])
        watch.drain()
        write(series, schedule.records[0])
        second = Recorder.create(tmp_path, schedule.identity(1))
        if ends:
            first.close()
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
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
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
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
        for identity in (old, young) if old_first else (young, old):
            recorder = Recorder.create(tmp_path, identity)
            series = recorder.add_series(schedule.infos[0])
            write(series, schedule.records[0] if identity is young else schedule.records[0][:3])
            recorder.close()
            watch.drain()
        watch.drain()
        watch.ledger.flush()
        (status,) = watch.observe().ranks
        assert status.identity.start_time_ns == young.start_time_ns
        (rank,) = watch.ledger.facts().series[0].ranks
        assert rank.rank == key(0)
        assert sum(rank.totals.waits.values()) == 5 * 20


@pytest.mark.parametrize("order", ["1122", "2112", "1221", "2211", "1212"])
def test_of_two_lives_found_together_the_younger_one_is_stated_whole(tmp_path: Path, order: str) -> None:
    """Whatever the order of the files, each rank of the younger life is there with all that it wrote."""
    schedule = made()
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
        by_life: dict[str, list[Recorder]] = {"1": [], "2": []}
        for number, life in enumerate(order):
            rank = len(by_life[life])
            identity = replace(schedule.identity(rank), start_time_ns=int(life))
            recorder = Recorder.create(tmp_path / "made", identity)
            write(recorder.add_series(schedule.infos[rank]), schedule.records[rank][: None if life == "2" else 9])
            recorder.path.rename(tmp_path / f"ring-{number}.swt")
            by_life[life].append(recorder)
        watch.drain()
        watch.ledger.flush()
        assert watch.ledger.facts().series == expected(schedule).facts().series
        for recorder in (*by_life["1"], *by_life["2"]):
            recorder.close()


def test_a_living_ring_counts_though_the_clock_was_set_back_since_a_dead_one_began(tmp_path: Path) -> None:
    """The wall clock says nothing against a writer that holds its lock, to a running watch or one that comes later."""
    schedule = made()
    with watch_rings(tmp_path, rescan_s=0.0) as running, watch_rings(tmp_path, rescan_s=0.0) as later:
        living = []
        for start_ns, steps in ((10**18, 3), (10**17, 20)):
            for rank in range(2):
                recorder = Recorder.create(tmp_path, replace(schedule.identity(rank), start_time_ns=start_ns))
                records = schedule.records[rank]
                write(recorder.add_series(schedule.infos[rank]), records[records["step"] < steps])
                living.append(recorder)
            running.drain()
            if steps == 3:
                while living:
                    living.pop().close()
                running.drain()
        later.drain()
        for watch in (running, later):
            watch.ledger.flush()
            assert [status.ring.alive for status in watch.observe().ranks] == [True, True]
            assert watch.ledger.facts().series == expected(schedule).facts().series
        for recorder in living:
            recorder.close()


def test_of_two_living_jobs_with_one_run_id_the_hidden_one_is_named(tmp_path: Path) -> None:
    """The older job is a problem while both live, and is taken up again if the younger one ends first."""
    schedule = made()
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
        jobs = []
        for life in (1, 2):
            job = [Recorder.create(tmp_path, restarted(schedule, rank, life)) for rank in range(2)]
            series = [job[rank].add_series(schedule.infos[rank]) for rank in range(2)]
            jobs.append((job, series))
            watch.drain()
        (old, old_series), (young, _) = jobs
        assert set(watch.observe().problems) == {str(recorder.path) for recorder in old}
        assert all("SWTRACE_RUN_ID" in text for text in watch.observe().problems.values())
        for recorder in young:
            recorder.close()
        watch.drain()
        assert watch.observe().problems == {}
        for rank in range(2):
            write(old_series[rank], schedule.records[rank])
        watch.drain()
        watch.ledger.flush()
        assert watch.ledger.facts().series == expected(schedule).facts().series
        for recorder in old:
            recorder.close()


@pytest.mark.parametrize("closing", [True, False])
def test_a_job_that_ends_after_its_successor_began_is_no_problem(tmp_path: Path, *, closing: bool) -> None:
    """A restart may overlap with the end of the job before: that is named at most until its process is gone."""
    schedule = made()
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
        old, young = (Recorder.create(tmp_path, restarted(schedule, 0, life)) for life in (1, 2))
        if closing:
            old.announce_close()
        watch.drain()
        assert set(watch.observe().problems) == (set() if closing else {str(old.path)})
        old.close()
        watch.drain()
        assert watch.observe().problems == {}
        assert [status.ring.path for status in watch.observe().ranks] == [str(young.path)]
        young.close()


def test_a_second_series_of_a_name_has_facts_of_its_own(tmp_path: Path) -> None:
    """A model that is built twice in one process, or a draft model beside its target, hides nothing of the other."""
    first, second = made(20), made(12)
    with watch_rings(tmp_path) as watch:
        recorders = [Recorder.create(tmp_path, first.identity(rank)) for rank in range(2)]
        for schedule in (first, second):
            for rank, recorder in enumerate(recorders):
                write(recorder.add_series(schedule.infos[rank]), schedule.records[rank])
        watch.drain()
        watch.ledger.flush()
        facts = watch.ledger.facts()
        name = first.infos[0].name
        assert [(series.key.name, series.steps) for series in facts.series] == [(name, 20), (f"{name}:2", 12)]
        assert {rank.oddities.duplicate for rank in facts.ranks} == {0}
        for recorder in recorders:
            recorder.close()


def test_a_removed_ring_is_forgotten(tmp_path: Path) -> None:
    """When a dead rank's file is removed, the rank and its series are removed from the facts."""
    schedule = made()
    with watch_rings(tmp_path, run_id=RUN, rescan_s=0.0) as watch:
        recorder = Recorder.create(tmp_path, schedule.identity(0))
        write(recorder.add_series(schedule.infos[0]), schedule.records[0])
        watch.drain()
        recorder.close()
        watch.drain()
        assert len(watch.ledger.facts().ranks) == 1
        recorder.path.unlink()
        watch.poll()
        assert watch.ledger.facts().ranks == ()
        assert watch.observe().ranks == ()


def test_another_name_of_a_ring_is_closed_once_it_is_removed(tmp_path: Path) -> None:
    """A living ring under a second name counts once, and is open twice only while it has both names."""
    schedule = made()
    with watch_rings(tmp_path, rescan_s=0) as watch:
        recorder = Recorder.create(tmp_path, schedule.identity(0))
        write(recorder.add_series(schedule.infos[0]), schedule.records[0])
        watch.drain()
        alone = len(list(Path("/proc/self/fd").iterdir()))
        other = tmp_path / "ring-other-0-0.swt"
        other.hardlink_to(recorder.path)
        watch.drain()
        assert len(list(Path("/proc/self/fd").iterdir())) == alone + 1
        other.unlink()
        watch.poll()
        watch.drain()
        assert len(list(Path("/proc/self/fd").iterdir())) == alone
        (rank,) = watch.observe().ranks
        assert rank.ring.statistics.delivered == len(schedule.records[0])
        recorder.close()


def test_a_ring_that_ends_and_goes_while_it_is_read_costs_nobody_a_record(tmp_path: Path) -> None:
    """Where one poll reads a ring's last records, finds its writer dead and its file removed, all records count."""
    schedule = made()
    first = [records[records["step"] < 10] for records in schedule.records]
    rest = [records[records["step"] >= 10] for records in schedule.records]
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
        recorders = [Recorder.create(tmp_path, schedule.identity(rank)) for rank in range(2)]
        series = [recorder.add_series(schedule.infos[rank]) for rank, recorder in enumerate(recorders)]
        for rank in range(2):
            write(series[rank], first[rank])
        watch.drain()
        for rank in range(2):
            write(series[rank], rest[rank])
        recorders[1].close()
        recorders[1].path.unlink()
        watch.poll()
        (status,) = watch.observe().ranks
        assert status.ring.statistics.delivered == len(schedule.records[0])
        assert [rank.totals.steps for rank in watch.ledger.facts().series[0].ranks] == [20]
        assert watch.ledger.facts().ranks[0].oddities.missing == 0
        watch.poll()
        assert len(watch.observe().ranks) == 1
        recorders[0].close()


def restarted(schedule: Schedule, rank: int, life: int) -> RankIdentity:
    return replace(schedule.identity(rank), start_time_ns=life)


@pytest.mark.parametrize("rank_by_rank", [False, True])
@pytest.mark.parametrize("closed", [True, False])
def test_a_group_that_is_started_again_under_its_run_id_begins_anew(
    tmp_path: Path, *, rank_by_rank: bool, closed: bool
) -> None:
    """The second life's facts are those of its records alone, whether its ranks come at once or one after the other."""
    schedule, second = made(60), made(40)
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
        old = [Recorder.create(tmp_path, restarted(schedule, rank, 1)) for rank in range(2)]
        for rank in range(2):
            write(old[rank].add_series(schedule.infos[rank]), schedule.records[rank])
        watch.drain()
        assert watch.ledger.facts().series[0].ranks[0].totals.steps == 60
        if closed:
            for recorder in old:
                recorder.close()
            watch.drain()
        young = []
        for rank in range(2):
            young.append(Recorder.create(tmp_path, restarted(schedule, rank, 2)))
            series = young[rank].add_series(second.infos[rank])
            if rank_by_rank:
                watch.drain()
            write(series, second.records[rank])
        watch.drain()
        watch.ledger.flush()
        facts = watch.ledger.facts()
        assert facts.series == expected(second).facts().series
        assert [rank.oddities for rank in facts.ranks] == [rank.oddities for rank in expected(second).facts().ranks]
        for recorder in (*old, *young):
            recorder.close()


def test_the_last_steps_of_a_life_are_taken_in_before_the_next_one_begins(tmp_path: Path) -> None:
    """What dead ranks wrote is read to its end, although their successors' rings are found in the same poll."""
    schedule = made(60)
    with watch_rings(tmp_path, rescan_s=0.0, keep_steps=True) as watch:
        for life in (1, 2):
            recorders = [Recorder.create(tmp_path, restarted(schedule, rank, life)) for rank in range(2)]
            for rank in range(2):
                write(recorders[rank].add_series(schedule.infos[rank]), schedule.records[rank])
            watch.poll(64)
            watch.poll(64)
            for recorder in recorders:
                recorder.close()
        watch.drain()
        watch.ledger.flush()
        assert sorted(step.step for step in watch.ledger.take_steps()) == sorted([*range(60), *range(60)])


def test_a_ring_read_again_after_a_problem_goes_on_in_its_series(tmp_path: Path) -> None:
    """A ring that is dropped and used again is the same life: the group's other ranks stay in it."""
    schedule = made()
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
        recorders = [Recorder.create(tmp_path, schedule.identity(rank)) for rank in range(2)]
        for rank in range(2):
            write(recorders[rank].add_series(schedule.infos[rank]), schedule.records[rank])
        watch.drain()
        good = recorders[1].path.read_bytes()
        with recorders[1].path.open("r+b") as file:
            file.write(b"\0" * 64)
        watch.poll()
        assert "overwritten" in watch.observe().problems[str(recorders[1].path)]
        assert [status.identity.rank for status in watch.observe().ranks] == [0]
        with recorders[1].path.open("r+b") as file:
            file.write(good[:64])
        watch.drain()
        assert watch.observe().problems == {}
        facts = watch.ledger.facts()
        assert [rank.totals.steps for rank in facts.series[0].ranks] == [20, 20]
        for recorder in recorders:
            recorder.close()


def test_records_that_the_ledger_cannot_take_cost_their_own_rank_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one rank's records raise an error, the others' are processed, and the problem is reported."""
    schedule, other = made(), simulate(ranks=2, layers=3, k=1, steps=20, compute=lambda _r, _s, _p: 1, occupancy=1)
    room = PendingSteps.room

    def no_room(pending: PendingSteps, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        if pending._layers == 3:
            raise MemoryError
        return room(pending, steps)

    monkeypatch.setattr(PendingSteps, "room", no_room)
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
        bad = Recorder.create(tmp_path, replace(other.identity(0), run_id="bad"))
        write(bad.add_series(other.infos[0]), other.records[0])
        recorders = [Recorder.create(tmp_path, schedule.identity(rank)) for rank in range(2)]
        for rank in range(2):
            write(recorders[rank].add_series(schedule.infos[rank]), schedule.records[rank])
        watch.drain()
        watch.ledger.flush()
        assert "MemoryError" in watch.observe().problems[str(bad.path)]
        assert watch.ledger.facts().series == expected(schedule).facts().series
        assert [status.identity.run_id for status in watch.observe().ranks] == [RUN, RUN]
        for recorder in (bad, *recorders):
            recorder.close()


def test_a_rank_whose_ring_is_removed_stays_one_rank_with_every_count(tmp_path: Path) -> None:
    """The rank creates its ring again: a running watch counts each record once, and a later one sees all of them."""
    schedule = made()
    with watch_rings(tmp_path, rescan_s=0.0) as watch:
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
        assert [status.ring.alive for status in watch.observe().ranks] == [True, True]
        with watch_rings(tmp_path) as later:
            later.drain()
            later.ledger.flush()
            assert later.ledger.facts().series == facts.series
        for recorder in recorders:
            recorder.close()


@pytest.mark.parametrize("older", [True, False])
def test_only_what_an_older_ring_held_when_it_was_found_is_history(tmp_path: Path, *, older: bool) -> None:
    """Totals count an older ring from when it was found, and a younger one from its first record."""
    schedule = made()
    recorders = [Recorder.create(tmp_path, schedule.identity(rank)) for rank in range(2)]
    series = [recorders[rank].add_series(schedule.infos[rank]) for rank in range(2)]
    records_of_a_step = 6
    for rank in range(2):
        write(series[rank], schedule.records[rank][: 15 * records_of_a_step])
    since_ns = max(recorder.identity.start_time_ns for recorder in recorders) + older
    with Roster(HostRings(tmp_path, counted_since_ns=since_ns), keep_steps=True) as watch:
        watch.poll()
        for rank in range(2):
            write(series[rank], schedule.records[rank][15 * records_of_a_step :])
            recorders[rank].close()
        watch.drain()
        (facts,) = watch.ledger.facts().series
        assert [rank.totals.steps for rank in facts.ranks] == [5 if older else 20] * 2
        assert [rank.recent for rank in facts.ranks] == [
            rank.recent for rank in expected(schedule).facts().series[0].ranks
        ]
        assert len(watch.take_steps()) == 20


def test_the_status_names_each_problem_once(tmp_path: Path) -> None:
    """Beside the folder's name, a bad file needs only its own."""
    (tmp_path / "ring-bad-0-00.swt").write_bytes(b"")
    rings = HostRings(tmp_path, rescan_s=0)
    rings.poll()
    (status,) = rings.status()
    assert status.name == str(tmp_path)
    assert status.detail.startswith("ring-bad-0-00.swt: ")
    assert str(tmp_path) not in status.detail
    rings.close()
