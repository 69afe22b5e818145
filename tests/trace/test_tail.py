"""The tail: rings are found, drained in time order, reported as ended, and closed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from swtrace.observing import watch_rings
from swtrace.trace.recorder import Recorder, SeriesRecorder
from swtrace.trace.ring_reader import RingStatistics
from swtrace.trace.tail import SLICE, Tail
from tests.support.writer_process import Order, Writers, check, identity, series_info, until, write


def test_rings_are_told_as_they_come_end_and_go(tmp_path: Path) -> None:
    """A ring is reported once each as joined, as ended (writer dead and all read) and as gone (file removed)."""
    tail = Tail(tmp_path / "rings", rescan_s=0)
    assert tail.poll() == ((), (), (), (), False)
    recorder = Recorder.create(tmp_path / "rings", identity(), records=64)
    series = recorder.add_series(series_info())
    write(series, 1, 5)

    poll = tail.poll()
    assert [reader.path for reader in poll.joined] == [recorder.path]
    assert (poll.batches, poll.ended, poll.gone, poll.more) == ((), (), (), True)
    (reader,) = poll.joined

    poll = tail.poll()
    assert [len(records) for _, records in poll.batches] == [5]
    assert poll._replace(batches=()) == ((), (), (), (), False)

    write(series, 6, 3)
    recorder.close()
    poll = tail.poll()
    assert (poll.joined, poll.ended, poll.gone) == ((), (reader,), ())
    check(poll.batches[0][1])
    assert tail.poll() == ((), (), (), (), False)
    assert list(tail.readers) == [reader]
    assert reader.closed()

    recorder.path.unlink()
    assert tail.poll().gone == (reader,)
    assert len(tail.readers) == 0
    assert tail.poll() == ((), (), (), (), False)
    tail.close()


@pytest.mark.parametrize("limit", [1, 5, 9, 100])
def test_nothing_more_to_read_means_all_that_was_committed(tmp_path: Path, limit: int) -> None:
    """Records written between two limited polls are read too before a poll says that there are no more."""
    recorder = Recorder.create(tmp_path, identity(), records=256)
    series = recorder.add_series(series_info())
    tail = Tail(tmp_path, rescan_s=0)
    tail.poll()
    for written in range(0, 160, 20):
        write(series, written + 1, 10)
        tail.poll(limit)  # now it knows of ten records, and may have read fewer
        write(series, written + 11, 10)
        while tail.poll(limit).more:
            pass
        assert next(iter(tail.readers)).statistics(now=False) == (written + 20, written + 20, 0, 0, 0, 0)
    tail.close()
    recorder.close()


def test_a_killed_writer_ends_after_its_last_record(tmp_path: Path) -> None:
    """A ring is reported as ended only with its last committed record, even if one poll does not read them all."""
    with Writers() as writers:
        pid, path = writers.start(Order(str(tmp_path), records=4096, count=3000))
        tail = Tail(tmp_path, rescan_s=0)
        (reader,) = tail.poll(1).joined
        until(lambda: reader.statistics().written == 3000)
        writers.kill(pid)
        poll = tail.poll(100)
        assert poll.more
        assert not poll.ended
        while not poll.ended:
            poll = tail.poll(100)
        assert reader.statistics() == RingStatistics(3000, 3000, 0, 0, 0)
        assert path.exists()
        tail.close()


def test_a_ring_removed_while_it_is_written_is_read_to_its_end(tmp_path: Path) -> None:
    """Removing a living rank's file does not hide its records: it is read until the rank ends, and then gone."""
    tail = Tail(tmp_path, rescan_s=0)
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    tail.poll()
    recorder.path.unlink()
    write(series, 1, 5)
    poll = tail.poll()
    assert [len(records) for _, records in poll.batches] == [5]
    assert not poll.gone
    recorder.close()
    poll = tail.poll()
    assert len(poll.ended) == len(poll.gone) == 1
    tail.close()


def test_ranks_are_read_in_the_order_of_time_while_catching_up(tmp_path: Path) -> None:
    """While catching up, no rank of a run gets further ahead of another than a slice of records."""
    firsts = (1, 4000, 9000)
    recorders = [Recorder.create(tmp_path, identity(rank), records=1 << 14) for rank in range(3)]
    for recorder, first in zip(recorders, firsts, strict=True):
        series = recorder.add_series(series_info())
        for n in range(first, 12_000):
            series.transfer(n, n, n, n, n // 61, n, n % 61, 0, 0, 0, 1, 0)
    tail = Tail(tmp_path, rescan_s=0)
    following = list(firsts)
    while min(following) < 12_000:
        for reader, records in tail.poll(2000).batches:
            rank = reader.identity.rank
            assert records["wait_end_ns"][0] == following[rank] == min(following)
            assert len(records) <= SLICE
            following[rank] += len(records)
    assert following == [12_000] * 3
    tail.close()
    for recorder in recorders:
        recorder.close()


@pytest.mark.parametrize("every", [100, 1 << 30])
def test_ranks_without_instants_are_read_in_turns_while_catching_up(tmp_path: Path, every: int) -> None:
    """If only every n-th step has instants, or none, no rank gets more than two slices ahead of another."""
    recorders = [Recorder.create(tmp_path, identity(rank), records=1 << 14) for rank in range(3)]
    for recorder in recorders:
        series = recorder.add_series(series_info())
        written, step = 0, 1
        while written < 12_000:
            now = 1000 * step
            for position in range(61 if step % every == 0 else 0):
                series.transfer(now, now, now, now, step, 61 * step + position, position, 0, 0, 0, 1, 0)
            instant = now if step % every == 0 else 0
            series.step(
                begin_ns=instant,
                arrival_ns=instant,
                end_ns=instant,
                step=step,
                tokens=8,
                requests=8,
                phase=1,
                waits=61,
                clock=2,
                untimed=int(step % every != 0),
            )
            written, step = written + 1 + (61 if step % every == 0 else 0), step + 1
    tail = Tail(tmp_path, rescan_s=0)
    read = [0, 0, 0]
    while min(read) < 12_000:
        batches = tail.poll(2000).batches
        for reader, records in batches:
            read[reader.identity.rank] += len(records)
            assert max(read) - min(read) <= 2 * SLICE
    tail.close()
    for recorder in recorders:
        recorder.close()


def test_only_the_run_asked_for_is_followed(tmp_path: Path) -> None:
    """With a run id, rings of other runs are neither joined nor reported as problems."""
    mine = Recorder.create(tmp_path, identity(0, "mine"), records=64)
    other = Recorder.create(tmp_path, identity(0, "other"), records=64)
    tail = Tail(tmp_path, run_id="mine", rescan_s=0)
    assert [reader.path for reader in tail.poll().joined] == [mine.path]
    assert tail.poll().joined == ()
    assert tail.problems == {}
    tail.close()
    mine.close()
    other.close()


def test_unreadable_files_are_told_and_tried_again_when_they_change(tmp_path: Path) -> None:
    """A file that is not a ring is reported with the reason, forgotten once removed, and read once it is fixed."""
    recorder = Recorder.create(tmp_path / "other", identity(), records=64)
    bad = tmp_path / "ring-bad-0-00.swt"
    bad.write_bytes(b"nonsense")
    tail = Tail(tmp_path, rescan_s=0)
    assert tail.poll().joined == ()
    assert "too short" in tail.problems[bad]
    bad.write_bytes(recorder.path.read_bytes())
    assert [reader.path for reader in tail.poll().joined] == [bad]
    assert tail.problems == {}
    gone = tmp_path / "ring-bad-1-00.swt"
    gone.write_bytes(b"")
    tail.poll()
    assert gone in tail.problems
    gone.unlink()
    tail.poll()
    assert tail.problems == {}
    tail.close()
    recorder.close()


def test_files_are_looked_for_only_so_often(tmp_path: Path) -> None:
    """Between two scans of the folder a poll only reads, so a new ring is found at the next scan."""
    tail = Tail(tmp_path, rescan_s=3600)
    tail.poll()
    recorder = Recorder.create(tmp_path, identity(), records=64)
    assert tail.poll().joined == ()
    tail._rescan_at_s = 0
    assert len(tail.poll().joined) == 1
    tail.close()
    recorder.close()


def steps(series: SeriesRecorder, first: int, count: int) -> None:
    """Write whole steps of 61 transfers and a STEP record each."""
    for step in range(first, first + count):
        for position in range(61):
            now = 62 * step + position + 1
            series.transfer(now, now, now, now, step, 61 * step + position, position, 0, 0, 0, 1, 0)
        end = 62 * step + 62
        series.step(
            begin_ns=end - 61, arrival_ns=end - 61, end_ns=end, step=step, tokens=8, requests=8, phase=1, waits=61
        )


def test_a_tail_that_keeps_to_the_newest_steps_begins_near_the_end(tmp_path: Path) -> None:
    """A full ring is read from a whole step near its end; the records before count as skipped, not as lost."""
    recorder = Recorder.create(tmp_path, identity(), records=4096)
    series = recorder.add_series(series_info())
    steps(series, 0, 100)
    tail = Tail(tmp_path, rescan_s=0, newest_steps=10)
    (reader,) = tail.poll().joined
    skipped = reader.statistics().skipped
    assert reader.statistics() == RingStatistics(6200, 0, 6200 - 4096, 0, 4096 - skipped, skipped)
    ((_, records),) = tail.poll().batches
    assert records["position"][0] == 0
    assert sorted(set(records["step"].tolist())) == list(range(91, 100))
    assert reader.statistics() == RingStatistics(6200, 9 * 62, 6200 - 4096, 0, 0, 4096 - 9 * 62)
    tail.close()
    recorder.close()


def test_a_ring_that_has_just_begun_is_read_from_its_begin(tmp_path: Path) -> None:
    """A tail limited to the newest steps skips nothing in a ring that holds no more than these."""
    tail = Tail(tmp_path, rescan_s=0, newest_steps=10)
    recorder = Recorder.create(tmp_path, identity(), records=4096)
    tail.poll()
    series = recorder.add_series(series_info())
    steps(series, 0, 12)
    assert [len(records) for _, records in tail.poll().batches] == [12 * 62]
    assert tail.readers[0].statistics() == RingStatistics(12 * 62, 12 * 62, 0, 0, 0, 0)
    tail.close()
    recorder.close()


@pytest.mark.parametrize("newest", [None, 10])
def test_a_tail_that_falls_behind_leaves_out_the_same_steps_of_all_ranks(tmp_path: Path, newest: int | None) -> None:
    """In rings written faster than read, the tail skips to the same step near their ends and counts every record."""
    recorders = [Recorder.create(tmp_path, identity(rank), records=1 << 14) for rank in range(3)]
    series = [recorder.add_series(series_info()) for recorder in recorders]
    tail = Tail(tmp_path, rescan_s=0, newest_steps=newest)
    tail.poll()
    read: dict[int, list[int]] = {rank: [] for rank in range(3)}
    written = 0
    for burst in (5, 60, 5, 100):
        for each in series:
            steps(each, written, burst)
        written += burst
        for _ in range(4):
            for reader, records in tail.poll(100).batches:
                read[reader.identity.rank] += records["step"][records["kind"] == 2].tolist()
            for reader in tail.readers:
                now = reader.statistics()
                assert now.written == 62 * written
                assert now.written == now.delivered + now.lapped + now.damaged + now.skipped + now.pending
                assert (now.skipped > 0) == (newest is not None and written > 5)
    while batches := tail.poll(100).batches:
        for reader, records in batches:
            read[reader.identity.rank] += records["step"][records["kind"] == 2].tolist()
    assert read[0] == read[1] == read[2]
    assert (read[0] == list(range(written))) == (newest is None)
    assert read[0][-9:] == list(range(written - 9, written))
    tail.close()
    for recorder in recorders:
        recorder.close()


def test_a_copy_of_a_living_ring_does_not_take_its_place(tmp_path: Path) -> None:
    """Of two rings of one rank and one start, the one with a living writer counts, whichever is found first."""
    recorder = Recorder.create(tmp_path, identity(), records=64)
    series = recorder.add_series(series_info())
    write(series, 1, 5)
    with watch_rings(tmp_path, rescan_s=0) as watch:
        watch.drain()
        for name in ("ring-0.swt", "ring-z.swt"):
            shutil.copyfile(recorder.path, tmp_path / name)
            (tmp_path / f"ring-link-{name}").hardlink_to(recorder.path)
            watch.drain()
            (status,) = watch.observe().ranks
            assert (status.ring.alive, status.ring.path) == (True, str(recorder.path))
        write(series, 6, 1)
        watch.drain()
        assert watch.ledger.facts().ranks[0].records == 6
    with watch_rings(tmp_path, rescan_s=0) as watch:
        watch.drain()
        (status,) = watch.observe().ranks
        assert status.ring.alive
        assert watch.ledger.facts().ranks[0].records == 6
    recorder.close()
