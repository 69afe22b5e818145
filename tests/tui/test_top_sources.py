"""Whatever the source, the facts are the same; and a source that goes away is said to, and picked up again."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon.recorded_run import RecordedRun, series_info
from daemon.serving import serving
from damaged_answers import DAMAGED, answering
from patience import patience
from swtrace_tui.once import overview
from swtrace_tui.palette import DARK
from swtrace_tui.picture import RankState, Selection, picture
from swtrace_tui.snapshot import Link, Snapshot
from swtrace_tui.sources.daemon import DaemonSource, parse
from swtrace_tui.sources.protocol import Source
from swtrace_tui.sources.rings import RingsSource
from swtrace_tui.sources.several import merged
from swtrace_tui.views.view import Scene
from swtrace_tui.views.windows import rank_lines

from swtrace import units
from swtrace.errors import SettingsError
from swtrace.ledger.facts import StepFacts
from swtrace.trace.identity import SeriesInfo, UntracedRank
from swtrace.trace.schema import Clock
from swtrace.watch import Watch
from tui.ring_writer import RingWriter, scenario, write
from tui.scenes import snapshot_of


def settled(source: Source, steps: int) -> Snapshot:
    """Poll until the source knows so many finished steps."""
    deadline = time.monotonic() + patience()
    while time.monotonic() < deadline:
        source.poll()
        snapshot = source.snapshot()
        if any(len(each) >= steps for each in snapshot.history.values()):
            return snapshot
        time.sleep(0.02)
    raise AssertionError(f"{source.name} never knew {steps} steps: {source.snapshot().sources}")


def known(step: StepFacts, name: str) -> Any:
    """Return a field with what its masks call unknown blanked out: a daemon sends null there."""
    value = getattr(step, name)
    masks = {
        "last_issue_ns": step.attributed,
        "backlog_ns": step.attributed,
        "transfer_ns": step.attributed,
        "late_rank": step.late_rank >= 0,
    }
    if name in {"source", "present", "ended", "cause_ns"} or not isinstance(value, np.ndarray):
        return value
    return np.where(masks.get(name, step.present if value.ndim == 2 else step.ended), value, 0)


def test_a_daemon_gives_the_same_facts_as_the_rings(tmp_path: Path) -> None:
    """Decoded from the daemon's JSON, facts, steps and windows equal those of the rings themselves."""
    with write(tmp_path, "straggler") as writer, serving(tmp_path) as client:
        rings, daemon = RingsSource(tmp_path, facts_every_s=0), DaemonSource(str(client.base_url))
        ours, theirs = settled(rings, writer.steps), settled(daemon, writer.steps)
        rings.close()
        daemon.close()

    assert theirs.sources[0].link is Link.LIVE
    assert theirs.facts.series == ours.facts.series
    assert [view.identity for view in theirs.ranks] == [view.identity for view in ours.ranks]
    assert [view.windows for view in theirs.ranks] == [view.windows for view in ours.ranks]
    (key, mine), (their_key, received) = next(iter(ours.history.items())), next(iter(theirs.history.items()))
    assert key == their_key
    for one, other in zip(mine, received, strict=True):
        for field in fields(StepFacts):
            if field.name != "path":
                same = known(one, field.name) == known(other, field.name)
                assert np.all(same), field.name
        assert (one.path is None) == (other.path is None)
        assert one.path is None or one.path.length_ns == other.path.length_ns  # type: ignore[union-attr]


def test_untimed_steps_are_told_beside_all_steps(tmp_path: Path) -> None:
    """Rings and daemon give the same facts of a device's run, and the overview counts the steps without instants."""
    run = RecordedRun(tmp_path, clock=Clock.DEVICE)
    run.write_every(4, 12)
    rings = RingsSource(tmp_path, facts_every_s=0)
    with serving(tmp_path) as client:
        daemon = DaemonSource(str(client.base_url))
        ours, theirs = settled(rings, 3), settled(daemon, 3)
        daemon.close()
    rings.close()
    run.close()

    assert theirs.facts.series == ours.facts.series
    seen = picture(ours, Selection())
    words = " ".join(overview(seen, 160).split())
    assert "steps 12 untimed 9 held" in words
    assert "9 of 12 steps have no instants: 9 as SWTRACE_TIME_EVERY asks" in words
    assert [row.facts.recent.steps for row in seen.rows] == [3, 3]


class WithoutRank2(RecordedRun):
    """Two ranks of three: the third could not make its ring."""

    def info(self, rank: int) -> SeriesInfo:
        """Return the series as a rank describes it."""
        return series_info(rank, 3, untraced=(UntracedRank(2, "No space left on device"),))


def test_an_untraced_rank_is_named_from_any_source(tmp_path: Path) -> None:
    """Steps finish without it, rings and daemon give the same facts, and the overview says which rank it is and why."""
    run = WithoutRank2(tmp_path)
    run.write(8)
    rings = RingsSource(tmp_path, facts_every_s=0)
    with serving(tmp_path) as client:
        daemon = DaemonSource(str(client.base_url))
        ours, theirs = settled(rings, 8), settled(daemon, 8)
        daemon.close()
    rings.close()
    run.close()

    assert theirs.facts.series == ours.facts.series
    words = " ".join(overview(picture(theirs, Selection()), 160).split())
    assert "Rank 2 runs untraced: No space left on device." in words


def test_a_device_s_windows_alarm_nobody(tmp_path: Path) -> None:
    """What a device has in flight for long is not shown as an alarm: until the next step it looks so by itself."""
    styles = {}
    for clock in (Clock.HOST, Clock.DEVICE):
        folder = tmp_path / clock.name
        run = RecordedRun(folder, clock=clock)
        run.write(4)
        run.series[0].window_issued(0, 4, 0, run.base_ns)
        source = RingsSource(folder, facts_every_s=0)
        snapshot = settled(source, 4)
        source.close()
        run.close()
        late = tuple(replace(view, taken_ns=run.base_ns + 10**11) for view in snapshot.ranks)
        scene = Scene(picture(replace(snapshot, ranks=late), Selection()), DARK, {})
        (row,) = (row for row in scene.picture.rows if row.rank == 0)
        lines = rank_lines(row, scene.picture.series[0], DARK, 120)
        styles[clock] = {segment.style.color.name for line in lines for segment in line if segment.style.color}  # type: ignore[union-attr]
    assert DARK.bad in styles[Clock.HOST]
    assert DARK.bad not in styles[Clock.DEVICE]


def test_a_lost_daemon_is_said_to_be_lost_and_picked_up_again(tmp_path: Path) -> None:
    """Without its daemon, a source keeps the last facts and says why it has no newer ones; with it, it goes on."""
    with write(tmp_path, "stalled") as writer:
        with serving(tmp_path) as client:
            port = client.base_url.port
            source = DaemonSource(f"127.0.0.1:{port}")
            before = settled(source, writer.steps)
        source.close()
        source._ask_at = 0.0
        source.poll()
        lost = source.snapshot()
        with serving(tmp_path) as client:
            source._port = client.base_url.port or 0
            source._ask_at = 0.0
            source.poll()
            again = source.snapshot()
        source.close()

    assert lost.sources[0].link is Link.LOST
    assert lost.sources[0].detail
    assert lost.facts == before.facts
    assert again.sources[0].link is Link.LIVE


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_answer_is_an_error_on_the_screen(damage: str) -> None:
    """An address where something else answers gives a lost source with the reason, and no exception."""
    with answering(DAMAGED[damage]) as address:
        source = DaemonSource(address)
        source.poll()

    (status,) = source.snapshot().sources
    assert status.link is Link.LOST
    assert status.detail
    assert "\n" not in status.detail


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("host", ("host", 9465)),
        ("host:1234", ("host", 1234)),
        ("http://host:1234/", ("host", 1234)),
        ("[::1]:99", ("::1", 99)),
        ("::1", ("::1", 9465)),
    ],
)
def test_addresses_are_read_as_people_write_them(address: str, expected: tuple[str, int]) -> None:
    """A daemon's address may leave out the port or carry ``http://``."""
    assert parse(address) == expected


@pytest.mark.parametrize("address", ["", "https://host:1", "host:port", "host:0", "http://host:1/api"])
def test_addresses_that_cannot_be_meant_are_refused(address: str) -> None:
    """What is no address is a readable error."""
    with pytest.raises(SettingsError, match="HOST:PORT"):
        parse(address)


def test_two_daemons_of_one_run_make_one_series_again() -> None:
    """Ranks that two hosts' daemons each see half of stand side by side, and only what needs both stays unknown."""
    whole = snapshot_of(scenario("stalled"))
    halves = [_half(whole, ranks) for ranks in ({0, 1}, {2, 3})]

    both = merged(halves)

    assert [rank.rank for rank in both.facts.series[0].ranks] == [rank.rank for rank in whole.facts.series[0].ranks]
    (steps,) = both.history.values()
    (truth,) = whole.history.values()
    for one, other in zip(steps, truth, strict=True):
        assert np.array_equal(one.stall_ns, other.stall_ns)
        assert np.array_equal(one.ready_ns, other.ready_ns)
        assert one.complete
    assert both.clock_offsets == {view.key: view.wall_offset_ns for view in both.ranks}


def _half(whole: Snapshot, ranks: set[int]) -> Snapshot:
    def step_half(step: StepFacts) -> StepFacts:
        mask = np.array([rank.rank in ranks for rank in step.ranks])
        columns: dict[str, Any] = {
            field.name: np.where(mask.reshape((-1,) + (1,) * (value.ndim - 1)), value, 0).astype(value.dtype)
            for field in fields(StepFacts)
            if isinstance(value := getattr(step, field.name), np.ndarray) and field.name not in {"source", "cause_ns"}
        }
        return replace(step, **columns, complete=False, path=None)

    host = f"host-{min(ranks)}"
    views = [
        replace(view, identity=replace(view.identity, host=host, boot_id=host), wall_offset_ns=1_000 * (1 + min(ranks)))
        for view in whole.ranks
        if view.identity.rank in ranks
    ]
    series = [
        replace(each, ranks=tuple(rank for rank in each.ranks if rank.rank.rank in ranks), straggler=None)
        for each in whole.facts.series
    ]
    return replace(
        whole,
        ranks=tuple(views),
        facts=replace(whole.facts, series=tuple(series)),
        history={key: tuple(step_half(step) for step in steps) for key, steps in whole.history.items()},
    )


def test_a_dead_rank_and_an_ended_one_are_told_apart(tmp_path: Path) -> None:
    """A ring that was closed says ended; one whose writer let go of its lock without that says died."""
    writer = write(tmp_path, "hidden")
    writer.recorders[0].close()
    writer.recorders[1]._detach()
    source = RingsSource(tmp_path, facts_every_s=0)

    snapshot = settled(source, writer.steps)
    states = {row.rank: row.state for row in picture(snapshot, Selection()).rows}
    source.close()
    writer.close()

    assert states == {0: RankState.ENDED, 1: RankState.DIED, 2: RankState.LIVE, 3: RankState.LIVE}


def test_the_newest_living_run_is_shown_first(tmp_path: Path) -> None:
    """Rings of an ended run in the same folder do not hide the run that lives."""
    write(tmp_path, "hidden", run_id="old").close()
    with write(tmp_path, "stalled", run_id="new") as writer:
        write(tmp_path, "hidden", run_id="newer-and-over").close()
        source = RingsSource(tmp_path, facts_every_s=0)
        snapshot = settled(source, writer.steps)
        source.close()

    seen = picture(snapshot, Selection())
    assert seen.run == "new"
    assert set(seen.runs) == {"old", "new", "newer-and-over"}
    assert picture(snapshot, Selection(run="old")).run == "old"


def test_a_view_begins_near_the_end_of_full_rings_and_says_what_came_before(tmp_path: Path) -> None:
    """A long past is counted as before this view, not as lost; the last steps' sums are those of who read it all."""
    with write(tmp_path, "stalled", ranks=2, layers=6, steps=200) as writer, Watch(tmp_path) as whole:
        whole.drain()
        source = RingsSource(tmp_path, facts_every_s=0)
        while source.poll():
            pass
        seen = picture(source.snapshot(), Selection())
        source.close()

    truth = whole.ledger.facts().series[0]
    for row, rank in zip(seen.rows, truth.ranks, strict=True):
        assert row.recent == rank.recent
        assert row.view is not None
        statistics = row.view.statistics
        assert row.view.before == statistics.skipped == 7 * (writer.steps - row.facts.totals.steps) > 0
        assert statistics.written == 7 * writer.steps == statistics.delivered + statistics.skipped
        assert row.lost == 0
    assert f"before this view {units.count(2 * statistics.skipped)}" in " ".join(overview(seen, 160).split())


def test_a_view_that_cannot_keep_up_counts_what_it_left_out_as_lost(tmp_path: Path) -> None:
    """Ranks that write faster than the view reads are shown as they are now, at their true rate, with the loss."""
    schedule = scenario("stalled", ranks=2, layers=6, steps=1200)
    with RingWriter(tmp_path, schedule, ring_records=1 << 14) as writer:
        source = RingsSource(tmp_path, facts_every_s=0)
        source._limit = 400
        for step in range(1200):
            writer.write_step(step)
            if step == 100:
                while source.poll():
                    source.snapshot()
        source.poll()
        source._limit = 400
        while source.poll():
            pass
        seen = picture(source.snapshot(), Selection())
        source.close()

    ends = [writer.end_ns(step) for step in range(1200)]
    for row in seen.rows:
        assert row.view is not None
        statistics = row.view.statistics
        # How much depends on the machine: a slow one reads in smaller slices, and more often.
        assert row.lost == statistics.skipped - row.view.before > 0
        assert statistics.written == 7 * 1200 == statistics.delivered + statistics.skipped
        assert row.facts.last_step == 1199
        assert row.step_rate is not None
        assert row.step_rate == pytest.approx(1199e9 / (ends[-1] - ends[0]), rel=0.1)
