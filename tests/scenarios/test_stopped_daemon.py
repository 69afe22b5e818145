"""The dashboards while the only daemon is stopped and started again: the next scrape shows what is gone as gone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from dashboards.source.queries import EVENT_STEP
from tests.support.daemon_command import daemon
from tests.support.grafana_json import DASHBOARDS, FILES, load, panels
from tests.support.panel_view import Shown, View
from tests.support.patience import eventually
from tests.support.prometheus_process import Prometheus, prometheus
from tests.support.recorded_run import RecordedRun
from tests.support.span_receiver import free_port

SCRAPE_S = 1
RECALL_S = 3600
"""A time range that covers the whole test, however slow."""
EVENT_STEP_S = int(EVENT_STEP.removesuffix("s"))
ABOUT_DAEMONS = {"Daemons", "Daemons up", "Daemons down", "Alerts", "Alerts firing"}

pytestmark = pytest.mark.prometheus


@dataclass(frozen=True)
class Outage:
    """A daemon that was stopped and started again at the same address."""

    server: Prometheus
    running: float
    """When everything had been up for a while."""
    stopped: float
    """The first scrape that the daemon did not answer."""
    restarted: float
    """The first scrape that it answered again."""
    ended: float
    """The first scrape after rank 1 ended."""

    def shown(self, dashboard: str, at: float) -> dict[str, list[Shown]]:
        """Return what each panel of a dashboard shows at a moment, by title."""
        document = load(DASHBOARDS / f"swtrace-{dashboard}.json")
        return View(self.server, document, at, range_s=60, scrape_s=SCRAPE_S).panels()


@pytest.fixture(scope="module")
def outage() -> Iterator[Outage]:
    """Run two ranks, a daemon and a Prometheus that scrapes the daemon and itself; stop and start the daemon."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="swtrace-outage-")))
        rings = work / "rings"
        rings.mkdir()
        run = RecordedRun(rings)
        stack.callback(run.close)
        port = free_port()
        address = f"127.0.0.1:{port}"
        up = f'up{{instance="{address}"}}'
        server = stack.enter_context(prometheus(work, [address], scrape_s=SCRAPE_S, evaluate_s=SCRAPE_S))

        def stepping() -> bool:
            run.write(1)
            steps = server.scrapes(f'swtrace_steps_total{{instance="{address}", rank="0"}}', RECALL_S)
            # An event is what was not so one step earlier, so something must have been so one step earlier.
            return bool(steps) and steps[-1][0] - steps[0][0] > EVENT_STEP_S + SCRAPE_S

        def last(selector: str) -> tuple[float, float]:
            """Return the newest scrape of a series: its time, and its value."""
            return server.scrapes(selector, RECALL_S)[-1]

        with daemon(rings, port):
            eventually(stepping, "scrapes of a series that runs", between_s=0.2)
            running, _ = last(up)
        eventually(lambda: last(up)[1] == 0, "a scrape that fails")
        with daemon(rings, port):
            eventually(lambda: last(up)[1] == 1, "a scrape that is answered again")
            scrapes = server.scrapes(up, RECALL_S)
            stopped = next(moment for moment, value in scrapes if value == 0 and moment > running)
            restarted = next(moment for moment, value in scrapes if value == 1 and moment > stopped)
            run.recorders[1].close()
            rank_up = f'swtrace_rank_up{{instance="{address}", rank="1"}}'
            eventually(lambda: last(rank_up)[1] == 0, "a scrape after the end of rank 1")
            ended = next(moment for moment, value in server.scrapes(rank_up, RECALL_S) if value == 0)
            yield Outage(server, running, stopped, restarted, ended)


def test_a_daemon_is_counted_and_the_prometheus_beside_it_is_not(outage: Outage) -> None:
    """Prometheus scrapes itself, too, but is no daemon. The ranks are shown with what they do."""
    shown = outage.shown("fleet", outage.running)
    assert shown["Daemons up"] == [Shown("", 1, "1", "green")]
    assert shown["Daemons down"] == [Shown("", 0, "0", "green")]
    assert shown["Ranks up"] == [Shown("", 2, "2", "blue")]
    assert shown["Stall ratio, worst rank"][0].value
    assert [row.text for row in shown["Daemons"]] == ["up"]
    assert len(shown["Ranks and series"]) == 2


def test_a_stopped_daemon_is_red_on_fleet_at_the_next_scrape(outage: Outage) -> None:
    """The first scrape without an answer makes it 0 daemons up, and no number of ranks."""
    shown = outage.shown("fleet", outage.stopped)
    assert shown["Daemons up"] == [Shown("", 0, "0", "red")]
    assert shown["Daemons down"] == [Shown("", 1, "1", "red")]
    assert shown["Ranks up"] == [Shown("", None, "no data")]
    assert [(row.text, row.color) for row in shown["Daemons"]] == [("down", "red")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_panel_of_now_shows_a_rank_that_nobody_sees(outage: Outage, path: Path) -> None:
    """Every number, bar and table about ranks is empty at the first scrape without an answer."""
    before, shown = (
        outage.shown(path.stem.removeprefix("swtrace-"), moment) for moment in (outage.running, outage.stopped)
    )
    now = {
        panel["title"]
        for panel in panels(load(path))
        if panel["type"] in {"stat", "bargauge", "table"} and "$__range" not in panel["targets"][0]["expr"]
    } - ABOUT_DAEMONS
    assert [title for title in now if before[title][0].value is not None]
    assert {title: shown[title] for title in now if shown[title][0].value is not None} == {}


def test_states_are_unknown_while_the_daemon_is_down(outage: Outage) -> None:
    """A band that just ended might be drawn on in its last colour, so it says that nothing is known."""
    for moment, states in ((outage.running, {"up", "no", "yes"}), (outage.stopped, {"unknown"})):
        shown = outage.shown("health", moment)
        bands = [*shown["Ranks"], *shown["Ranks that died"], *shown["Daemons that can read"]]
        assert len(bands) == 5
        assert {band.text for band in bands} == states


def test_a_rank_that_ended_is_down_and_saves_nothing(outage: Outage) -> None:
    """At the first scrape after its end, its memory and its efficiency count no more, and the table has it first."""
    before, shown = (outage.shown("fleet", moment) for moment in (outage.restarted, outage.ended))
    assert shown["Ranks up"] == [Shown("", 1, "1", "blue")]
    assert shown["Memory saved"][0].value != before["Memory saved"][0].value
    rows = shown["Ranks and series"]
    assert [(row.name.partition(" ")[0], row.text == "down") for row in rows] == [("1", True), ("0", False)]


def test_no_daemon_at_all_is_red(outage: Outage) -> None:
    """Fleet says so too where Prometheus has never heard of a daemon."""
    shown = outage.shown("fleet", outage.running - RECALL_S)
    assert shown["Daemons up"] == [Shown("", 0, "0", "red")]
    assert shown["Daemons down"] == [Shown("", None, "no target")]


def test_a_restarted_daemon_is_back_and_marked(outage: Outage) -> None:
    """After the restart the ranks are there again, and an annotation says when the daemon was restarted."""
    shown = outage.shown("fleet", outage.restarted)
    assert shown["Daemons up"] == [Shown("", 1, "1", "green")]
    assert shown["Ranks up"] == [Shown("", 2, "2", "blue")]

    def marked() -> list[str]:
        view = View(outage.server, load(DASHBOARDS / "swtrace-fleet.json"), outage.restarted + 600, range_s=700)
        return view.marks("Daemons restarted")

    eventually(lambda: marked() == ["Daemon restarted"], "the annotation of the restart", between_s=0.5)
