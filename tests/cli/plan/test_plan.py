"""``swtrace plan``, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swtrace.cli.exit_codes import ExitCode
from swtrace.plan_file import PlanFile
from swtrace.settings import CONFIG_KEY, Settings
from tests.support.commands import Swtrace, assert_one_line, checked, help_text
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record, schedule


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the recording of a simulated run in which about half of the waits stall."""
    path = tmp_path_factory.mktemp("plan") / "run.swrec"
    record(path, schedule(steps=40))
    return path


def test_a_recording_gives_a_plan_in_every_form(recording: Path, tmp_path: Path) -> None:
    """One call prints JSON, writes the page and the plan; all have the same choice, and its settings are readable."""
    page, saved = tmp_path / "plan.html", tmp_path / "plan.json"
    options = ("--max-stall", "100%", "--prefetch-step", "1,2", "--html", page, "--save", saved)
    (series,) = json.loads(checked("plan", recording, *options, "--json").stdout)["series"]
    chosen = series["chosen"]
    assert any(each["front"] for each in series["predictions"])
    assert {each["prefetch_step"] for each in series["predictions"] if each["share"] != "none"} <= {1, 2}
    assert chosen["saved_bytes"] == max(each["saved_bytes"] for each in series["predictions"] if not each["refusal"])
    plan = PlanFile.read(saved)
    assert plan.settings == chosen["additional_config"][CONFIG_KEY]
    assert Settings().overlay(plan.settings) == Settings.from_environment(chosen["environment"])
    assert plan.step_seconds.value == pytest.approx(chosen["step_seconds"]["value"])
    assert series["answer"].partition(" of ")[0] in page.read_text()


def test_the_rings_of_this_host_are_the_default(swtrace: Swtrace, rings: Path) -> None:
    """Without a file, the rings are read; what they hold cannot be planned for if no step is finished."""
    assert_one_line(swtrace("plan"), ExitCode.FAILED, "no rank was found", "SWTRACE=1")
    run = RecordedRun(rings)
    run.write(30)
    run.close()
    planned = swtrace("plan", "--max-stall", "100%")
    assert planned.returncode == ExitCode.SUCCESS, planned.stderr
    assert "self_attn.o_proj" in planned.stdout.splitlines()[0]
    assert_one_line(swtrace("plan", "--run", "other"), ExitCode.USAGE, "no run 'other'", "run-1")
    assert_one_line(swtrace("plan", "--series", "mlp"), ExitCode.USAGE, "no such series", "self_attn.o_proj")


def test_a_limit_that_nothing_meets_is_an_error(recording: Path) -> None:
    """If no settings are within a limit that was given, the command says so and fails, after it printed the table."""
    failed = checked("plan", recording, "--memory", "1", code=ExitCode.FAILED)
    assert "No plan for o_proj" in failed.stdout
    assert "nothing fits 1 B per rank" in failed.stderr


def test_too_few_steps_are_an_error_with_a_remedy(recording: Path) -> None:
    """If nothing can be predicted, the command says what to do."""
    failed = checked("plan", recording, "--steps", "0:6", code=ExitCode.FAILED)
    assert "too few consecutive steps" in failed.stdout
    assert "SWTRACE_TIME_EVERY=1" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x.swrec", "--connect", "host:1"), ("FILE and --connect cannot be used together",)),
        (("--salvage",), ("--salvage needs a recording",)),
        (("--profile", "none.json"), ("none.json cannot be read",)),
        (("--ca", "x"), ("--ca needs --connect",)),
    ],
)
def test_bad_arguments_are_one_line(swtrace: Swtrace, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    """What cannot be done is one sentence on stderr."""
    done = swtrace("plan", *arguments)
    assert_one_line(done, done.returncode, *words)
    assert done.returncode in {ExitCode.USAGE, ExitCode.FAILED}


def test_help_says_what_to_do_first() -> None:
    """The help page says where the steps come from, and how to get them."""
    text = help_text("plan")
    for word in ("SWTRACE_SHARE=none", "swtrace probe", "--max-stall", "Exits with 1", "--save"):
        assert word in text
