"""The charts of the overview fit into their room, and their bars are the ledger's sums."""

from __future__ import annotations

import re
from typing import Any

import pytest
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views.overview_charts import CAUSE_GLYPHS, charts
from swtrace_tui.views.view import Scene

from swtrace import units
from swtrace.ledger.facts import CAUSES
from tests.support.scenes import observation_across, on_two_hosts, pictured
from tests.support.simulated_rings import scenario


def drawn(name: str, width: int, height: int, **shape: Any) -> list[str]:
    """Return the charts of a scenario as text."""
    return [strip.text for strip in charts(Scene(pictured(name, **shape), MONO), width, height)]


@pytest.mark.parametrize(("height", "shown"), [(5, 1), (11, 1), (12, 2), (20, 2), (40, 3), (80, 3)])
@pytest.mark.parametrize("width", [60, 200])
def test_charts_fit_into_their_room(width: int, height: int, shown: int) -> None:
    """Charts need no more lines or columns than there are, and appear one after the other as the room grows."""
    lines = drawn("stalled", width, height, ranks=16, steps=6)
    assert len(lines) <= height
    assert {len(line) for line in lines} == {width}
    titles = ("Stall by layer", "Stall by cause", "Step time")
    assert [any(f" {title}: " in line for line in lines) for title in titles] == [at < shown for at in range(3)]


def test_a_column_of_several_layers_says_so() -> None:
    """With more layers than columns, the title says how many layers a column shows the worst of."""
    assert "a column shows the worst of" not in drawn("stalled", 100, 12)[0]
    assert "a column shows the worst of 3 layers" in drawn("stalled", 100, 12, layers=240, steps=6)[0]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_titles_and_legends_are_never_cut(width: int) -> None:
    """In a narrow terminal, titles and legends continue on further lines."""
    text = " ".join(" ".join(drawn("straggler", width, 48, layers=120, steps=6)).split())
    assert "…" not in text
    assert re.search(r"a column shows the worst of \d layers", text)
    assert "stall of the most stalled rank" in text
    assert "░ the rest" in text
    assert "━ transfer" in text


def test_a_bar_is_a_ranks_stall_split_by_cause() -> None:
    """Each rank's bar is as long as its stall beside the worst rank's, and each part as long as its cause's share."""
    rows = pictured("straggler").rows
    top = max(row.recent.stall_ns / row.recent.steps for row in rows)
    lines = drawn("straggler", 140, 60)
    bars = {line.split("rank")[1].split()[0]: line for line in lines if line.strip().startswith("rank ")}
    room = 120
    for row in rows:
        line = bars[str(row.rank)]
        per_step = row.recent.stall_ns / row.recent.steps
        assert line.rstrip().endswith(f" {units.duration(per_step)}")
        for glyph, cause in zip(CAUSE_GLYPHS, CAUSES, strict=True):
            share = row.recent.cause_ns.get(cause, 0) / row.recent.steps / top
            assert line.count(glyph) == pytest.approx(share * room, abs=1.01)


@pytest.mark.parametrize("width", [60, 120])
def test_bars_name_the_hosts_of_their_ranks(width: int) -> None:
    """With several hosts, each bar names the host, as far as a quarter of the line has room for it."""
    seen = picture(observation_across(on_two_hosts(scenario("straggler"))), Filter())
    lines = [strip.text for strip in charts(Scene(seen, MONO), width, 40)]
    for rank, host in enumerate(("host-0", "host-0", "host-1", "host-1")):
        (line,) = (line for line in lines if line.startswith(f" rank {rank} ("))
        assert (f" ({host}) " if width == 120 else " (host-…") in line
        assert len(line) == width
