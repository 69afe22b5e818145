"""A recording in the terminal: it plays, pauses, seeks and ends, and its numbers are the recording's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from swtrace_tui.picture import Filter, RankState, picture
from swtrace_tui.replay_app import ReplayApp

from swtrace import units
from swtrace.observing import HostRings, Roster
from swtrace.observing.events import RingsSeen
from swtrace.observing.origin import Playhead
from swtrace.recording import Recording
from swtrace.recording.format import FRAME_BYTES, FrameKind
from swtrace.recording.playback import Controls, Playback
from swtrace.recording.tee import Tee
from swtrace.recording.writer import RecordingWriter
from tests.support.patience import patience
from tests.support.scenes import press, run, shown, until
from tests.support.simulated_recordings import record, replayed, schedule
from tests.support.simulated_rings import write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a recording of some 30 s: steps of 0.5 s."""
    record(tmp_path / "run.swrec", schedule(steps=60, compute=80_000))
    return tmp_path / "run.swrec"


def head(app: ReplayApp) -> Playhead:
    """Return its position."""
    assert app.head is not None
    return app.head


def steps(app: ReplayApp) -> int:
    """Return how many steps are shown."""
    return sum(len(each.steps) for each in app.picture.series) if app.picture is not None else 0


def test_a_narrow_replay_names_the_key_that_pauses(path: Path) -> None:
    """At 40 columns, the last line still says which key plays and pauses, besides Help and Quit."""

    async def test() -> None:
        app = ReplayApp([path])
        async with app.run_test(size=(40, 12)) as pilot:
            await until(pilot, lambda: "Quit" in shown(app).splitlines()[-1])
            assert "space Pause" in shown(app).splitlines()[-1]

    run(test())


def test_a_recording_begins_to_play_pauses_and_seeks(path: Path) -> None:
    """It plays from the start; space pauses it for any time; n finishes a step; seeking goes both ways."""

    async def test() -> None:
        app = ReplayApp([path])
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.head is not None and app.head.at_ns > 0)
            assert head(app).playing
            await press(pilot, "space")
            await until(pilot, lambda: not head(app).playing)
            still = head(app)
            await pilot.pause(0.3)
            assert head(app).at_ns == still.at_ns
            assert "PAUSED x1 " in shown(app)
            assert "▶ recording" in shown(app).splitlines()[0]
            assert "live" not in shown(app).splitlines()[0]
            await press(pilot, "ctrl+up")
            await until(pilot, lambda: "PAUSED x2 " in shown(app))
            await press(pilot, "ctrl+down")

            # A slow machine may have played much of it by now.
            await press(pilot, "ctrl+home")
            await until(pilot, lambda: head(app).at_ns == 0 and steps(app) == 0)
            before = steps(app)
            await press(pilot, "n")
            await until(pilot, lambda: steps(app) > before)
            assert not head(app).playing

            at = head(app).at_ns
            await press(pilot, "ctrl+right")
            await until(pilot, lambda: head(app).at_ns >= at + 5_000_000_000)
            await until(pilot, lambda: steps(app) > before + 5)
            await press(pilot, "ctrl+left")
            await until(pilot, lambda: head(app).at_ns == pytest.approx(at, abs=1_000_000_000))
            await press(pilot, "ctrl+home")
            await until(pilot, lambda: head(app).at_ns == 0 and steps(app) == 0)

    run(test())


def test_a_recording_played_to_its_end_shows_the_figures_of_its_ledger(path: Path) -> None:
    """At the end the screen says so, and each rank's line has the numbers of a replay of the file."""
    truth = replayed(path).facts.series

    async def test() -> None:
        app = ReplayApp([path])
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.head is not None)
            await press(pilot, "space")
            await until(pilot, lambda: not head(app).playing)
            assert not head(app).ended
            await press(pilot, "ctrl+end")
            await until(pilot, lambda: head(app).ended)
            await until(pilot, lambda: app.picture is not None and app.picture.observation.facts.series == truth)
            await until(pilot, lambda: "END" in shown(app))
            lines = shown(app).splitlines()[2:]  # below the bars
            for rank in truth[0].ranks:
                line = next(line for line in lines if line.split()[:1] == [str(rank.rank.rank)])
                for text in (units.ratio(rank.recent.stall_ratio), units.ratio(rank.recent.efficiency)):
                    assert text in line
            await press(pilot, "question_mark")
            await until(pilot, lambda: "Play or pause the recording." in shown(app))
            assert len([line for line in shown(app).splitlines() if " space " in line]) == 1

    run(test())


def test_what_the_recorder_had_not_read_yet_holds_up_no_replay(tmp_path: Path) -> None:
    """A replay of a recording that began on full rings does not look behind."""
    with write(tmp_path / "rings", "stalled", ranks=2, layers=6, steps=1800):
        recorded = tmp_path / "run.swrec"
        with RecordingWriter(recorded, flush_s=0.0) as writer:
            tee = Tee(HostRings(tmp_path / "rings"), writer)
            tee.poll()  # finds the rings, and says how much is in them
            tee.finish()
    with Recording.open(recorded) as recording:
        behind = [
            ring.statistics.pending
            for event in recording.events()
            if isinstance(event, RingsSeen)
            for ring in event.rings
        ]
    assert max(behind) > 64 * 7
    controls = Controls()
    roster = Roster(Playback(Recording.open(recorded), controls))
    for share in (0.3, 1.0):
        controls.seek(share)
        roster.drain()
        seen = picture(roster.observe(), Filter())
        assert RankState.BEHIND not in {row.state for row in seen.rows}
        for row in seen.rows:
            assert row.observed is not None
            statistics = row.observed.ring.statistics
            assert statistics.pending == 0
            told = seen.observation.rank_facts()[row.observed.key]
            assert statistics.delivered == told.records > 0
            assert statistics.written == statistics.delivered + statistics.lost
    roster.close()


def test_damage_is_named_and_read_around_only_when_asked(path: Path, tmp_path: Path) -> None:
    """``top --replay`` and ``replay`` name --salvage and have it; with it, screen and text say how much is missing."""
    bad = tmp_path / "bad.swrec"
    with Recording.open(path) as recording:
        frame = next(at for at in recording._frames if at.header.kind == FrameKind.RECORDS)
    data = bytearray(path.read_bytes())
    data[frame.offset + FRAME_BYTES + 5] ^= 0xFF
    bad.write_bytes(data)

    def top(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "swtrace", "top", "--replay", str(bad), "--once", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=patience(), check=False)

    refused, salvaged = top(), top("--salvage")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--salvage reads around the damage" in refused.stderr
    assert salvaged.returncode == 0, salvaged.stderr
    assert f"Damaged: 1 frame ({FRAME_BYTES + frame.header.stored_bytes} bytes, " in salvaged.stderr

    async def test() -> None:
        app = ReplayApp([bad], salvage=True)
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: app.head is not None)
            await press(pilot, "ctrl+end")
            await until(pilot, lambda: head(app).ended and f"{frame.header.records} records damaged" in shown(app))

    run(test())
