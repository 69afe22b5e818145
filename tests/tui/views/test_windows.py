"""The view of windows marks what is late on a host, and not what is normal on a device."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from swtrace_tui.palette import DARK, MONO, WINDOW_ABOUT, WINDOW_NAMES
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views.view import Scene
from swtrace_tui.views.windows import WindowsView, rank_lines

from swtrace.observing import Link, OriginStatus, watch_rings
from swtrace.trace.schema import Clock
from tests.support.recorded_run import RecordedRun
from tests.support.scenes import drawn, observation_across, observation_of, on_two_hosts
from tests.support.settling import settled
from tests.support.simulated_rings import scenario


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
        scene = Scene(picture(replace(seen, ranks=late), Filter()), DARK)
        (row,) = (row for row in scene.picture.rows if row.rank == 0)
        lines = rank_lines(row, scene.picture.series[0], DARK, 120)
        styles[clock] = {segment.style.color.name for line in lines for segment in line if segment.style.color}  # type: ignore[union-attr]
    assert DARK.bad in styles[Clock.HOST]
    assert DARK.bad not in styles[Clock.DEVICE]


@pytest.mark.parametrize("state", ["live", "ended", "recorded"])
def test_only_the_windows_of_a_live_rank_have_ages(state: str) -> None:
    """A rank that ended holds nothing, and a recording stores windows once a second: neither shows an age."""
    seen = observation_of(scenario("stalled"))
    if state == "ended":
        rings = [replace(rank.ring, alive=False, closed=True) for rank in seen.ranks]
        seen = replace(
            seen, ranks=tuple(replace(rank, ring=ring) for rank, ring in zip(seen.ranks, rings, strict=True))
        )
    if state == "recorded":
        seen = replace(seen, origins=(OriginStatus("run.swrec", Link.RECORDED),))
    lines = WindowsView().draw(Scene(picture(seen, Filter()), MONO), 80, 40)
    cards = [strip.text for strip in lines if " w0 " in strip.text]
    assert len(cards) == 4
    assert {bool(re.search(r"in flight *\d", card)) for card in cards} == {state == "live"}
    assert any("as stored once a second" in strip.text for strip in lines) == (state == "recorded")


@pytest.mark.parametrize("width", [40, 80, 100, 160, 184, 220])
def test_the_legend_of_windows_is_never_cut(width: int) -> None:
    """At any width the legend names every state in full, and what it means unless that took another line."""
    lines = drawn(WindowsView(), width, 40)
    text = " ".join(" ".join(lines[:4]).split())
    for name in (*WINDOW_NAMES.values(), "own layer"):
        assert name in text
    assert "…" not in text
    assert (WINDOW_ABOUT["in_use"] in text) == (width >= 184)


def test_rows_of_layers_in_the_windows_view_have_an_axis() -> None:
    """Numbers above the rows say which layer is where; rows that continue begin with their first layer's number."""
    lines = drawn(WindowsView(), 100, 40, layers=20)
    axis = next(line for line in lines if line.lstrip().startswith("layer "))
    row = next(line for line in lines if line.lstrip().startswith("layers "))
    (window,) = re.finditer("█+", row)
    assert window.start() == axis.index("0") + 3 * 3  # the window in use holds layer 3; a layer takes 3 columns
    narrow = drawn(WindowsView(), 40, 60, layers=61)
    assert [int(line.split()[1]) for line in narrow if line.lstrip().startswith("layer ")][:3] == [0, 29, 58]


@pytest.mark.parametrize("width", [60, 140])
def test_each_rank_names_its_host_if_there_are_several(width: int) -> None:
    """The host follows the state, so that a narrow terminal shows it too."""
    seen = picture(observation_across(on_two_hosts(scenario("stalled"))), Filter())
    lines = [strip.text for strip in WindowsView().draw(Scene(seen, MONO), width, 40)]
    for rank in range(4):
        assert any(line.startswith(f"   rank {rank} live, on host-{rank // 2}, ") for line in lines)
