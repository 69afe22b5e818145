"""A picture of an observation: the run, series and ranks that were selected, with the ledger's sums."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from swtrace_tui.once import overview, read
from swtrace_tui.picture import Filter, RankState, picture

from swtrace import units
from swtrace.ledger.alignment import Method, Probe
from swtrace.observing import Observation, watch_rings
from swtrace.trace.identity import RankKey
from swtrace.trace.schema import Phase
from tests.support.host_clocks import HostClock, Hosts
from tests.support.scenes import (
    Still,
    app_over,
    observation_across,
    observation_of,
    on_two_hosts,
    press,
    run,
    shown,
    until,
)
from tests.support.schedules import Schedule
from tests.support.settling import settled
from tests.support.simulated_rings import RingWriter, scenario, write


def beside(seen: Observation, run_id: str, *, alive: bool, reason: str = "") -> Observation:
    """Return an observation with a second, later run that has no series, or one that is not shared."""
    series = tuple(replace(info, refused=reason) for info in seen.ranks[0].series) if reason else ()
    later = tuple(
        replace(
            rank,
            identity=replace(rank.identity, run_id=run_id, start_time_ns=rank.identity.start_time_ns + 10**9),
            series=series,
            ring=replace(rank.ring, rank=RankKey(run_id, rank.key.rank), alive=alive, windows=()),
        )
        for rank in seen.ranks
    )
    return replace(seen, ranks=(*seen.ranks, *later))


@pytest.mark.parametrize(("alive", "reason"), [(True, "dense model"), (True, ""), (False, "dense model")])
def test_a_run_that_shares_is_shown_before_a_newer_one_that_does_not(alive: bool, reason: str) -> None:  # noqa: FBT001
    """The newest live run does not hide one that shares; screen, text and the JSON's source name the other run."""
    whole = beside(observation_of(scenario("stalled")), "newer", alive=alive, reason=reason)
    seen = picture(whole, Filter())
    assert seen.run == whole.ranks[0].identity.run_id
    assert "There are other runs: newer. --run shows one." in overview(seen, 120)
    other = overview(picture(whole, Filter(run="newer")), 120)
    assert ("Run newer shares nothing." if reason else "4 ranks found, but no series yet.") in other
    assert f"There are other runs: {seen.run}." in other
    assert "Press" not in other
    assert "This screen" not in other

    async def test() -> None:
        app = app_over(Still(whole))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: "R: run newer" in shown(app))
            await press(pilot, "R")
            await until(pilot, lambda: f"R: run {seen.run}" in shown(app))
            assert f"There are other runs: {seen.run}. Press R" in shown(app)

    run(test())


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Filter(run="bogus"), "There is no run 'bogus'. Runs: "),
        (Filter(series="nope"), "has no series 'nope'. Series: o_proj."),
        (Filter(rank=9), "Rank 9 is not in the selected series. Ranks: 0, 1, 2, 3."),
        (Filter(phase=Phase.PREFILL), "None of the last steps has phase prefill. Phases (steps): decode ("),
    ],
)
def test_a_choice_that_nothing_matches_is_answered_with_what_there_is(selection: Filter, message: str) -> None:
    """For a run, series, rank or phase that does not exist, no view shows another one's figures."""
    whole = observation_of(scenario("stalled"))
    seen = picture(whole, selection)
    assert message in seen.unmatched
    assert not picture(whole, Filter()).unmatched

    async def test() -> None:
        app = app_over(Still(whole), selection=selection)
        async with app.run_test(size=(140, 40)) as pilot:
            for key in "12345":
                await press(pilot, key)
                await until(pilot, lambda: message in shown(app))
            await press(pilot, "escape")
            if selection.run is None:
                await until(pilot, lambda: message not in shown(app))

    run(test())


def test_the_phases_sums_are_the_ledgers_over_those_steps(tmp_path: Path) -> None:
    """Narrowed to decode, stall and steps are the sums over the decode steps of the history only."""
    phases = (Phase.PREFILL, Phase.DECODE, Phase.DECODE)
    with write(tmp_path, "stalled", phases=phases), watch_rings(tmp_path) as roster:
        read(roster, Filter(), 5)
        seen = roster.observe()
    whole, decode = (picture(seen, Filter(phase=phase)).series[0] for phase in (None, Phase.DECODE))
    steps = [step for step in whole.steps if step.common_phase is Phase.DECODE]

    assert len(steps) == len(decode.steps) == 2 * len(whole.steps) // 3
    for row in decode.rows:
        assert row.recent.stall_ns == sum(int(step.stall_ns[row.group_rank].sum()) for step in steps)
        assert row.recent.steps == len(steps)


NEWEST = 72


def test_a_dead_rank_and_an_ended_one_are_told_apart(tmp_path: Path) -> None:
    """A rank that closed its ring is ended; one that released its lock without closing it died."""
    writer = write(tmp_path, "hidden")
    writer.recorders[0].close()
    writer.recorders[1]._detach()
    with watch_rings(tmp_path) as roster:
        states = {row.rank: row.state for row in picture(settled(roster, writer.steps), Filter()).rows}
    writer.close()

    assert states == {0: RankState.ENDED, 1: RankState.DIED, 2: RankState.LIVE, 3: RankState.LIVE}


def test_a_series_that_a_living_rank_closed_does_not_count_as_held(tmp_path: Path) -> None:
    """Such a row is closed, not idle, and the sums of memory leave it out."""
    with write(tmp_path, "hidden") as writer:
        writer.series[0].close()
        with watch_rings(tmp_path) as roster:
            seen = picture(settled(roster, writer.steps), Filter())
    assert {row.rank: row.state for row in seen.rows} == dict.fromkeys(range(1, 4), RankState.LIVE) | {
        0: RankState.CLOSED
    }
    held = sum(row.facts.held_bytes for row in seen.rows if row.rank)
    replicated = sum(row.facts.info.replicated_bytes for row in seen.rows if row.rank)
    sums = f"held {units.size(held)} instead of {units.size(replicated)}"
    assert sums in " ".join(overview(seen, 160).split())


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


def ranks_shown(text: str) -> list[int]:
    """Return the ranks that a search finds."""
    return [row.rank for row in picture(observation_of(scenario("stalled")), Filter(text=text)).rows]


def test_a_number_is_a_rank_or_a_pid_and_text_a_part_of_a_name() -> None:
    """Numbers match whole, other words match in part and in any case, and all words must match."""
    whole = observation_of(scenario("stalled"))
    (third,) = (rank.identity for rank in whole.ranks if rank.identity.rank == 2)
    assert ranks_shown("2") == [2]
    assert 2 in ranks_shown(str(third.pid))
    assert ranks_shown("rank 2") == [2]
    assert ranks_shown("O_Pr") == ranks_shown(third.host.upper()) == ranks_shown("live") == [0, 1, 2, 3]
    assert ranks_shown("o_proj 2") == [2]
    assert ranks_shown("died") == ranks_shown("o_proj nowhere") == []


def test_ranks_of_several_hosts_are_grouped_by_host() -> None:
    """Rows are by host, that of the first rank first. No host is named if all ranks, or all that match, are on one."""
    whole = observation_across(on_two_hosts(scenario("stalled"), (0, 1, 0, 1)))
    seen = picture(whole, Filter())
    (series,) = seen.series
    assert [row.rank for row in seen.rows] == [0, 2, 1, 3]
    assert [(host.name, [row.rank for row in host.rows]) for host in seen.hosts] == [
        ("host-0", [0, 2]),
        ("host-1", [1, 3]),
    ]
    assert series.rank_name(1) == "rank 1 (host-1)"
    assert picture(whole, Filter(text="host-1")).hosts == ()
    alone = picture(observation_of(scenario("stalled")), Filter())
    assert alone.hosts == ()
    assert alone.series[0].rank_name(1) == "rank 1"


def test_a_hosts_clock_is_the_ledgers() -> None:
    """The first rank's clock is the reference; another one has the bound that the ledger states, or is unknown."""
    hosts = on_two_hosts(scenario("stalled"))
    whole = observation_across(hosts)
    (clock,) = whole.facts.series[0].alignment
    here, there = picture(whole, Filter()).hosts
    assert here.clock == "reference clock"
    assert there.clock == f"clock ±{units.duration(clock.bound_ns)} by broadcasts"

    unread = Hosts(scenario("stalled"), (0, 0, 1, 1), hosts.clocks)
    none = replace(whole, facts=unread.ledger().facts())
    assert [host.clock for host in picture(none, Filter()).hosts] == ["reference clock", "clock unknown"]


def test_hosts_on_one_clock_have_no_clock_to_name() -> None:
    """Ranks that share a clock, such as those of two containers, are grouped without a word about clocks."""
    seen = observation_of(scenario("stalled"))
    ranks = tuple(
        replace(rank, identity=replace(rank.identity, host=f"container-{rank.identity.rank // 2}"))
        for rank in seen.ranks
    )
    assert [(host.name, host.clock) for host in picture(replace(seen, ranks=ranks), Filter()).hosts] == [
        ("container-0", ""),
        ("container-1", ""),
    ]


def test_the_bound_of_a_step_is_the_largest_between_two_ranks() -> None:
    """Of three clocks, the bounds of the two worst add up; ranks on one clock are not compared with each other."""
    made = scenario("stalled", ranks=6, layers=12)
    hosts = Hosts(made, (0, 0, 1, 1, 2, 2), [HostClock(host * 10**12, host * 1e-6) for host in range(3)])
    ledger = hosts.ledger()
    ledger.add_probe(Probe("boot-1", "boot-0", hosts.clocks[1].at(1), 1, 90_001))
    (series,) = picture(observation_across(hosts), Filter()).series
    step = series.steps[-1]
    pairs = [(one, two) for one, two in combinations(range(6), 2) if hosts.host[one] != hosts.host[two]]
    between = max(int(step.clock_bound_ns[one] + step.clock_bound_ns[two]) for one, two in pairs)
    assert series.alignment(step) == (Method.BROADCASTS, between)
    assert between > int(step.clock_bound_ns.max())


def test_simulated_time_is_one_clock() -> None:
    """Hosts whose ranks run on simulated time are named without a clock, and a step has no bound."""
    made = scenario("stalled")
    virtual = Schedule([replace(info, clock="virtual") for info in made.infos], made.records, made.operations)
    seen = picture(observation_across(Hosts(virtual, (0, 0, 1, 1), (HostClock(), HostClock()))), Filter())
    (series,) = seen.series
    assert [host.clock for host in seen.hosts] == ["", ""]
    assert series.steps[-1].comparable
    assert series.alignment(series.steps[-1]) is None
