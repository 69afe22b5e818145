"""The view of windows marks what is late on a host, and not what is normal on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from swtrace_tui.palette import DARK
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views.view import Scene
from swtrace_tui.views.windows import rank_lines

from swtrace.observing import watch_rings
from swtrace.trace.schema import Clock
from tests.support.recorded_run import RecordedRun
from tests.support.settling import settled


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
