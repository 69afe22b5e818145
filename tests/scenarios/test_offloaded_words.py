"""Nothing that a user reads about layers copied from host memory speaks of ranks that share them."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from swtrace_tui.actions import VIEWS
from swtrace_tui.help import help_text
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, picture
from swtrace_tui.views.heat_map import explanation

from swtrace.cli.exit_codes import ExitCode
from swtrace.diagnosis.diagnosis import verdict
from swtrace.diagnosis.standing import standing
from swtrace.spans.step_spans import StepSpans
from swtrace.trace.marks import Marks, Progress
from swtrace.trace.schema import Stage
from tests.support.commands import checked
from tests.support.daemon_threads import serving
from tests.support.finished_steps import origins
from tests.support.perfetto_reader import read
from tests.support.recorded_run import OffloadedRun
from tests.support.scenes import Still, app_over, observation_of, press, run, shown, until
from tests.support.simulated_pull import PullSchedule, offloaded_info, simulate_pull
from tests.support.simulated_recordings import record

FOREIGN = re.compile(
    r"\b(broadcasts?|shared|sharing|owners?|own layers?|peers?|source rank|from rank)\b", re.IGNORECASE
)
"""Words for ranks that share layers."""
ALLOWED = re.compile(
    r"swtrace[_.]\w+"  # metrics and attributes keep their names for every kind
)
"""What has a fixed name."""
RUNS: dict[str, dict[str, Any]] = {
    "hidden": {"compute": lambda *_: 1_000_000, "copy": lambda *_: 300_000},
    "stalled": {"compute": lambda *_: 300_000, "copy": lambda *_: 1_000_000},
    "slow layer": {"compute": lambda *_: 1_000_000, "copy": lambda _r, _s, layer: 9_000_000 if layer == 3 else 300_000},
    "collision": {"compute": lambda *_: 1_000_000, "copy": lambda *_: 300_000, "layers": 11},
    "slow rank": {"compute": lambda *_: 1_000_000, "copy": lambda rank, *_: 3_000_000 if rank else 300_000},
}
"""Runs whose verdicts differ."""
STATUS = {"hidden": ExitCode.SUCCESS}


def schedule(name: str) -> PullSchedule:
    """Return two ranks that copy every other layer from host memory."""
    return simulate_pull(**{"layers": 12, "k": 2, "steps": (40, 30), "offloaded": True, "wake": 9_000, **RUNS[name]})


def foreign(text: str) -> list[str]:
    """Return the lines with words that a text about offloaded layers may not have."""
    return [line for line in text.splitlines() if FOREIGN.search(ALLOWED.sub("", line))]


def visible(page: str) -> str:
    """Return a page's text and the titles of its shapes, without its glossary."""
    body = page.partition("</style>")[2].partition("Words on this page")[0]
    return html.unescape(re.sub(r"<[^>]+>", "\n", body))


@pytest.fixture(scope="module", params=RUNS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the name of a run, and a recording of it."""
    path = tmp_path_factory.mktemp("offloaded") / "run.swrec"
    record(path, schedule(request.param))
    return request.param, path


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OffloadedRun]:
    """Return ranks that copy from host memory, with their rings."""
    made = OffloadedRun(tmp_path_factory.mktemp("rings"))
    made.write_each(30, 20)
    yield made
    made.close()


@pytest.mark.parametrize("size", [(150, 45), (60, 20)])
@pytest.mark.parametrize("name", RUNS)
def test_every_view(name: str, size: tuple[int, int]) -> None:
    """Each view, with every metric of the heat map."""

    async def test() -> None:
        app = app_over(Still(observation_of(schedule(name))))
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app._diagnosis)
            for view in VIEWS:
                app.action_show(view)
                for _ in range(4):
                    await pilot.pause()
                    assert foreign(shown(app)) == [], view
                    await press(pilot, "m")

    run(test())


@pytest.mark.parametrize("name", RUNS)
def test_what_the_heat_map_says_about_a_layer(name: str) -> None:
    """Its weight comes from host memory."""
    (series, *_) = picture(observation_of(schedule(name)), Filter()).series
    texts = [explanation(series, 0, position) for position in range(series.layers)]
    assert foreign("\n".join(line for lines in texts for line in lines)) == []
    assert all(title.endswith("from host memory") for title, *_ in texts)


@pytest.mark.parametrize("name", RUNS)
def test_every_finding(name: str) -> None:
    """Sentence, evidence and advice."""
    seen = observation_of(schedule(name))
    said = [each for facts in seen.facts.series for each in verdict(facts, seen.history[facts.key]).findings]
    assert said
    assert [each for each in said if foreign("\n".join((each.sentence, *each.evidence, each.advice)))] == []


def test_commands_about_a_recording(recorded: tuple[str, Path], tmp_path: Path) -> None:
    """Statistics, diagnosis, the terminal's text and the page."""
    name, path = recorded
    assert foreign(checked("stats", path).stdout) == []
    said = checked("diagnose", path, code=STATUS.get(name, ExitCode.FOUND_BAD))
    assert foreign(said.stdout) == []
    assert foreign(checked("top", "--once", "--replay", path).stdout) == []
    checked("report", path, "-o", tmp_path / "report.html")
    assert foreign(visible((tmp_path / "report.html").read_text(encoding="utf-8"))) == []


def test_a_comparison(tmp_path: Path) -> None:
    """Of a run that hides its copies with one that does not."""
    for name in ("hidden", "stalled"):
        record(tmp_path / f"{name}.swrec", schedule(name))
    assert foreign(checked("diff", tmp_path / "hidden.swrec", tmp_path / "stalled.swrec").stdout) == []


def test_traces_and_spans(recorded: tuple[str, Path], tmp_path: Path) -> None:
    """Names of tracks, slices and spans; a span has no source rank."""
    _, path = recorded
    checked("export", path, "-f", "perfetto", "-o", tmp_path / "run.pftrace")
    slices = read(tmp_path / "run.pftrace")
    assert foreign("\n".join(f"{each.name} {each.category}" for each in slices)) == []
    assert {"step", "copy"} <= {each.category for each in slices} <= {"step", "copy", "wait", "stall"}
    assert [each for each in slices if "source_rank" in each.arguments] == []
    seen = observation_of(schedule("stalled"))
    facts = seen.facts.series[0]
    spans = list(StepSpans(seen.history[facts.key][-1], origins(0, run_id=facts.key.run_id)))
    assert foreign("\n".join(span.name for span in spans)) == []
    assert {key for span in spans for key in span.attributes or {} if "source" in key} == set()


def test_the_api_of_the_daemon(offloaded: OffloadedRun) -> None:
    """No text value, in any document."""
    with serving(offloaded.directory) as client:
        documents = client.get("/api/v1").raise_for_status().json()["documents"]
        for path in documents:
            texts = list(_texts(client.get(path).raise_for_status().json()))
            assert foreign("\n".join(texts)) == [], path


def test_the_help_of_the_terminal() -> None:
    """It is the same for every kind. Only its glossary and the causes of stalls, which are from there, say more."""
    text = io.StringIO()
    Console(file=text, width=120).print(help_text({}, (), {}, "swtrace top", MONO))
    above = text.getvalue().partition("\nGlossary")[0]
    before, _, after = above.partition("Overview: cause of a stall")
    assert foreign(before + after.partition("Several hosts")[2]) == []


def test_what_a_rank_that_hangs_waits_for() -> None:
    """Its device or host, and no rank."""
    info, now_ns = offloaded_info(3, 12, 2), 60 * 10**9
    progress = Progress(5, Stage.BEGUN, now_ns - 10**9, waiting=3, waiting_since_ns=now_ns - 10**9)
    seen = observation_of(schedule("hidden")).ranks[0]
    ring = replace(seen.ring, taken_ns=now_ns, marks=Marks((progress,)))
    found = standing(replace(seen, series=(info,), ring=ring))
    assert found is not None
    assert found.source is None
    assert found.activity.endswith("from host memory")


def test_the_summary_of_a_run(offloaded: OffloadedRun) -> None:
    """As text of a live run, too."""
    said = checked("top", "--once", "--dir", offloaded.directory).stdout
    assert "offload" in said
    assert foreign(said) == []


def _texts(document: object) -> Iterator[str]:
    if isinstance(document, dict):
        for value in document.values():
            yield from _texts(value)
    elif isinstance(document, list):
        for value in document:
            yield from _texts(value)
    elif isinstance(document, str):
        yield json.dumps(document)
