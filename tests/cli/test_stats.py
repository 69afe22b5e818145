"""``swtrace stats``, as a user runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from swtrace.observing import watch_rings
from tests.support.commands import checked, clean_environment, run_swtrace
from tests.support.recorded_run import RecordedRun


def test_a_run_that_has_ended_can_be_recorded_and_summed_up(tmp_path: Path) -> None:
    """`record --until-end` records what the rings still hold, and `stats` reports the same as a live ledger."""
    rings, path = tmp_path / "rings", tmp_path / "run.swrec"
    run = RecordedRun(rings)
    run.write(30)
    run.close()
    said = json.loads(checked("record", "--dir", rings, "-o", path, "--until-end", "--json").stdout)
    assert said["records"] == 2 * run.written
    assert said["reason"] == "every rank has ended"
    document = json.loads(checked("stats", path, "--json", "--warmup", "0").stdout)
    (series,) = document["summary"]["series"]
    with watch_rings(rings) as watch:
        watch.drain()
        watch.drain()
        watch.ledger.flush()
        (facts,) = watch.ledger.facts().series
    assert [rank["stall_ratio"] for rank in series["ranks"]] == [rank.recent.stall_ratio for rank in facts.ranks]
    assert [ring["delivered"] for ring in document["summary"]["rings"]] == [run.written] * 2
    assert "rank" in checked("stats", path).stdout


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Text that looks like markup of the printing library is printed as it is."""
    rings = tmp_path / "z[bold]" / "[" / "]"
    run = RecordedRun(rings)
    run.write(12)
    run.close()
    recording, page = tmp_path / "x[red].swrec", tmp_path / "[/].html"
    assert f"to {recording}" in checked("record", "--dir", rings, "-o", recording, "--until-end").stderr
    page.parent.mkdir(exist_ok=True)
    assert str(page) in checked("report", recording, "-o", page).stderr
    ran = run_swtrace(("run", "--no-daemon", "--", sys.executable, "-V"), clean_environment(rings))
    assert f"rings in {rings}" in ran.stderr
