"""`swtrace stats` and `report` over a recording or a part of it: verdict and tables cover the same steps."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

import swtrace as api
from swtrace.recording import selected
from tests.support.commands import checked
from tests.support.schedules import simulate
from tests.support.simulated_recordings import record

STEPS = 300


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording: slow first steps; rank 0 stalls most at first, rank 1 in the last 80 steps."""

    def compute(rank: int, step: int, _position: int) -> int:
        if step < 3:
            return 2_000_000
        quick = 0 if step < STEPS - 80 else 1
        return 20_000 if rank == quick else 90_000

    made = simulate(ranks=2, layers=6, k=1, steps=STEPS, compute=compute, occupancy=80_000, wake=1_000)
    path = tmp_path_factory.mktemp("selected") / "run.swrec"
    record(path, made)
    return path


@pytest.mark.parametrize(
    ("arguments", "selection", "steps", "most"),
    [
        ([], {"warmup": 3}, STEPS - 3, 0),
        (["--steps", "240:260"], {"warmup": 3, "steps": slice(240, 260)}, 20, 1),
        (["--warmup", "0", "--steps", ":10"], {"steps": slice(0, 10)}, 10, 0),
    ],
)
def test_headline_and_table_are_about_the_same_steps(
    path: Path, arguments: list[str], selection: dict[str, object], steps: int, most: int
) -> None:
    """The table's figures are sums over the selected steps, and the headline names the table's most stalled rank."""
    (series,) = json.loads(checked("stats", path, "--json", *arguments).stdout)["summary"]["series"]
    with api.open(path) as session:
        sums = {rank.rank: recent for (_, rank), recent in session.sums_by_rank(**selection).items()}
    for rank in series["ranks"]:
        recent = sums[rank["rank"]]
        assert rank["recent_steps"] == steps == recent.steps
        assert rank["stall_ratio"] == recent.stall_ratio
        assert rank["efficiency"] == recent.efficiency
        assert rank["step_seconds"] == pytest.approx(recent.step_ns * 1e-9 / steps)
    ratios = {rank["rank"]: rank["stall_ratio"] for rank in series["ranks"]}
    assert max(ratios, key=lambda rank: ratios[rank]) == most
    headline = series["findings"][0]
    assert any(finding["advice"] for finding in series["findings"])
    assert headline["ranks"] == [most]
    assert f"{100 * ratios[most]:.1f} %" in headline["sentence"]


def test_the_report_is_of_one_choice_and_its_slowest_steps_are_not_the_warm_up(path: Path, tmp_path: Path) -> None:
    """Table, headline and slowest steps of the page exclude the first steps, however slow they were."""
    checked("report", path, "-o", tmp_path / "report.html")
    text = re.sub(r"<[^>]*>", " ", re.sub(r"</?a\b[^>]*>", "", (tmp_path / "report.html").read_text()))
    assert f"Covers {STEPS - 3} steps after 3 warm-up steps." in text
    (series,) = json.loads(checked("stats", path, "--json").stdout)["summary"]["series"]
    words = " ".join(unescape(text).split())
    for finding in series["findings"]:
        assert finding["sentence"] in words
        assert finding["consequence_of"] or finding["advice"] in words
    slowest = [int(step) for step in re.findall(r"step (\d+): [\d.]+ ms, ", text)]
    assert len(slowest) == 3
    assert min(slowest) >= 3
    headline = re.search(r"The most stalled rank \((\d)\) waits for weights ([\d.]+ %)", text)
    assert headline
    assert re.search(rf"\b{headline[1]} +[\d.]+ ms +[\d.]+ ms +{re.escape(headline[2])} ", text)
    checked("report", path, "-o", tmp_path / "report.html", "--warmup", "0", "--force")
    text = re.sub(r"<[^>]*>", " ", (tmp_path / "report.html").read_text())
    assert sorted(int(step) for step in re.findall(r"step (\d+): [\d.]+ ms, ", text)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--steps", "900:"], 1, f"none of the {STEPS} finished steps is selected"),
        (["--warmup", "300"], 1, "after 300 warm-up steps"),
        (["--steps", "5"], 2, "--steps='5': must be FROM:TO"),
        (["--steps", "9:3"], 2, "TO greater than FROM"),
    ],
)
def test_a_choice_of_no_step_is_an_error(path: Path, arguments: list[str], code: int, message: str) -> None:
    """If no step is selected, neither command prints an empty table."""
    done = checked("stats", path, *arguments, code=code)
    assert message in done.stderr
    assert done.stdout == ""


def test_memory_is_bounded_and_what_is_of_fewer_steps_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums cover all selected steps although only the last are kept; a note says what covers only those."""
    monkeypatch.setattr(selected, "_KEPT_CELLS", 0)
    from swtrace.selection import Selection

    choice = selected.SelectedSteps(Selection(warmup=3))
    with api.open(path) as session:
        assert sum(1 for _ in choice.among(session.steps())) == STEPS - 3
        (series,) = choice.facts(session.facts()).series
    assert len(choice.history(series.key)) == 64
    assert [rank.recent.steps for rank in series.ranks] == [STEPS - 3] * 2
    assert "covers only the last 64 of these steps" in choice.coverage_note()
