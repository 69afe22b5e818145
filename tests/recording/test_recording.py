"""A recording returns what was written to it: whole, in parts, and from rings that are being written."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtrace.errors import RecordingError, RecordingFormatError
from swtrace.observing import HostRings, Roster, watch_rings
from swtrace.observing.events import RankEnded, RankForgotten, RankJoined, RecordsRead, SeriesListed
from swtrace.recording import Recording
from swtrace.recording.format import MAX_FRAME_RECORDS, pack_records, unpack_records
from swtrace.recording.replay import Replay
from swtrace.recording.tee import Tee
from swtrace.recording.writer import FRAME_RECORDS, LEAST_BYTES, RecordingWriter
from swtrace.trace import records
from swtrace.trace.schema import Clock, Untimed
from tests.support.recorded_run import RecordedRun
from tests.support.schedules import key
from tests.support.simulated_recordings import Told, events_of, record, record_rings, replayed, schedule, write


@pytest.mark.parametrize("largest", [1, 7, 5000])
def test_replayed_facts_equal_those_seen_live(tmp_path: Path, largest: int) -> None:
    """A ledger that reads a recording computes exactly the facts of the ledger that ran beside the recorder."""
    path = tmp_path / "run.swrec"
    live = record(path, schedule(), largest=largest)
    again = replayed(path)
    assert again.facts == live.facts()
    assert again.facts.series[0].ranks[0].recent.stall_ns > 0


def test_a_device_s_run_is_recorded_with_its_untimed_steps(tmp_path: Path) -> None:
    """Steps without instants are read back with the same counts, reasons and facts as in the rings."""
    run = RecordedRun(tmp_path / "rings", clock=Clock.DEVICE)
    run.write_every(4, 14)
    run.write_untimed(Untimed.UNFINISHED)
    run.close()
    path = tmp_path / "run.swrec"
    with watch_rings(tmp_path / "rings") as watch:
        watch.drain()
        record_rings(tmp_path / "rings", path)
        live = watch.ledger.facts()
    again = replayed(path).facts
    assert again == live
    totals = again.series[0].ranks[0].totals
    assert {reason: steps for reason, steps in totals.untimed_steps.items() if steps} == {
        "sampled": 10,
        "unfinished": 1,
    }
    with Recording.open(path) as recording:
        assert [step.step for step in Roster(Replay(recording), keep_steps=True).steps()] == [0, 4, 8, 12]


def test_replayed_steps_equal_those_seen_live(tmp_path: Path) -> None:
    """Every column of every finished step is the same."""
    path, made = tmp_path / "run.swrec", schedule(steps=30)
    live = Roster(Told(events_of(made, random.Random(2), 50)), keep_steps=True)  # noqa: S311 - as recorded
    live.drain()
    live.ledger.flush()
    record(path, made)
    with Recording.open(path) as recording:
        again = list(Roster(Replay(recording), keep_steps=True).steps())
    taken = live.take_steps()
    assert [step.step for step in again] == [step.step for step in taken]
    for mine, theirs in zip(again, taken, strict=True):
        np.testing.assert_equal(asdict(mine), asdict(theirs))


@given(st.lists(st.tuples(st.integers(0, 9), st.binary(min_size=0, max_size=640)), min_size=1, max_size=5))
def test_packing_is_lossless(batches: list[tuple[int, bytes]]) -> None:
    """Any 64 bytes are read back unchanged."""
    segments = [(rank, np.frombuffer(data[: len(data) // 64 * 64], records.TRANSFER).copy()) for rank, data in batches]
    again = unpack_records(pack_records(segments))
    assert [(rank, batch.tobytes()) for rank, batch in again] == [(rank, b.tobytes()) for rank, b in segments]


def test_a_large_batch_is_split_and_comes_back_in_order(tmp_path: Path) -> None:
    """More records than fit in a frame are written as several frames."""
    made = schedule(steps=2000, ranks=2)
    assert len(made.records[0]) > 3 * FRAME_RECORDS
    path = tmp_path / "run.swrec"
    record(path, made, largest=1 << 20)
    with Recording.open(path) as recording:
        back = [
            batch for e in recording.events() if isinstance(e, RecordsRead) for r, batch in e.batches if r.rank == 0
        ]
        assert max(sum(len(batch) for batch in back), 0) == len(made.records[0])
        assert max(len(batch) for batch in back) <= FRAME_RECORDS < MAX_FRAME_RECORDS
        assert np.concatenate(back).tobytes() == made.records[0].tobytes()


def test_rings_are_recorded_as_they_are_written(tmp_path: Path) -> None:
    """A recording of rings has what a live watch saw, and the statistics of the rings."""
    path = tmp_path / "run.swrec"
    rings = tmp_path / "rings"
    run = RecordedRun(rings)
    with RecordingWriter(path) as writer, watch_rings(rings) as watch:
        tee = Tee(HostRings(rings), writer)
        for _ in range(20):
            run.write(5)
            tee.poll()
            watch.poll()
        run.close()
        tee.finish()
        writer.close()
        watch.drain()
        watch.ledger.flush()
        again, live = replayed(path), watch.observe()
        assert again.facts == live.facts
        for mine, theirs in zip(again.ranks, live.ranks, strict=True):
            assert mine.ring.statistics == theirs.ring.statistics
            assert mine.ring.windows == theirs.ring.windows
            assert mine.ring.closed
            assert not mine.ring.alive


def test_a_restarted_rank_is_recorded_as_it_was_seen(tmp_path: Path) -> None:
    """If a newer ring of the same run replaced a rank's ring, the replay also forgets the older one."""
    path, made = tmp_path / "run.swrec", schedule()
    events = (
        *events_of(made, random.Random(1), 50),  # noqa: S311 - reproducible
        RankForgotten(key(1)),
        RankJoined(made.identity(1)),
        SeriesListed(key(1), (made.infos[1],)),
        RecordsRead(((key(1), made.records[1]),)),
        RankEnded(key(1)),
    )
    with RecordingWriter(path) as writer:
        roster = Roster(Tee(Told(events), writer))
        roster.drain()
    roster.ledger.flush()
    assert replayed(path).facts == roster.ledger.facts()


def test_parts_together_are_the_whole_and_each_stands_alone(tmp_path: Path) -> None:
    """A rotated recording replays to the same facts from all parts in any order, and each part replays alone."""
    path, rings = tmp_path / "run.swrec", tmp_path / "rings"
    run = RecordedRun(rings)
    with RecordingWriter(path, part_bytes=5000) as writer:
        roster = Roster(Tee(HostRings(rings), writer))
        for _ in range(12):
            run.write(20)
            roster.drain()
        run.close()
        roster.drain()
    roster.ledger.flush()
    parts = sorted(tmp_path.glob("run*.swrec"))
    assert len(parts) > 3
    assert replayed(parts).facts == roster.ledger.facts()
    for part in parts:
        (series,) = replayed(part).facts.series
        assert series.steps > 0
        assert [rank.rank.rank for rank in series.ranks] == [0, 1]


def test_parts_that_do_not_follow_each_other_are_refused(tmp_path: Path) -> None:
    """A gap between parts, or parts of two recordings, are an error that names the files."""
    rings = tmp_path / "rings"
    run = RecordedRun(rings)
    with RecordingWriter(tmp_path / "a.swrec", part_bytes=4000) as writer:
        tee = Tee(HostRings(rings), writer)
        for _ in range(3):
            run.write(40)
            tee.finish()
    run.close()
    record(tmp_path / "b.swrec", schedule(steps=3))
    with pytest.raises(RecordingFormatError, match=r"a\.2\.swrec is part 2.*a\.swrec part 0"):
        Recording.open([tmp_path / "a.swrec", tmp_path / "a.2.swrec"])
    with pytest.raises(RecordingFormatError, match="not parts of one recording"):
        Recording.open([tmp_path / "a.swrec", tmp_path / "b.swrec"])


def test_rotation_keeps_the_newest_parts(tmp_path: Path) -> None:
    """With a limit on the number of parts, older ones are removed, and the newest can be read."""
    rings = tmp_path / "rings"
    run = RecordedRun(rings)
    with RecordingWriter(tmp_path / "a.swrec", part_bytes=4000, keep_parts=2) as writer:
        tee = Tee(HostRings(rings), writer)
        for _ in range(6):
            run.write(2)
            tee.finish()
    run.close()
    kept = sorted(tmp_path.glob("a*.swrec"))
    assert len(kept) == 2
    with Recording.open(kept) as recording:
        assert recording.about.part == writer.statistics().parts - 2
        assert recording.about.records_before > 0


@pytest.mark.parametrize("limit", ["part_bytes", "max_bytes"])
def test_no_file_outgrows_its_limit_even_while_a_backlog_is_drained(tmp_path: Path, limit: str) -> None:
    """However many records arrive at once, no file exceeds the limit, and none wastes half of its room."""
    made = schedule(steps=4000, ranks=2)
    with RecordingWriter(tmp_path / "run.swrec", **{limit: LEAST_BYTES}) as writer:  # type: ignore[arg-type]
        write(writer, made, largest=1 << 20)  # each rank's records in one batch
        writer.close()
        said = writer.statistics()
    parts = sorted(tmp_path.glob("run*.swrec"))
    sizes = [part.stat().st_size for part in parts]
    assert max(sizes) <= LEAST_BYTES
    with Recording.open(parts) as recording:
        assert recording.missing().finished
        assert recording.records == said.records
        assert said.records + said.left_out == sum(map(len, made.records))
    if limit == "part_bytes":
        assert len(parts) > 2
        assert said.left_out == 0
        assert min(sizes[:-1]) > LEAST_BYTES // 2
    else:
        assert writer.full
        assert said.left_out > 0
        assert sizes[0] > LEAST_BYTES // 2


def test_a_part_too_small_for_its_ranks_is_an_error(tmp_path: Path) -> None:
    """If the descriptions of the ranks fill a part, recording ends with an error that names the setting."""
    made = schedule(steps=20, ranks=8)
    with pytest.raises(
        RecordingError, match=r"bytes are too few for the descriptions of all ranks \(.\) .* --rotate must be larger"
    ):
        record(tmp_path / "run.swrec", made, part_bytes=3000)


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    """A file is overwritten only on request."""
    path = tmp_path / "run.swrec"
    path.write_text("mine")
    with pytest.raises(RecordingError, match="--force"):
        RecordingWriter(path)
    assert path.read_text() == "mine"
    RecordingWriter(path, overwrite=True).close()
    with Recording.open(path) as recording:
        assert recording.missing().finished
        assert recording.records == 0


def test_memory_is_bounded_while_recording(tmp_path: Path) -> None:
    """A writer buffers at most a frame of records, however many it gets."""
    made = schedule(steps=400, ranks=2)
    with RecordingWriter(tmp_path / "run.swrec", clock=lambda: 0) as writer:
        writer.take(RankJoined(made.identity(0)))
        for _ in range(50):
            writer.take(RecordsRead(((key(0), made.records[0]),)))
            assert writer.statistics().unwritten < FRAME_RECORDS
        assert writer.statistics().records == 50 * len(made.records[0])
