"""Every view of a series that is only observed says so, and shows no figure of stall, transfer or windows."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtrace.cli.summary import summarise
from swtrace.errors import EmptySelectionError
from swtrace.session import RingsSession
from swtrace.testing.limits import Limits, judge
from tests.support.commands import checked
from tests.support.daemon_threads import serving
from tests.support.observed_stack import Observed, observed_stack
from tests.support.scenes import Still, app_over, press, run, settled, shown
from tests.support.scrapes import scrape

STEPS = 8
OF_SHARED = re.compile(r"swtrace_(\w*stall\w*|waits|\w*prefetch\w*|broadcast\w*|window\w*|straggler\w*)$")
"""Metrics that are about what moves, or compare ranks."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Return a stack that has run some steps, half of them timed."""
    with observed_stack(tmp_path_factory.mktemp("observed")) as stack:
        stack.steps(STEPS)
        yield stack


@pytest.fixture(scope="module")
def session(stack: Observed) -> Iterator[RingsSession]:
    """Return a session over its ring."""
    session = RingsSession(stack.recorder.path.parent)
    session.refresh()
    yield session
    session.close()


def test_figures_of_stall_are_an_error(session: RingsSession) -> None:
    """A session has no stall to return, and does not return 0."""
    for figure in (session.stall_seconds, session.stall_ratio, session.on_time_rate, session.occupancy):
        with pytest.raises(EmptySelectionError, match=r"nothing is shared: s is only observed \(SWTRACE_SHARE=none\)"):
            figure()


def test_the_summary_has_no_such_figure(session: RingsSession) -> None:
    """Nor a rank that it could compare."""
    (series,) = summarise(session.observe()).series
    (rank,) = series.ranks
    absent = (rank.stall_seconds, rank.stall_ratio, rank.on_time_rate, rank.efficiency, rank.excess_seconds)
    assert {*absent, rank.bandwidth_bytes_per_second, rank.saved_ratio} == {None}
    assert (rank.steps, rank.recent_steps, rank.broadcast_bytes) == (STEPS, STEPS // 2, 0)
    assert series.sharing == "observed, not shared"


def test_the_terminal_shows_times_of_layers(session: RingsSession) -> None:
    """Instead of stalls."""

    async def test() -> None:
        app = app_over(Still(session.observe()))
        async with app.run_test(size=(130, 40)) as pilot:
            for key, words in {
                "1": "OBSERVED, NOT SHARED .*Time by layer",
                "2": "compute: mean of 4 steps.* to the next layer's",
                "3": "on the slowest rank; nothing is shared",
                "4": "observed, not shared: there are no windows",
                "5": "Nothing is wrong: 1 rank of s run, the last 4 steps looked at, nothing is shared",
            }.items():
                await press(pilot, key)
                await settled(pilot)
                assert re.search(words, shown(app), re.DOTALL), shown(app)
                assert not re.search(r"stall|slack|effic\.|on time", shown(app)), shown(app)

    run(test())


def test_metrics_of_stalls_and_windows_have_no_samples(stack: Observed) -> None:
    """Not even 0. Those of steps and bytes do."""
    with serving(stack.recorder.path.parent) as client:
        families = scrape(client)
    found = {name for name, family in families.items() if family.samples}
    assert not {name for name in found if OF_SHARED.match(name)}
    assert {"swtrace_steps_total", "swtrace_series_bytes", "swtrace_series_info"} <= found


def test_limits_on_stall_fail(session: RingsSession) -> None:
    """A test that observes has nothing to hide, so it must not pass for hiding it; other limits hold."""
    assert judge(session, Limits(max_stall_seconds=9.0, min_on_time_rate=0.0)) == (  # type: ignore[arg-type]
        "min_on_time_rate and max_stall_seconds cannot be checked: nothing is shared, s is only observed "
        "(SWTRACE_SHARE=none)"
    )
    assert judge(session, Limits(min_steps=4)) == ""  # type: ignore[arg-type]


def test_the_report_has_no_charts_of_stall(stack: Observed, tmp_path: Path) -> None:
    """It says what was observed, and draws the steps."""
    checked("record", "--dir", stack.recorder.path.parent, "-o", tmp_path / "run.swrec", "--duration", "0.2")
    checked("report", tmp_path / "run.swrec", "-o", tmp_path / "report.html")
    body = html.unescape(re.sub(r"<[^>]+>", "", (tmp_path / "report.html").read_text(encoding="utf-8")))
    assert "layers 0-4 on 1 rank, observed, not shared" in " ".join(body.split())
    assert not re.search("Stall by rank and layer|Slack and stall", body)
