"""The timeline zooms, holds a step, and follows the newest one again."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from swtrace_tui.palette import COLOUR_BLIND, DARK, LIGHT, MONO, SPAN_NAMES, Palette, Span
from swtrace_tui.picture import Filter, SeriesView, picture
from swtrace_tui.views.timeline import Timeline, drawn_offsets, extent
from swtrace_tui.views.view import Scene

from swtrace import units
from swtrace.ledger.facts import StepFacts
from swtrace.observing import Observation
from tests.support.host_clocks import HOUR_NS, HostClock, Hosts, true_steps
from tests.support.scenes import (
    Still,
    app_over,
    drawn,
    observation_across,
    observation_of,
    on_two_hosts,
    press,
    run,
    shown,
    until,
)
from tests.support.simulated_rings import scenario


def stalled() -> Still:
    return Still(observation_of(scenario("stalled")))


def test_sentences_use_the_lines_that_lanes_leave() -> None:
    """In a narrow terminal with free lines, the critical path is not cut."""
    text = " ".join(" ".join(drawn(Timeline(), 50, 24)).split())
    assert re.search(r"Critical path, ending on rank \d: .*; total [^…]*\.$", text)


def test_timeline_zooms_holds_the_step_and_follows_again() -> None:
    """Zooming holds the step that is shown; ``f`` follows the newest one and shows all of it."""

    async def test() -> None:
        app = app_over(stalled())
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "3")
            assert "(following)" in shown(app)
            before = app.screen.query_one(Timeline)._range()
            await press(pilot, "plus")
            begin, end = app.screen.query_one(Timeline)._range()
            assert end - begin == pytest.approx((before[1] - before[0]) / 2)
            assert "held" in shown(app)
            await press(pilot, "left_square_bracket")
            assert "Step 22" in shown(app)
            await press(pilot, "f")
            assert "(following)" in shown(app)
            assert "Step 23" in shown(app)

    run(test())


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_legend_of_the_timeline_is_never_cut(width: int) -> None:
    """At any width the legend names every kind of stretch."""
    text = " ".join(" ".join(drawn(Timeline(), width, 40)[:4]).split())
    for name in SPAN_NAMES.values():
        assert name in text


@pytest.mark.parametrize(("layers", "width"), [(20, 120), (61, 120), (61, 220), (128, 160)])
def test_layer_numbers_in_the_timeline_are_regular(layers: int, width: int) -> None:
    """Above each rank's lanes, every n-th layer is numbered, with n the same along the line."""
    lines = [line for line in drawn(Timeline(), width, 60, layers=layers) if line.lstrip().startswith("layer ")]
    assert len(lines) == 4
    for line in lines:
        numbers = [int(number) for number in re.findall(r"╷(\d+)", line)]
        steps = {after - before for before, after in pairwise(numbers)}
        assert len(numbers) >= 4
        assert len(steps) == 1, line
        assert numbers[-1] + steps.pop() >= layers - 1


def test_two_ranks_use_most_of_a_high_screen() -> None:
    """Lanes grow with the room, so that few ranks do not huddle at the top."""
    lines = drawn(Timeline(), 120, 50, ranks=2)
    lanes = [line for line in lines[3:] if re.search("[█░▓─]{2}", line)]
    assert len(lanes) >= 0.7 * 50


@pytest.mark.parametrize("palette", [DARK, LIGHT, COLOUR_BLIND], ids=lambda palette: palette.name)
def test_the_time_after_a_stall_does_not_look_like_a_transfer(palette: Palette) -> None:
    """Wake differs clearly from an exposed transfer and from every other kind of stretch."""

    def rgb(kind: Span) -> tuple[int, ...]:
        return tuple(int(palette.spans[kind][at : at + 2], 16) for at in (1, 3, 5))

    for kind in set(Span) - {Span.WAKE}:
        distance = sum((one - other) ** 2 for one, other in zip(rgb(Span.WAKE), rgb(kind), strict=True)) ** 0.5
        assert distance > 80, kind


def last_of(seen: Observation) -> tuple[SeriesView, StepFacts]:
    """Return the only series, and its last step."""
    (series,) = picture(seen, Filter()).series
    return series, series.steps[-1]


def drawn_begins(seen: Observation) -> np.ndarray:
    """Return where the lanes of the last step begin, ``[rank]``, after those of the first rank."""
    _, step = last_of(seen)
    begins = step.begin_ns + drawn_offsets(step, step, seen)
    return np.asarray(begins - begins[0])


def test_lanes_of_several_hosts_are_on_one_clock() -> None:
    """With aligned clocks, lanes begin and end as they truly did, within the bound that the description states."""
    hosts = on_two_hosts(scenario("straggler"))
    seen = observation_across(hosts, (0, 5_000_000_000))
    series, step = last_of(seen)
    truth = true_steps(hosts.schedule)[-1]
    aligned = series.alignment(step)
    assert aligned is not None
    errors = drawn_begins(seen) - (truth.begin_ns - truth.begin_ns[0])
    assert np.abs(errors).max() <= aligned[1]
    length = extent(step, drawn_offsets(step, step, seen))[1]
    assert abs(length - (truth.end_ns.max() - truth.begin_ns.min())) <= aligned[1]
    text = "\n".join(strip.text for strip in Timeline().draw(Scene(picture(seen, Filter()), MONO), 100, 30))
    assert f"hosts aligned by broadcasts, ±{units.duration(aligned[1])}" in text


def not_aligned() -> tuple[Hosts, Observation]:
    """Return four ranks on three hosts. The last is never a source, so its clock is unknown; wall clocks are wrong."""
    clocks = [HostClock(HOUR_NS), HostClock(5 * 10**12), HostClock()]
    hosts = Hosts(scenario("stalled", layers=3), (0, 0, 1, 2), clocks)
    return hosts, observation_across(hosts, (0, 300_000, -2_000_000))


def test_lanes_fall_back_on_wall_clocks() -> None:
    """While a clock is unknown, lanes begin where the hosts' wall clocks say, also those that are shifted already."""
    hosts, seen = not_aligned()
    _, step = last_of(seen)
    truth = true_steps(hosts.schedule)[-1]
    assert not step.comparable
    assert step.clock_shift_ns[2]
    expected = truth.begin_ns - truth.begin_ns[0] + np.array([0, 0, 300_000, -2_000_000])
    assert drawn_begins(seen).tolist() == expected.tolist()
    for width, words in ((100, "hosts aligned by their wall clocks"), (40, "by wall clocks")):
        view = Timeline()
        text = " ".join(strip.text for strip in view.draw(Scene(picture(seen, Filter()), MONO), width, 8))
        assert words in text


def test_a_wait_is_found_on_any_clock() -> None:
    """A cell opened from the heat map is in the middle of the timeline, also if wall clocks align the ranks."""
    _, seen = not_aligned()

    async def test() -> None:
        app = app_over(Still(seen))
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, "2", "up", "up", "up", "down", "down", "down", "home", "enter")
            timeline = app.screen.query_one(Timeline)
            assert timeline._mark == (3, 0)
            (line,) = (line for line in shown(app).splitlines() if "▸0◂" in line)
            assert abs(line.index("▸0◂") - 60) < 10
            await press(pilot, "0")
            _, step = last_of(seen)
            length = extent(step, drawn_offsets(step, step, seen))[1]
            begin, end = timeline._range()
            assert end - begin == pytest.approx(1.02 * length)

    run(test())


def test_steps_beside_the_shown_one_are_on_the_same_clock() -> None:
    """A rank's step is drawn where the rank's own clock says, though one of the two steps is not aligned."""
    made = scenario("stalled", steps=40)
    when = int(true_steps(made)[20].begin_ns.min()) - 100_000
    hosts = Hosts(made, (0, 1, 0, 1), (HostClock(), HostClock(10**12, set_at_ns=when, set_by_ns=40_000_000)))
    seen = observation_across(hosts)
    (series,) = picture(seen, Filter()).series
    at = next(i for i, step in enumerate(series.steps) if not step.comparable)
    before = series.steps[at]
    after = next(step for step in series.steps[at:] if step.comparable)
    assert before.clock_shift_ns[1] != after.clock_shift_ns[1]
    own = after.begin_ns - after.clock_shift_ns - (before.begin_ns - before.clock_shift_ns)
    begins = before.begin_ns + drawn_offsets(before, after, seen)
    assert (after.begin_ns - begins).tolist() == own.tolist()
    begins = after.begin_ns + drawn_offsets(after, before, seen)
    assert (begins - before.begin_ns - drawn_offsets(before, before, seen)).tolist() == own.tolist()


def test_hosts_are_separated_where_there_is_room() -> None:
    """Each host's lanes follow its heading, unless the headings would push lanes off the screen."""
    seen = picture(observation_across(on_two_hosts(scenario("stalled", layers=12))), Filter())
    for height in range(8, 40):
        lines = [strip.text for strip in Timeline().draw(Scene(seen, MONO), 100, height)]
        assert len(lines) == height
        names = [line.split()[:2] for line in lines if line.lstrip().startswith(("rank ", "host-"))]
        ranks = [["rank", str(rank)] for rank in range(4)]
        with_headings = [["host-0", "2"], *ranks[:2], ["host-1", "2"], *ranks[2:]]
        assert names in ([name for name in with_headings if "host" not in name[0]], with_headings), height
        assert names == with_headings or height < 16


def test_more_ranks_than_lines_scroll_under_the_headings() -> None:
    """The first line is the heading of the host whose ranks follow, and the last one says which lines are shown."""
    made = scenario("stalled", ranks=12, layers=12, steps=4)
    hosts = Hosts(made, [rank // 4 for rank in range(12)], [HostClock(10**9 * host) for host in range(3)])
    view, scene = Timeline(), Scene(picture(observation_across(hosts), Filter()), MONO)
    view._top = 6
    lines = [strip.text for strip in view.draw(scene, 100, 12)]
    first = next(i for i, line in enumerate(lines) if line.startswith(" host-"))
    assert lines[first].startswith(" host-1  4 ranks")
    assert lines[first + 1].startswith("  rank 5 ")
    assert any(re.search(r"lines 7-\d+ of 15, j/k scroll", line) for line in lines)


def test_a_late_rank_of_another_host_is_not_called_the_last() -> None:
    """How late a rank entered is stated if the bound allows; which of two hosts' ranks was last may be unknown."""
    text = " ".join(" ".join(drawn(Timeline(), 100, 30)).split())
    assert "entered last, " in text
    seen = picture(observation_across(on_two_hosts(scenario("straggler"))), Filter())
    text = " ".join(strip.text for strip in Timeline().draw(Scene(seen, MONO), 200, 30))
    assert re.search(r"Rank 3 \(host-1\) entered [\d.]+ ms after the first\.", text)


def test_the_late_entry_of_a_path_over_two_hosts_has_a_bound() -> None:
    """The critical path states by how much its entry may be off, unless one clock timed it."""
    assert re.search(r"late entry [^±;]*;", " ".join(" ".join(drawn(Timeline(), 100, 30)).split()))
    seen = picture(observation_across(on_two_hosts(scenario("straggler"))), Filter())
    text = " ".join(strip.text for strip in Timeline().draw(Scene(seen, MONO), 300, 30))
    assert re.search(r"late entry [\d.]+ \w+ ±[\d.]+ \w+; total", text)


def test_a_heading_shows_the_newest_bound_above_lanes_that_are_kept() -> None:
    """The lanes of a step are drawn once, while the bound of a host's clock goes on changing."""
    seen = observation_across(on_two_hosts(scenario("stalled")))
    (facts,) = seen.facts.series
    (clock,) = facts.alignment
    tighter = replace(facts, alignment=(replace(clock, bound_ns=40_000),))
    view = Timeline()
    view.draw(Scene(picture(seen, Filter()), MONO), 100, 30)
    kept = view._kept
    later = replace(seen, facts=replace(seen.facts, series=(tighter,)))
    lines = [strip.text for strip in view.draw(Scene(picture(later, Filter()), MONO), 100, 30)]
    assert view._kept is kept
    assert any(line.startswith(" host-1  2 ranks  clock ±40.0 us by broadcasts") for line in lines)
