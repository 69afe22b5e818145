"""A recording as a film: every position is a ledger that was fed up to there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from recording.made import record, replayed, schedule
from swtrace.errors import RecordingError
from swtrace.recording import Recording
from swtrace.recording.playback import Controls, Playback
from swtrace.session import RecordingSession


class Wall:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        """Tell the time."""
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a recording of 60 steps."""
    record(tmp_path / "run.swrec", schedule(steps=60))
    return tmp_path / "run.swrec"


@pytest.fixture
def recording(path: Path) -> Iterator[Recording]:
    """Return it, open."""
    with Recording.open(path) as opened:
        yield opened


def settle(playback: Playback) -> None:
    """Feed everything that is due."""
    while playback.advance():
        pass


def steps(playback: Playback) -> int:
    """Return how many steps of rank 0 the ledger knows."""
    return sum(series.ranks[0].totals.steps for series in playback.ledger.facts().series)


def test_played_to_its_end_it_states_the_facts_of_the_whole(path: Path, recording: Recording) -> None:
    """At the end of the film the ledger states what a replay of the file states, to the last digit."""
    controls = Controls()
    playback = Playback(recording, controls)
    controls.seek(1.0)
    settle(playback)
    assert playback.head.ended
    whole = replayed(path).ledger.facts()
    assert playback.ledger.facts().series == whole.series


def test_time_passes_at_the_speed_asked_for(recording: Recording) -> None:
    """After a tenth of the length at speed 1, a tenth of the run is known; at speed 4, four times as much more."""
    controls, wall = Controls(), Wall()
    playback = Playback(recording, controls, clock=wall)
    length = playback.head.length_ns
    wall.now += length // 10
    settle(playback)
    assert steps(playback) == pytest.approx(6, abs=2)
    controls.faster(1)
    controls.faster(1)
    wall.now += length // 10
    settle(playback)
    assert playback.head.speed == 4.0
    assert steps(playback) == pytest.approx(30, abs=3)


def test_paused_it_stands_still_and_goes_on_step_by_step(recording: Recording) -> None:
    """Paused, nothing moves however long; each step asked for finishes at least one more."""
    controls, wall = Controls(), Wall()
    playback = Playback(recording, controls, clock=wall)
    assert not controls.toggle()
    wall.now += 1 << 50
    settle(playback)
    before = steps(playback)
    for _ in range(5):
        controls.step()
        settle(playback)
    assert before + 4 <= steps(playback) <= before + 8


def test_going_back_is_having_gone_only_so_far(recording: Recording) -> None:
    """A ledger after a seek back states what one says that never went further."""
    controls, other = Controls(), Controls()
    playback, straight = Playback(recording, controls, clock=Wall()), Playback(recording, other, clock=Wall())
    controls.seek(0.9)
    settle(playback)
    controls.seek(0.4)
    settle(playback)
    other.seek(0.4)
    settle(straight)
    assert 0 < steps(playback) < 40
    assert playback.ledger.facts() == straight.ledger.facts()
    assert playback.head == straight.head


def test_a_closed_recording_says_so(path: Path) -> None:
    """Reading a recording that was closed is an error that names the file, not one of a descriptor."""
    session = RecordingSession(path)
    session.close()
    for question in (session.facts, session.identities, lambda: list(session.steps()), lambda: session.recording.size):
        with pytest.raises(RecordingError, match=rf"{path}: this recording is closed"):
            question()
