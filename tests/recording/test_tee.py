"""Rings are recorded as they are written."""

from __future__ import annotations

import random
from pathlib import Path

from swtrace.ledger.alignment import Probe
from swtrace.observing import HostRings, Roster, watch_rings
from swtrace.observing.events import (
    ClockProbed,
    RankEnded,
    RankForgotten,
    RankJoined,
    RecordsRead,
    RingsSeen,
    SeriesListed,
)
from swtrace.recording import Recording
from swtrace.recording.tee import Tee
from swtrace.recording.writer import RecordingWriter
from tests.support.recorded_run import RecordedRun
from tests.support.schedules import key
from tests.support.simulated_recordings import Told, events_of, replayed, schedule


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
            assert mine.ring.marks == theirs.ring.marks
            assert mine.ring.closed
            assert not mine.ring.alive


def test_a_series_that_a_living_rank_closed_is_recorded_as_closed(tmp_path: Path) -> None:
    """A recording says which series its ranks had closed when it ended."""
    path = tmp_path / "run.swrec"
    run = RecordedRun(tmp_path / "rings")
    with RecordingWriter(path) as writer:
        tee = Tee(HostRings(tmp_path / "rings"), writer)
        run.write(5)
        run.series[1].close()
        tee.finish()
        tee.close()
    run.close()
    assert [[entry.closed for entry in rank.entries()] for rank in replayed(path).ranks] == [[False], [True]]


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


def test_probes_of_clocks_are_recorded(tmp_path: Path) -> None:
    """A recording yields the probes that passed, between the same events, and a new ledger aligns clocks by them."""
    path = tmp_path / "run.swrec"
    probes = [ClockProbed(Probe("boot-b", "boot-a", 10**9 * second, 9**9, 9**9 + 100)) for second in (1, 2)]
    rank = RankJoined(schedule().identity(0))
    with RecordingWriter(path) as writer:
        tee = Tee(Told([probes[0], rank, probes[1]]), writer)
        tee.poll()
        tee.finish()
    with Recording.open(path) as recording:
        assert [event for event in recording.events() if not isinstance(event, RingsSeen)] == [
            probes[0],
            rank,
            probes[1],
        ]
