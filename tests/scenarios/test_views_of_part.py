"""Every view of a series that shares part of its layers says so, and names layers by their index in the model."""

from __future__ import annotations

import csv
import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views.heat_map import explanation
from swtrace_tui.views.view import Scene
from swtrace_tui.views.windows import WindowsView

from swtrace.daemon import api
from swtrace.diagnosis.diagnosis import verdict
from swtrace.observing.observation import SeriesEntry
from swtrace.recording import Recording
from swtrace.recording.difference import difference
from swtrace.selection import Selection
from swtrace.spans.step_spans import StepSpans
from swtrace.trace.marks import Occupancy, WindowState
from tests.support.commands import checked
from tests.support.finished_steps import origins
from tests.support.perfetto_reader import read
from tests.support.scenes import Still, app_over, observation_of, press, run, settled, shown
from tests.support.schedules import Schedule, simulate
from tests.support.simulated_recordings import record

SHARED = (20, 23, 24, 27, 30)
WORDS = "5 of layers 20-31 shared"
SCREENS = {"2": r"20 +23 +24 +27 +30", "3": "20 +╷23 +╷24", "4": "20 +24 +30", "5": r"5 of +layers 20-31 shared"}
"""What is on each view, by its key."""


def schedule(*, whole: bool = False) -> Schedule:
    """Return two ranks with broadcasts that do not hide, of 5 shared layers, with resident ones among them or not."""
    made = simulate(
        ranks=2,
        layers=len(SHARED),
        k=0,
        steps=60,
        compute=lambda rank, step, position: 400_000 + 10_000 * ((3 * rank + 7 * step + 5 * position) % 11),
        occupancy=700_000,
        latency=30_000,
        start_layer=20,
    )
    if not whole:
        made.infos = [replace(info, stack_layers=12, layers=SHARED) for info in made.infos]
    return made


@pytest.fixture(scope="module")
def still() -> Still:
    """Return the series at its end."""
    return Still(observation_of(schedule()))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of the series."""
    path = tmp_path_factory.mktemp("part") / "run.swrec"
    record(path, schedule())
    return path


def test_text_and_page_say_which_part_is_shared(recording: Path, tmp_path: Path) -> None:
    """The summary and the report say how many layers are shared, and count memory and compute for these alone."""
    text = checked("stats", recording).stdout
    assert WORDS in text
    assert "bytes of the shared layers; every rank also holds the other 7 whole" in " ".join(text.split())
    assert "per shared layer" in text
    page = tmp_path / "report.html"
    checked("report", recording, "-o", page)
    body = html.unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))
    assert WORDS in " ".join(body.split())
    assert {int(layer) for layer in re.findall(r"rank \d, layer (\d+)", page.read_text(encoding="utf-8"))} == {*SHARED}


def test_the_terminal_says_which_part_is_shared(still: Still) -> None:
    """The header has how many, the diagnosis which; the other views name the layers of the model."""

    async def test() -> None:
        app = app_over(still)
        async with app.run_test(size=(130, 40)) as pilot:
            for key, text in SCREENS.items():
                await press(pilot, key)
                await settled(pilot)
                assert "2 ranks x 5 of 12 layers" in shown(app)
                assert re.search(text, shown(app)), shown(app)

    run(test())
    (series,) = picture(still.now, Filter()).series
    title, *sentences = explanation(series, 1, 2)
    assert title == "Rank 1, layer 24, from rank 0"
    assert "issued 0 shared layers ahead" in " ".join(sentences)
    assert WindowsView().draw(Scene(picture(still.now, Filter()), MONO), 120, 30)


def test_facts_name_the_layers_of_the_model(still: Still, recording: Path, tmp_path: Path) -> None:
    """Verdict, selections, spans, API, tables and traces name a layer by its index in the model."""
    (facts,) = still.now.facts.series
    steps = still.now.history[facts.key]
    worst = next(found for found in verdict(facts, steps).findings if found.kind == "worst_layer")
    assert worst.layer in SHARED
    (picked,) = {tuple(each.positions.tolist()) for each in Selection(layer=24).pick(steps)}
    assert picked == (False, False, True, False, False)
    assert not list(Selection(layer=21).pick(steps))
    made = StepSpans(steps[-1], origins(0, 1, run_id=facts.key.run_id))
    assert {dict(span.attributes or {}).get("swtrace.layer", 20) for span in made} == {*SHARED}
    assert {dict(span.attributes or {}).get("swtrace.reach_layer", 20) for span in made} == {*SHARED}
    window = WindowState(0, Occupancy.READY, 1, 3, 5, 6, 0, 6)
    assert api._windows(SeriesEntry(0, still.now.ranks[0].series[0], (window,), closed=False))[0]["layer"] == 27
    table, trace = tmp_path / "waits.csv", tmp_path / "run.pftrace"
    checked("export", recording, "-f", "csv", "-o", table)
    assert {int(row["layer"]) for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())} == {*SHARED}
    checked("export", recording, "-f", "perfetto", "-o", trace)
    moved = {each.name for each in read(trace) if each.category == "broadcast"}
    assert moved == {f"layer {layer}" for layer in SHARED}


def test_a_comparison_pairs_layers_of_the_model(recording: Path, tmp_path: Path) -> None:
    """Compared with a series that shares all of its layers, only those that both share are paired."""
    record(tmp_path / "whole.swrec", schedule(whole=True))
    with Recording.open(recording) as a, Recording.open(tmp_path / "whole.swrec") as b:
        (found,) = difference(a, b).series
    assert (found.a_extent, found.b_extent) == (WORDS, "layers 20-24")
    assert {one.layer for one in found.layers} <= {20, 23, 24}
    said = checked("diff", recording, tmp_path / "whole.swrec").stdout
    assert f"series o_proj, {WORDS} in A, layers 20-24 in B: A" in said
