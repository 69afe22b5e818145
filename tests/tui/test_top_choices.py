"""Selecting runs, series and daemons: the selection is shown, or the choices that exist are named."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from swtrace_tui.once import overview, read, silent
from swtrace_tui.palette import MONO
from swtrace_tui.picture import Filter, picture
from swtrace_tui.preferences import Configuration
from swtrace_tui.views.heat_map import METRICS, HeatMap, values
from swtrace_tui.views.overview import headline
from swtrace_tui.views.verdict_view import finding_lines, series_lines
from swtrace_tui.views.view import Scene

from swtrace import units
from swtrace.errors import SettingsError
from swtrace.ledger.finding import Finding, Level
from swtrace.observing import Link, Observation, OriginStatus, Roster
from swtrace.observing.events import Event, RecordsRead, RingsSeen
from swtrace.observing.merged import Merged
from swtrace.observing.origin import Polled
from swtrace.trace.identity import RankKey
from swtrace.trace.schema import Phase
from tests.support.daemon_threads import serving
from tests.support.patience import patience
from tests.support.scenes import Still, app_over, empty, observation_of, pictured, press, run, shown, until
from tests.support.simulated_recordings import Told, events_of
from tests.support.simulated_rings import scenario, write


def top(*arguments: str | Path, code: int) -> subprocess.CompletedProcess[str]:
    """Run ``swtrace top``."""
    command = [sys.executable, "-m", "swtrace", "top", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(), check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


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


def test_once_fails_over_a_choice_that_nothing_matches(tmp_path: Path) -> None:
    """``--once`` and ``--json`` then print no figures and exit with 2."""
    with write(tmp_path, "stalled", ranks=2, layers=4, steps=20, run_id="the-run"):
        for choice, message in ((["--run", "bogus"], "Runs: the-run."), (["--series", "nope"], "Series: o_proj.")):
            done = top("--dir", tmp_path, "--json", "--wait", "0", *choice, code=2)
            assert message in done.stderr
            assert done.stdout == ""


def test_an_unknown_theme_is_an_error_with_those_that_there_are() -> None:
    """A theme that does not exist, from the command line or the file, is not ignored."""
    with pytest.raises(SettingsError, match=r"no theme 'nope'; must be one of: swtrace-dark.*textual-dark"):
        app_over(Still(empty()), configuration=Configuration(theme="nope"))


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
    if isinstance(event, RingsSeen):
        return None
    of = event.batches[0][0] if isinstance(event, RecordsRead) else event.rank
    return event if of.rank in ranks else None


def test_all_daemons_are_waited_for_before_anything_is_printed() -> None:
    """The picture includes the ranks of a daemon that answers late; one that never answers is named at the timeout."""
    seen = read(Roster(Merged([Half({0, 1}), Half({2, 3})])), Filter(), 60)
    assert [row.rank for row in seen.rows] == [0, 1, 2, 3]
    assert silent(seen) == []

    seen = read(Roster(Merged([Half({0, 1}), Half({2, 3}, answers=False)])), Filter(), 0.7)
    assert silent(seen) == ["there:9465 (Connection refused)"]


def test_a_daemon_that_does_not_answer_fails_the_command_by_name(tmp_path: Path) -> None:
    """With one of two daemons missing, ``--once`` prints no partial picture, names the missing one, and fails."""
    with write(tmp_path, "stalled", ranks=2, layers=4, steps=20), serving(tmp_path) as client:
        address = f"127.0.0.1:{client.base_url.port}"
        done = top("--connect", f"{address},127.0.0.1:1", "--once", "--wait", "0.5", code=1)
    assert "no answer within 0.5 s from 127.0.0.1:1 (" in done.stderr
    assert address not in done.stderr.partition("from")[2]
    assert done.stdout == ""


@pytest.mark.parametrize("layers", [20, 61, 150])
def test_the_mean_beside_a_rank_of_the_heat_map_is_over_its_waits(layers: int) -> None:
    """Layers that a rank keeps itself do not count as waits of 0, and folded columns do not count as their worst."""
    whole = observation_of(scenario("stalled", layers=layers, steps=6))
    seen = picture(whole, Filter())
    (series,) = seen.series
    lines = [strip.text for strip in HeatMap().draw(Scene(seen, MONO), 130, 60)]
    assert any(line.split()[-2:] == ["row", "mean"] for line in lines)
    shown_values, waited = values(series, METRICS[0], "mean")
    assert not waited.all()
    for row in series.rows:
        mean = shown_values[row.group_rank][waited[row.group_rank]].mean()
        line = next(line for line in lines if line.startswith(f"  rank {row.rank} "))
        assert f" {units.duration(float(mean))} " in line


def test_a_death_has_a_word_of_its_own_before_the_headline() -> None:
    """A headline about a dead rank has its own badge, not one about hiding, in both views."""
    died = Finding("died", Level.BAD, "Rank 1 died. All figures are from the steps before.", rank=1)
    seen = pictured("hidden")
    (series,) = seen.series
    vars(series)["headline"] = died
    for lines in (headline(Scene(seen, MONO), 100, 3), finding_lines(died, MONO, 100, first=True)):
        text = "\n".join(strip.text for strip in lines)
        assert " RANK DIED " in text
        assert "HIDDEN" not in text
        assert died.sentence in text


def test_the_verdict_view_shows_each_finding_with_its_advice() -> None:
    """Sentence and advice are the ledger's own words, as ``--json``, reports and tests have them."""
    seen = pictured("straggler")
    (series,) = seen.series
    scene = Scene(seen, MONO, {series.key: series.verdict})
    text = " ".join(" ".join(strip.text for strip in series_lines(series, scene, 110)).split())
    assert any(finding.advice for finding in series.verdict.findings)
    for finding in series.verdict.findings[1:]:
        assert f"{finding.sentence} {finding.advice}".strip() in text


@pytest.mark.parametrize("before", [[], ["question_mark"]])
def test_ctrl_c_ends_the_terminal_in_every_screen(before: list[str]) -> None:
    """Ctrl-C exits at once, from a view and from the help."""

    async def test() -> None:
        app = app_over(Still(observation_of(scenario("stalled"))))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: app.picture)
            await press(pilot, *before, "ctrl+c")
            await until(pilot, lambda: app._exit)

    run(test())
