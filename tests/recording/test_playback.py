"""Playback of a recording: every position shows a ledger that has read the records up to there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swtrace.errors import RecordingError
from swtrace.observing import Roster
from swtrace.recording import Recording
from swtrace.recording.playback import Controls, Playback
from swtrace.session import RecordingSession
from tests.support.simulated_recordings import record, replayed, schedule


class Wall:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        """Return the time."""
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a recording of 60 steps."""
    record(tmp_path / "run.swrec", schedule(steps=60))
    return tmp_path / "run.swrec"


@pytest.fixture
def recording(path: Path) -> Iterator[Recording]:
    """Return the recording, open."""
    with Recording.open(path) as opened:
        yield opened


class Film:
    """A playback, and the roster of what it has played."""

    def __init__(self, recording: Recording, controls: Controls, wall: Wall | None = None) -> None:
        self.playback = Playback(recording, controls, clock=wall or Wall())
        self.roster = Roster(self.playback)

    def play_due(self) -> None:
        """Play everything that is due."""
        self.roster.drain()

    @property
    def steps(self) -> int:
        """Number of known steps of rank 0."""
        return sum(series.ranks[0].totals.steps for series in self.roster.ledger.facts().series)


def test_played_to_its_end_it_states_the_facts_of_the_whole(path: Path, recording: Recording) -> None:
    """At the end of a playback the ledger has exactly the facts of a replay of the file."""
    controls = Controls()
    film = Film(recording, controls)
    controls.seek(1.0)
    film.play_due()
    assert film.playback.head.ended
    whole = replayed(path).facts
    assert film.roster.ledger.facts().series == whole.series


def test_time_passes_at_the_speed_asked_for(recording: Recording) -> None:
    """After a tenth of the length at speed 1, a tenth of the run is known; at speed 4, four times as much is added."""
    controls, wall = Controls(), Wall()
    film = Film(recording, controls, wall)
    length = film.playback.head.length_ns
    wall.now += length // 10
    film.play_due()
    assert film.steps == pytest.approx(6, abs=2)
    controls.faster(1)
    controls.faster(1)
    wall.now += length // 10
    film.play_due()
    assert film.playback.head.speed == 4.0
    assert film.steps == pytest.approx(30, abs=3)


def test_paused_it_stands_still_and_goes_on_step_by_step(recording: Recording) -> None:
    """While paused, nothing moves; each requested step finishes at least one more."""
    controls, wall = Controls(), Wall()
    film = Film(recording, controls, wall)
    assert not controls.toggle()
    wall.now += 1 << 50
    film.play_due()
    before = film.steps
    for _ in range(5):
        controls.step()
        film.play_due()
    assert before + 4 <= film.steps <= before + 8


def test_going_back_is_having_gone_only_so_far(recording: Recording) -> None:
    """After a seek back, the ledger has the facts of one that never went further."""
    controls, other = Controls(), Controls()
    film, straight = Film(recording, controls), Film(recording, other)
    controls.seek(0.9)
    film.play_due()
    controls.seek(0.4)
    film.play_due()
    other.seek(0.4)
    straight.play_due()
    assert 0 < film.steps < 40
    assert film.roster.ledger.facts() == straight.roster.ledger.facts()
    assert film.playback.head == straight.playback.head


def test_a_closed_recording_says_so(path: Path) -> None:
    """Reading a closed recording is an error that names the file, and not one about a descriptor."""
    session = RecordingSession(path)
    session.close()
    for question in (session.facts, session.identities, lambda: list(session.steps()), lambda: session.recording.size):
        with pytest.raises(RecordingError, match=rf"{path}: this recording is closed"):
            question()
