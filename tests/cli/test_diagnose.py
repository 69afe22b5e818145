"""``swtrace diagnose``, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from swtrace.cli import diagnose as command
from swtrace.cli.commands import app
from swtrace.cli.exit_codes import ExitCode, exit_code
from swtrace.diagnosis.diagnosis import Diagnosis
from swtrace.diagnosis.finding import Level
from swtrace.errors import SwtraceError
from swtrace.observing import Observation
from tests.support.commands import help_text
from tests.support.daemon_threads import serving
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record_rings
from tests.support.simulated_rings import write

QUICK = ("--wait", "0.3")
"""The simulated ranks write nothing more, so there is nothing to wait for."""
PATIENT = ("--wait", str(patience()))


def run_diagnose(*arguments: str | Path, code: int = ExitCode.SUCCESS) -> tuple[str, str]:
    """Run ``swtrace diagnose`` in this process, and return its stdout and its error. It must end with a status."""
    result = CliRunner().invoke(app, ["diagnose", *map(str, arguments)], env={"COLUMNS": "100"})
    failed = result.exception if isinstance(result.exception, SwtraceError) else None
    if result.exception is not None and failed is None and not isinstance(result.exception, SystemExit | typer.Exit):
        raise result.exception
    assert (result.exit_code if failed is None else exit_code(failed)) == code, failed or result.output
    return result.stdout, str(failed or "")


def test_a_healthy_run_gets_a_clean_bill(rings: Path) -> None:
    """The first line says that nothing is wrong and what was looked at; the status is 0."""
    with write(rings, "hidden", ranks=2):
        page, _ = run_diagnose("--dir", rings, *QUICK)
    assert page.startswith("✓ Nothing is wrong: 2 ranks of o_proj run, the last 24 steps looked at, stalls take ")
    assert "read from" in page


def test_a_straggler_is_the_first_line_and_the_status(rings: Path) -> None:
    """Who, since when, how sure, why, what to do and the gain follow; what it causes is no trouble of its own."""
    with write(rings, "straggler", ranks=3, steps=40):
        page, _ = run_diagnose("--dir", rings, *QUICK, code=ExitCode.FOUND_BAD)
        said = json.loads(run_diagnose("--dir", rings, *QUICK, "--json", code=ExitCode.FOUND_BAD)[0])
    assert page.startswith("■ Rank 2 is the straggler: ")
    for label in ("who", "since", "how sure", "evidence", "to do", "gain", "shows as", "looked at"):
        assert f"\n  {label}" in page
    assert max(map(len, page.splitlines())) <= 100
    (series,) = said["series"]
    named = {finding["kind"]: finding for finding in series["findings"]}
    assert named["straggler"]["ranks"] == [2]
    assert 0 < named["straggler"]["saving"]["low"] < named["straggler"]["saving"]["high"]
    assert {kind for kind, finding in named.items() if finding["consequence_of"] == "straggler"} >= {"late_issue"}
    assert not any(line.startswith("▲ Rank 2 issues last") for line in page.splitlines())


def test_a_recording_a_daemon_and_the_rings_give_the_same_findings(rings: Path, tmp_path: Path) -> None:
    """The end of a recording is diagnosed as the rings were; a daemon's stream and its API say the same."""
    write(rings, "straggler", ranks=2, steps=40).close()
    record_rings(rings, tmp_path / "run.swrec")
    live = json.loads(run_diagnose("--dir", rings, "--json", code=ExitCode.FOUND_BAD)[0])
    with serving(rings) as client:
        address = f"127.0.0.1:{client.base_url.port}"
        through, _ = run_diagnose("--connect", address, "--json", *PATIENT, code=ExitCode.FOUND_BAD)
        served = client.get("/api/v1/diagnosis").json()
    recorded, _ = run_diagnose(tmp_path / "run.swrec", "--json", code=ExitCode.FOUND_BAD)
    findings = [said["series"][0]["findings"] for said in (live, json.loads(through), served, json.loads(recorded))]
    for each in findings[1:]:
        assert each == findings[0]
    assert live["answer"] == served["answer"]


def test_a_daemon_that_is_silent_is_a_trouble_of_its_own(rings: Path) -> None:
    """What others report is shown, and the first lines say whose ranks are missing. Without any answer, it fails."""
    write(rings, "hidden", ranks=2).close()
    with serving(rings) as client:
        address = f"127.0.0.1:{client.base_url.port}"
        page, _ = run_diagnose("--connect", f"{address},127.0.0.1:1", *PATIENT, code=ExitCode.FOUND_WARNING)
    assert page.startswith("▲ 127.0.0.1:1 does not answer")
    assert "no answer from 127.0.0.1:1 (" in run_diagnose("--connect", "127.0.0.1:1", *QUICK, code=ExitCode.FAILED)[1]


def test_nothing_to_look_at_is_a_failure(rings: Path) -> None:
    """Without any rank the command says what to do, and with no finished step that nothing can be said."""
    assert "no rank was found in the rings in " in run_diagnose("--dir", rings, *QUICK, code=ExitCode.FAILED)[1]
    run = RecordedRun(rings)
    page, _ = run_diagnose("--dir", rings, *QUICK, code=ExitCode.FAILED)
    assert page.startswith("· Nothing can be said yet. No step has finished")
    assert "known are: run-1" in run_diagnose("--dir", rings, "--run", "x", *QUICK, code=ExitCode.USAGE)[1]
    run.close()


def test_a_run_that_has_ended_gives_way_to_one_that_lives(rings: Path) -> None:
    """Troubles of an old run are shown only on request."""
    write(rings, "straggler", ranks=2, steps=40, run_id="old").close()
    with write(rings, "hidden", ranks=2, run_id="new"):
        assert run_diagnose("--dir", rings, *QUICK)[0].startswith("✓ Nothing is wrong")
        page, _ = run_diagnose("--dir", rings, "--run", "old", *QUICK, code=ExitCode.FOUND_BAD)
    assert page.startswith("■ Rank 1 is the straggler")


def test_watching_prints_again_when_something_changes(rings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json, every change is a document on a line of its own; a page that stays the same is printed once."""
    found: list[Diagnosis] = []
    look = command._diagnosed
    with write(rings, "hidden", ranks=2) as writer:

        def diagnosed(seen: Observation, name: str, run_id: str | None) -> Diagnosis:
            if len(found) == 3:
                writer.recorders[1]._detach()  # lets go of the ring without closing it, as a death does
            if found and found[-1].level is Level.BAD:
                raise KeyboardInterrupt
            found.append(look(seen, name, run_id))
            return found[-1]

        monkeypatch.setattr(command, "_AGAIN_S", 0.05)
        monkeypatch.setattr(command, "_diagnosed", diagnosed)
        text, _ = run_diagnose("--dir", rings, "--wait", "0", "--watch", "--json", code=ExitCode.INTERRUPTED)
    levels = [json.loads(line)["level"] for line in text.splitlines()]
    assert levels == ["note", "bad"]
    assert len(found) > len(levels)


@pytest.mark.parametrize(
    "arguments", [("FILE", "--watch"), ("FILE", "--stacks"), ("--salvage",), ("--user", "me"), ("FILE", "--dir", "x")]
)
def test_options_that_make_no_sense_together_are_refused(arguments: tuple[str, ...]) -> None:
    """The error names them, and nothing is read."""
    assert run_diagnose(*arguments, code=ExitCode.USAGE)[1]


def test_the_help_says_what_the_status_means() -> None:
    """Scripts rely on it."""
    text = help_text("diagnose")
    assert (
        f"Exits with 0 if nothing is wrong, {ExitCode.FOUND_WARNING:d} if the worst that it finds is a warning" in text
    )
    assert f"and {ExitCode.FOUND_BAD:d} if something is bad" in text
