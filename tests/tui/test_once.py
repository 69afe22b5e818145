"""The overview as text: it waits for every origin, and states the ledger's figures."""

from __future__ import annotations

import random
from pathlib import Path

from swtrace_tui.once import overview, read
from swtrace_tui.picture import Filter, picture

from swtrace import units
from swtrace.observing import Link, OriginStatus, Roster, watch_rings
from swtrace.observing.events import ClockProbed, Event, RecordsRead, RingsSeen
from swtrace.observing.merged import Merged
from swtrace.observing.origin import Polled
from swtrace.trace.identity import SeriesInfo, UntracedRank
from swtrace.trace.schema import Clock
from tests.support.recorded_run import RecordedRun, series_info
from tests.support.scenes import observation_across, observation_of, on_two_hosts
from tests.support.settling import settled
from tests.support.simulated_recordings import Told, events_of
from tests.support.simulated_rings import scenario, write


class Half(Told):
    """A daemon that sees two of four ranks, and answers at its tenth poll or never."""

    def __init__(self, ranks: set[int], *, answers: bool = True) -> None:
        made = scenario("stalled")
        events = events_of(made, random.Random(1), 50)  # noqa: S311 - reproducible
        super().__init__(part for event in events if (part := _of(ranks, event)) is not None)
        self._left = 10 if answers else -1

    def poll(self, limit: int | None = None) -> Polled:
        """Return no events until it answers."""
        self._left -= 1
        return super().poll(limit) if self._left == 0 else Polled((), more=False)

    def status(self) -> tuple[OriginStatus, ...]:
        """Return whether it has answered."""
        if self._left < 0 and self._events:
            return (OriginStatus("there:9465", Link.LOST, "Connection refused"),)
        return (OriginStatus("late", Link.CONNECTING if self._events else Link.LIVE),)


def _of(ranks: set[int], event: Event) -> Event | None:
    if isinstance(event, RingsSeen | ClockProbed):
        return None
    of = event.batches[0][0] if isinstance(event, RecordsRead) else event.rank
    return event if of.rank in ranks else None


def test_all_daemons_are_waited_for_before_anything_is_printed() -> None:
    """The picture includes the ranks of a daemon that answers late; one that never answers is named at the timeout."""
    seen = read(Roster(Merged([Half({0, 1}), Half({2, 3})])), Filter(), 60)
    assert [row.rank for row in seen.rows] == [0, 1, 2, 3]
    assert seen.observation.silent == []

    seen = read(Roster(Merged([Half({0, 1}), Half({2, 3}, answers=False)])), Filter(), 0.7)
    assert seen.observation.silent == ["there:9465 (Connection refused)"]


def test_every_row_states_the_ledgers_figures(tmp_path: Path) -> None:
    """Each rank's stall ratio, efficiency, on-time rate and bandwidth are in its line of the text overview."""
    with write(tmp_path, "stalled"), watch_rings(tmp_path) as watch:
        watch.drain()
        with watch_rings(tmp_path) as roster:
            lines = overview(read(roster, Filter(), 5), 120).splitlines()

    for rank in watch.ledger.facts().series[0].ranks:
        line = next(line for line in lines if line.split()[:1] == [str(rank.rank.rank)])
        recent = rank.recent
        for text in (
            units.ratio(recent.stall_ratio),
            units.ratio(recent.efficiency),
            units.ratio(recent.on_time_rate),
            units.bandwidth(recent.bandwidth),
            units.duration(recent.step_ns / recent.steps),
        ):
            assert text in line


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

    def described(self, rank: int) -> SeriesInfo:
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


def test_the_text_groups_ranks_by_host() -> None:
    """Each host's ranks follow its name and clock, and the headings take no lines from verdict and charts."""
    seen = picture(observation_across(on_two_hosts(scenario("stalled"))), Filter())
    lines = overview(seen, 120).splitlines()
    at = [
        next(i for i, line in enumerate(lines) if f" {host.name}  2 ranks  {host.clock} " in line)
        for host in seen.hosts
    ]
    assert [lines[i].split()[0] for i in (at[0] + 1, at[0] + 2, at[1] + 1, at[1] + 2)] == ["0", "1", "2", "3"]
    alone = overview(picture(observation_of(scenario("stalled")), Filter()), 120).splitlines()
    assert len(lines) == len(alone) + len(seen.hosts)
    assert any(line.lstrip().startswith("rank 3 (host-1) ") for line in lines)
