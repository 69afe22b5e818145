"""Reading a recording: whole, in parts, truncated, garbled, or written by something else."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from swtrace.errors import RecordingFormatError, SwtraceError
from swtrace.observing import HostRings, Roster
from swtrace.recording import Recording
from swtrace.recording.format import (
    FRAME_BYTES,
    PREAMBLE,
    VERSION,
    FrameKind,
)
from swtrace.recording.tee import Tee
from swtrace.recording.writer import FRAME_RECORDS, RecordingWriter
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record, recorded_sequences, replay, replayed, schedule, write


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


def test_cut_at_any_byte_a_recording_opens_up_to_its_last_whole_frame(tmp_path: Path) -> None:
    """However many bytes are left, a recording opens with their complete frames, or says that there is none."""
    whole, cut = tmp_path / "whole.swrec", tmp_path / "cut.swrec"
    record(whole, schedule(steps=30), largest=20)
    data = whole.read_bytes()
    with Recording.open(whole) as recording:
        ends = [at.offset + FRAME_BYTES + at.header.stored_bytes for at in recording._frames]
        counts = np.cumsum([at.header.records for at in recording._frames]).tolist()
    chance = random.Random(4)  # noqa: S311 - reproducible
    for length in {*range(200), *(chance.randrange(len(data)) for _ in range(150)), *ends}:
        cut.write_bytes(data[:length])
        if length < ends[0]:
            with pytest.raises(RecordingFormatError, match=r"nothing was recorded|empty"):
                Recording.open(cut)
            continue
        with Recording.open(cut) as recording:
            there = [index for index, end in enumerate(ends) if end <= length]
            assert len(recording) == len(there)
            assert recording.records == counts[there[-1]]
            missing = recording.missing()
            assert missing.tail_bytes == length - ends[there[-1]]
            assert missing.finished == (length == len(data))
            if missing.tail_bytes >= FRAME_BYTES:
                assert missing.tail_records == counts[there[-1] + 1] - counts[there[-1]]
            replay(recording)


def test_garbled_bytes_are_a_clear_error_and_can_be_read_around(tmp_path: Path) -> None:
    """A changed byte anywhere is an error that names file and place; with salvage the rest is read and counted."""
    whole, bad = tmp_path / "whole.swrec", tmp_path / "bad.swrec"
    record(whole, schedule(steps=8), largest=20, clock=iter(range(0, 1 << 40, 1 << 28)).__next__)
    data = whole.read_bytes()
    with Recording.open(whole) as recording:
        assert len(recording) > 10
        everything = recording.records
    chance = random.Random(6)  # noqa: S311 - reproducible
    for _ in range(100):
        at = chance.randrange(len(data))
        bad.write_bytes(data[:at] + bytes([data[at] ^ chance.randint(1, 255)]) + data[at + 1 :])
        with pytest.raises(RecordingFormatError, match=r"bad\.swrec: "):
            replayed(bad)
        try:
            recording = Recording.open(bad, salvage=True)
        except RecordingFormatError:
            assert at < PREAMBLE.size  # nothing says that this is a recording
            continue
        with recording:
            replay(recording)
            missing = recording.missing()
            assert missing.damaged_frames > 0 or at < PREAMBLE.size
            delivered = sum(len(sequences) for sequences in recorded_sequences(recording).values())
            assert delivered <= everything


def test_a_damaged_byte_costs_one_small_frame_of_records(tmp_path: Path) -> None:
    """Wherever a byte is changed, all but 512 records are read, with the ranks and series that they belong to."""
    whole, bad = tmp_path / "whole.swrec", tmp_path / "bad.swrec"
    record(whole, schedule(steps=200), largest=1 << 20)
    data = whole.read_bytes()
    with Recording.open(whole) as recording:
        everything = recording.records
        frames = [(at.offset, at.header) for at in recording._frames]
    assert everything > 6 * FRAME_RECORDS
    chance = random.Random(12)  # noqa: S311 - reproducible
    heads = [offset for offset, header in frames if header.kind != FrameKind.RECORDS]
    places = [*(offset + FRAME_BYTES + 2 for offset in heads), *(offset + 9 for offset in heads)]
    places += [chance.randrange(PREAMBLE.size, len(data)) for _ in range(40)]
    for at in places:
        bad.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        with Recording.open(bad, salvage=True) as recording:
            found = sum(len(each) for each in recorded_sequences(recording).values())
            missing = recording.missing()
            assert sum(bool(rank.series) for rank in replay(recording).ranks) == 3
        assert found >= everything - FRAME_RECORDS, at
        assert missing.damaged_frames == 1, at
        assert any("Damaged: 1 frame" in sentence for sentence in missing.sentences)


def test_anything_else_is_told_apart_from_a_recording(tmp_path: Path) -> None:
    """Another version, a ring, a text, an empty file and a folder each give one clear error."""
    path = tmp_path / "file"
    cases = {
        PREAMBLE.pack(b"SWTREC\r\n", VERSION + 1, 0): f"recording format {VERSION + 1}; this swtrace reads format",
        b"SWTRACE\0" + bytes(100): "a rank's ring, not a recording",
        b"SWTREC\n" + bytes(100): "sent as text",
        b"hello": "not a swtrace recording",
        b"": "empty",
        PREAMBLE.pack(b"SWTREC\r\n", VERSION, 0): "nothing was recorded",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(RecordingFormatError, match=message):
            Recording.open(path)
    with pytest.raises(RecordingFormatError):
        Recording.open(tmp_path)
    with pytest.raises(RecordingFormatError, match="No such file"):
        Recording.open(tmp_path / "nowhere")


def test_random_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    """After a valid preamble, garbage, even with valid checksums, raises only swtrace's errors or nothing."""
    whole, bad = tmp_path / "whole.swrec", tmp_path / "bad.swrec"
    record(whole, schedule(steps=5))
    chance = random.Random(8)  # noqa: S311 - reproducible
    from swtrace.recording import format as layout

    with Recording.open(whole) as recording:
        first = recording._frames[0]
        head = whole.read_bytes()[: first.offset + FRAME_BYTES + first.header.stored_bytes]
    for _ in range(300):
        kind = chance.randint(0, 12)
        raw = chance.randbytes(chance.randint(0, 200))
        if chance.random() < 0.3:
            raw = chance.choice([b"{}", b'{"ranks": 3}', b'{"ranks": [{"rank": 0}]}', b"[]", b"\0" * 4, b"\xff" * 8])
        sealed = layout.frame(layout.FrameKind.RECORDS, raw, 0)
        sealed = layout.frame(kind, raw, 0) if kind else sealed  # type: ignore[arg-type]
        bad.write_bytes(head + sealed)
        with suppress(SwtraceError):
            replayed(bad)
        replayed(bad, salvage=True)


def test_a_recording_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    """A reader that runs during the writing sees only complete frames."""
    path, made = tmp_path / "run.swrec", schedule(steps=600)
    stop = threading.Event()
    problems: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                with Recording.open(path) as recording:
                    replay(recording)
            except RecordingFormatError as error:
                if "nothing was recorded" not in str(error) and "empty" not in str(error):
                    problems.append(error)

    with RecordingWriter(path) as writer:
        reader = threading.Thread(target=read)
        reader.start()
        write(writer, made)
        stop.set()
        reader.join()
    assert problems == []
