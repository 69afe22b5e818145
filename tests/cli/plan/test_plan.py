"""``swtrace plan``, as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from swtrace.cli.commands import app
from swtrace.cli.exit_codes import ExitCode, exit_code
from swtrace.errors import SwtraceError
from swtrace.plan_file import PlanFile
from swtrace.settings import CONFIG_KEY, Settings
from tests.support.commands import help_text
from tests.support.daemon_threads import serving
from tests.support.offload_arithmetic import Durations
from tests.support.offload_arithmetic import Plan as Offloading
from tests.support.offload_ring import offloading
from tests.support.patience import patience
from tests.support.recorded_run import RecordedRun
from tests.support.simulated_recordings import record, schedule


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the recording of a simulated run in which about half of the waits stall."""
    path = tmp_path_factory.mktemp("plan") / "run.swrec"
    record(path, schedule(steps=40))
    return path


def run_plan(*arguments: str | Path, code: ExitCode = ExitCode.SUCCESS) -> tuple[str, str]:
    """Run ``swtrace plan`` in this process, and return its stdout and its error. It must end with a status."""
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    failed = result.exception if isinstance(result.exception, SwtraceError) else None
    if result.exception is not None and failed is None:
        raise result.exception
    assert (ExitCode.SUCCESS if failed is None else exit_code(failed)) == code, failed
    return result.stdout, str(failed or "")


def test_a_recording_gives_a_plan_in_every_form(recording: Path, tmp_path: Path) -> None:
    """One call prints JSON, writes the page and the plan; all have the same choice, and its settings are readable."""
    page, saved = tmp_path / "plan.html", tmp_path / "plan.json"
    options = ("--max-stall", "100%", "--prefetch-step", "1,2", "--html", page, "--save", saved)
    (series,) = json.loads(run_plan(recording, *options, "--json")[0])["series"]
    chosen = series["chosen"]
    assert any(each["front"] for each in series["predictions"])
    assert {each["prefetch_step"] for each in series["predictions"] if each["share"] != "none"} <= {1, 2}
    assert chosen["saved_bytes"] == max(each["saved_bytes"] for each in series["predictions"] if not each["refusal"])
    plan = PlanFile.read(saved)
    assert plan.settings == chosen["additional_config"][CONFIG_KEY]
    assert Settings().overlay(plan.settings) == Settings.from_environment(chosen["environment"])
    assert plan.step_seconds.value == pytest.approx(chosen["step_seconds"]["value"])
    assert series["answer"].partition(" of ")[0] in page.read_text()


def test_rings_and_daemons_give_the_same_plan(rings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file, the rings of this host are read. A daemon gives the same; one that is silent is named."""
    monkeypatch.setenv("SWTRACE_DIR", str(rings))
    assert "no rank was found" in run_plan(code=ExitCode.FAILED)[1]
    run = RecordedRun(rings)
    run.write(30)
    run.close()
    planned, _ = run_plan("--max-stall", "100%")
    assert "self_attn.o_proj" in planned.splitlines()[0]
    with serving(rings) as client:
        address = f"127.0.0.1:{client.base_url.port}"
        through, _ = run_plan("--max-stall", "100%", "--connect", address, "--wait", str(patience()))
        silent = run_plan("--connect", f"{address},127.0.0.1:1", "--wait", "0.2", code=ExitCode.FAILED)[1]
    assert through.partition("Measured")[0] == planned.partition("Measured")[0]
    assert silent.startswith("no answer within 0.2 s from ")
    assert "127.0.0.1:1 (" in silent
    assert "known are: run-1" in run_plan("--run", "other", code=ExitCode.USAGE)[1]
    assert "known are: self_attn.o_proj from layer 0" in run_plan("--series", "mlp", code=ExitCode.USAGE)[1]


def test_one_rank_needs_a_number_of_ranks(rings: Path) -> None:
    """Nothing can be shared by one rank, so the command asks how many there would be."""
    run = RecordedRun(rings, ranks=1)
    run.write(30)
    run.close()
    assert "in a group of one rank" in run_plan("--dir", rings, code=ExitCode.USAGE)[1]
    assert run_plan("--dir", rings, "--ranks", "4", "--bandwidth", "10GB/s")[0].startswith("Share ")


def test_a_limit_that_nothing_meets_is_an_error(recording: Path) -> None:
    """If no settings are within a limit that was given, the command says so and fails, after it printed the table."""
    printed, failed = run_plan(recording, "--memory", "1", code=ExitCode.FAILED)
    assert "No plan for o_proj" in printed
    assert "nothing fits 1 B per rank" in failed


def test_too_few_steps_are_an_error_with_a_remedy(recording: Path) -> None:
    """If nothing can be predicted, the command says what to do."""
    printed, failed = run_plan(recording, "--steps", "0:6", code=ExitCode.FAILED)
    assert "too few consecutive steps" in printed
    assert "SWTRACE_TIME_EVERY=1" in failed


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("x.swrec", "--connect", "host:1"), ExitCode.USAGE, "FILE and --connect cannot be used together"),
        (("--salvage",), ExitCode.USAGE, "--salvage needs a recording"),
        (("--profile", "none.json"), ExitCode.FAILED, "none.json cannot be read"),
        (("--ca", "x"), ExitCode.USAGE, "--ca needs --connect"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, ...], code: ExitCode, words: str) -> None:
    """What cannot be done is one sentence."""
    assert words in run_plan(*arguments, code=code)[1]


def test_help_says_what_to_do_first() -> None:
    """The help page says where the steps come from, and how to get them."""
    text = help_text("plan")
    for word in ("SWTRACE_SHARE=none", "swtrace probe", "--max-stall", "Exits with 1", "--save"):
        assert word in text


def test_offloaded_layers_are_planned_by_group(rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer, the page and JSON name vLLM's arguments, and nothing that only ranks that share have."""
    names = ("down_proj", "gate_up_proj")
    offloading(rings, Offloading(group_size=4, steps=30, params=names), Durations(copy_ns=1_500_000))
    monkeypatch.setenv("SWTRACE_DIR", str(rings))
    page = tmp_path / "plan.html"
    told = run_plan("--max-stall", "2%", "--html", page)[0]
    (series,) = json.loads(run_plan("--max-stall", "2%", "--json")[0])["series"]
    chosen = series["chosen"]
    grouping = chosen["grouping"]
    arguments = chosen["vllm_arguments"]
    assert series["answer"] == " ".join(told.partition("\n\n")[0].split())
    assert series["answer"].startswith("Offload ")
    assert arguments == [
        *("--offload-backend", "prefetch"),
        *("--offload-params", *names),
        *("--offload-group-size", str(grouping["group_size"])),
        *("--offload-num-in-group", str(grouping["num_in_group"])),
        *("--offload-prefetch-step", str(chosen["prefetch_step"])),
    ]
    assert (chosen["environment"], chosen["additional_config"]) == (None, None)
    assert chosen["stall_ratio"]["high"] <= 0.02
    glossary = r"<dt .*"
    for text in (told, re.sub(rf"(?s)<style>.*?</style>|{glossary}|<[^>]+>", " ", page.read_text())):
        assert " ".join(arguments) in text
        assert not {"shared", "sharing", "broadcast", "h2d"} & set(re.findall(r"\w+", text.lower()))


def test_offloaded_layers_refuse_what_is_about_sharing(rings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option that is only about sharing is refused by name."""
    offloading(rings, Offloading(group_size=4, steps=30), Durations())
    monkeypatch.setenv("SWTRACE_DIR", str(rings))
    refused = (("--share", "1/2"), ("--transport", "pull"), ("--windows", "static"), ("--ranks", "4"))
    for option, value in (*refused, ("--save", "plan.json")):
        assert run_plan(option, value, code=ExitCode.USAGE)[1].startswith(f"{option} ")
    assert "at least 2 of 24 layers" in run_plan("--prefetch-step", "24", code=ExitCode.USAGE)[1]
    nothing = run_plan("--memory", "1MiB", "--prefetch-step", "3", code=ExitCode.FAILED)[1]
    assert nothing == "nothing fits 1.00 MiB per rank; allow more, or try other values of --prefetch-step"
    assert "at least 1" in run_plan("--prefetch-step", "0,1", code=ExitCode.USAGE)[1]
