"""The terminal over rings: which run it shows, and what it says about ranks and unread records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from swtrace_tui.once import overview
from swtrace_tui.palette import DARK
from swtrace_tui.picture import Filter, RankState, picture
from swtrace_tui.views.view import Scene
from swtrace_tui.views.windows import rank_lines

from swtrace import units
from swtrace.observing import watch_rings
from swtrace.trace.identity import SeriesInfo, UntracedRank
from swtrace.trace.schema import Clock
from tests.support.recorded_run import RecordedRun, series_info
from tests.support.settling import settled
from tests.support.simulated_rings import RingWriter, scenario, write

NEWEST = 72


def test_untimed_steps_are_told_beside_all_steps(tmp_path: Path) -> None:
    """The overview counts the untimed steps of a device's run."""
    run = RecordedRun(tmp_path, clock=Clock.DEVICE)
    run.write_every(4, 12)
    with watch_rings(tmp_path) as roster:
        seen = picture(settled(roster, 3), Filter())
    run.close()

    words = " ".join(overview(seen, 160).split())
    assert "steps 12 untimed 9 held" in words
    assert "9 of 12 steps are untimed: 9 not sampled (SWTRACE_TIME_EVERY=1" in words
    assert [row.facts.recent.steps for row in seen.rows] == [3, 3]


class WithoutRank2(RecordedRun):
    """Two of three ranks; the third could not create its ring."""

    def info(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it."""
        return series_info(rank, 3, untraced=(UntracedRank(2, "No space left on device"),))


def test_an_untraced_rank_is_named(tmp_path: Path) -> None:
    """Steps finish without it, and the overview says which rank it is and why."""
    run = WithoutRank2(tmp_path)
    run.write(8)
    with watch_rings(tmp_path) as roster:
        words = " ".join(overview(picture(settled(roster, 8), Filter()), 160).split())
    run.close()
    assert "Rank 2 runs untraced: No space left on device." in words


def test_a_device_s_windows_alarm_nobody(tmp_path: Path) -> None:
    """A device's window that is in flight for long is not marked: it normally is until the next step."""
    styles = {}
    for clock in (Clock.HOST, Clock.DEVICE):
        folder = tmp_path / clock.name
        run = RecordedRun(folder, clock=clock)
        run.write(4)
        run.series[0].window_issued(0, 4, 0, run.base_ns)
        with watch_rings(folder) as roster:
            seen = settled(roster, 4)
        run.close()
        late = tuple(replace(rank, ring=replace(rank.ring, taken_ns=run.base_ns + 10**11)) for rank in seen.ranks)
        scene = Scene(picture(replace(seen, ranks=late), Filter()), DARK, {})
        (row,) = (row for row in scene.picture.rows if row.rank == 0)
        lines = rank_lines(row, scene.picture.series[0], DARK, 120)
        styles[clock] = {segment.style.color.name for line in lines for segment in line if segment.style.color}  # type: ignore[union-attr]
    assert DARK.bad in styles[Clock.HOST]
    assert DARK.bad not in styles[Clock.DEVICE]


def test_a_dead_rank_and_an_ended_one_are_told_apart(tmp_path: Path) -> None:
    """A rank that closed its ring is ended; one that released its lock without closing it died."""
    writer = write(tmp_path, "hidden")
    writer.recorders[0].close()
    writer.recorders[1]._detach()
    with watch_rings(tmp_path) as roster:
        states = {row.rank: row.state for row in picture(settled(roster, writer.steps), Filter()).rows}
    writer.close()

    assert states == {0: RankState.ENDED, 1: RankState.DIED, 2: RankState.LIVE, 3: RankState.LIVE}


def test_the_newest_living_run_is_shown_first(tmp_path: Path) -> None:
    """Rings of an ended run in the same folder do not hide the live run."""
    write(tmp_path, "hidden", run_id="old").close()
    with write(tmp_path, "stalled", run_id="new") as writer:
        write(tmp_path, "hidden", run_id="newer-and-over").close()
        with watch_rings(tmp_path) as roster:
            known = settled(roster, writer.steps)

    seen = picture(known, Filter())
    assert seen.run == "new"
    assert set(seen.runs) == {"old", "new", "newer-and-over"}
    assert picture(known, Filter(run="old")).run == "old"


def test_a_view_begins_near_the_end_of_full_rings_and_says_what_came_before(tmp_path: Path) -> None:
    """Old records count as before this view, not as lost; the last steps' sums are those of a complete reading."""
    with write(tmp_path, "stalled", ranks=2, layers=6, steps=200) as writer, watch_rings(tmp_path) as whole:
        whole.drain()
        with watch_rings(tmp_path, newest_steps=NEWEST) as roster:
            roster.drain()
            seen = picture(roster.observe(), Filter())

    truth = whole.ledger.facts().series[0]
    for row, rank in zip(seen.rows, truth.ranks, strict=True):
        assert row.recent == rank.recent
        assert row.observed is not None
        statistics = row.observed.ring.statistics
        assert row.observed.before == statistics.skipped == 7 * (writer.steps - row.facts.totals.steps) > 0
        assert statistics.written == 7 * writer.steps == statistics.delivered + statistics.skipped
        assert row.lost == 0
    assert f"before this view {units.count(2 * statistics.skipped)}" in " ".join(overview(seen, 160).split())


def test_a_view_that_cannot_keep_up_counts_what_it_left_out_as_lost(tmp_path: Path) -> None:
    """Ranks that write faster than the view reads are shown at their newest steps and true rate, with the loss."""
    schedule = scenario("stalled", ranks=2, layers=6, steps=1200)
    with RingWriter(tmp_path, schedule, ring_records=1 << 14) as writer:
        roster = watch_rings(tmp_path, newest_steps=NEWEST)
        for step in range(1200):
            writer.write_step(step)
            if step == 100:
                while roster.poll(400):
                    roster.observe()
        while roster.poll(400):
            pass
        seen = picture(roster.observe(), Filter())
        roster.close()

    ends = [writer.end_ns(step) for step in range(1200)]
    for row in seen.rows:
        assert row.observed is not None
        statistics = row.observed.ring.statistics
        assert row.lost == statistics.skipped - row.observed.before > 0
        assert statistics.written == 7 * 1200 == statistics.delivered + statistics.skipped
        assert row.facts.last_step == 1199
        assert row.step_rate is not None
        assert row.step_rate == pytest.approx(1199e9 / (ends[-1] - ends[0]), rel=0.1)
