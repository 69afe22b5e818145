"""``swtrace demo``: real ranks, checked outputs, and what remains when one of its processes dies.

Short runs of few, small layers: what the scenarios are meant to show is claimed where their timing
cannot be disturbed by a busy machine, or by a wide margin.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import SWTRACE, StartSwtrace, Swtrace, clean_environment, help_text, run_swtrace
from tests.support.patience import eventually, patience
from tests.support.processes import command_line, descendant, descendants, runs
from tests.support.terminals import read_until

SMALL = ("--layers", "8", "--mib", "0.125")
STEPPING = r"demo\.linear: step [1-9]"
PULL = ("--transport", "pull")
ENDLESS = (*SMALL, "--duration", "600", "--compute-ms", "1", "--prefetch-step", "1")


class Demo(NamedTuple):
    """A demo that ran to its end."""

    result: dict[str, Any]
    rings: Path


RunDemo = Callable[..., Demo]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> RunDemo:
    """Return a function that runs the demo without a daemon; the same arguments are run only once."""

    @cache
    def run(*arguments: str) -> Demo:
        rings = tmp_path_factory.mktemp("demo") / "rings"
        done = run_swtrace(("demo", "--json", "--no-daemon", *arguments), clean_environment(rings))
        assert done.returncode == ExitCode.SUCCESS, done.stderr
        return Demo(json.loads(done.stdout), rings)

    return run


def ranks_of(demo: Demo) -> list[dict[str, Any]]:
    """Return what the demo tells of each rank of its one series."""
    (series,) = demo.result["summary"]["series"]
    return cast("list[dict[str, Any]]", series["ranks"])


def until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read the demo's narration until a line matches."""
    assert process.stderr is not None
    said = []
    deadline = time.monotonic() + patience()
    for line in process.stderr:
        said.append(line)
        if time.monotonic() > deadline:
            break
        if found := re.search(pattern, line):
            return found
    raise AssertionError("".join(said))


def rank_pids(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Return the pids of both ranks."""
    return int(until(process, r"rank 0: pid (\d+)")[1]), int(until(process, r"rank 1: pid (\d+)")[1])


NINE_STEPS = (*SMALL, "--steps", "9", "--compute-ms", "0", "--prefetch-step", "2")


@pytest.mark.parametrize("transport", ["broadcast", "pull"])
@pytest.mark.parametrize(("ranks", "windows", "share"), [(2, "static", "all"), (3, "rolling", "3/4")])
def test_every_output_is_identical(demo: RunDemo, transport: str, ranks: int, windows: str, share: str) -> None:
    """Each layer's output of each step on each rank, shared or not, is that of unshared weights."""
    options = ("--ranks", str(ranks), "--windows", windows, "--transport", transport, "--share", share)
    result = demo(*NINE_STEPS, *options).result
    (series,) = result["summary"]["series"]
    assert series["layers"] == ([*range(8)] if share == "all" else [0, 2, 3, 4, 6, 7])
    assert series["stack_layers"] == 8
    assert result["dials"]["transport"] == transport
    assert result["outputs_identical"]
    assert result["outputs_checked"] == ranks * 9 * 8


def test_no_record_is_lost(demo: RunDemo) -> None:
    """A rank writes one record per layer and step, one per step, and what is open at the end; all are read."""
    run = demo(*NINE_STEPS, "--ranks", "2", "--windows", "static")
    assert [rank["steps"] for rank in ranks_of(run)] == [9, 9]
    for ring in run.result["summary"]["rings"]:
        assert 9 * (8 + 1) <= ring["written"] <= 9 * (8 + 1) + 2
        assert (ring["delivered"], ring["lost"], ring["pending"]) == (ring["written"], 0, 0)


def test_held_bytes_are_owned_layers_and_windows(demo: RunDemo) -> None:
    """What a rank holds is its own half of the layers and its windows, each of the size asked for."""
    for rank in ranks_of(demo(*NINE_STEPS, "--ranks", "2", "--windows", "static")):
        assert rank["owned_bytes"] == 4 * (1 << 17)
        assert rank["window_bytes"] % (1 << 17) == 0
        assert rank["replicated_bytes"] == 8 * (1 << 17)


def test_rings_stay_where_swtrace_dir_says(demo: RunDemo) -> None:
    """With ``SWTRACE_DIR`` the rings are kept for other readers."""
    run = demo(*NINE_STEPS, "--ranks", "2", "--windows", "static")
    assert len(list(run.rings.glob("ring-demo*.swt"))) == 2


def test_duration_ends_the_run(demo: RunDemo) -> None:
    """Without a number of steps, all ranks run the same number of them until the time is over."""
    first, second = ranks_of(demo(*SMALL, "--duration", "0.5"))
    assert first["steps"] == second["steps"] > 0


def test_the_summary_is_data_and_the_rest_narration(swtrace: Swtrace) -> None:
    """Without ``--json`` the summary goes to stdout; progress and pids never do."""
    done = swtrace("demo", *SMALL, "--steps", "3", "--no-daemon")
    assert "series demo.linear" in done.stdout
    assert "all bit-identical" in done.stdout
    assert "pid" not in done.stdout
    assert "rank 0: pid" in done.stderr


SHORT = ("--layers", "16", "--mib", "2", "--steps", "8")
STALLED = ("--scenario", "stalled", "--layers", "16", "--mib", "2", "--steps", "20", "--max-stall", "100%")
LONG_COMPUTE = ("--compute-ms", "25")
"""Long beside what a busy machine keeps a transfer waiting for a core."""


def test_compute_hides_what_is_not_hidden_without(demo: RunDemo) -> None:
    """With next to no compute every rank stalls; behind compute, the same transfers stall each of them far less."""
    stalled, hidden = (
        [rank["stall_ratio"] for rank in ranks_of(demo(*options))]
        for options in (STALLED, ("--scenario", "hidden", *LONG_COMPUTE, *SHORT))
    )
    assert max(hidden) < min(stalled) / 2


def test_the_second_run_has_the_settings_of_the_plan(demo: RunDemo) -> None:
    """With ``--max-stall`` the demo runs again as planned, and its last sentences have what both runs measured."""
    result = demo(*STALLED).result
    (plan,) = result["plan"]["series"]
    began, *rest = result["conclusion"]
    assert f"{100 * max(rank['stall_ratio'] for rank in ranks_of(Demo(result, Path()))):.1f} %" in began
    if plan["chosen"] is None:  # the machine is so busy that the planner does not trust these steps
        assert result["second_run"] is None
        assert "no second run" in rest[0]
        return
    second = Demo(result["second_run"], Path())
    (series,) = second.result["summary"]["series"]
    chosen = plan["chosen"]
    assert (len(series["layers"]), series["prefetch_step"]) == (chosen["selected_layers"], chosen["prefetch_step"])
    assert second.result["outputs_identical"]
    assert f"{100 * chosen['stall_ratio']['value']:.1f} %" in rest[0]
    assert f"measured {100 * max(rank['stall_ratio'] for rank in ranks_of(second)):.1f} %" in rest[0]
    kinds = {finding["kind"] for finding in series["findings"]}
    assert len(kinds & {"as_planned", "better_than_planned", "plan_missed", "plan_untested"}) == 1, kinds


def test_without_records_there_is_nothing_to_plan_from(swtrace: Swtrace) -> None:
    """With ``SWTRACE_TRACE=0``, ``--max-stall`` is refused before anything runs."""
    done = swtrace("demo", "--max-stall", "5%", extra={"SWTRACE_TRACE": "0"})
    assert done.returncode == ExitCode.USAGE
    assert "SWTRACE_TRACE=0" in done.stderr
    assert "pid" not in done.stderr


def test_straggler_is_named(demo: RunDemo) -> None:
    """The last rank is named by its excess on the critical path."""
    options = (
        "--scenario",
        "straggler",
        "--layers",
        "30",
        "--mib",
        "0.25",
        "--steps",
        "30",
        "--fault",
        "straggler:ms=4",
    )
    (series,) = demo(*options).result["summary"]["series"]
    assert [each["ranks"] for each in series["stragglers"]] == [[1]]


def test_a_killed_rank_ends_its_group_by_name(start_swtrace: StartSwtrace) -> None:
    """The others end with an error that names series, layer and rank, and so does the demo."""
    process = start_swtrace("demo", "--no-daemon", *ENDLESS)
    victim, _ = rank_pids(process)
    until(process, STEPPING)
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=patience())
    assert process.returncode == ExitCode.RANK_LOST, err
    assert "rank 0: killed by SIGKILL" in err
    error = next(line for line in err.splitlines() if line.startswith("rank 1:"))
    assert "demo.linear" in error
    assert re.search(r"layer \d+", error)
    assert "rank 1" in error.removeprefix("rank 1:")
    assert "rank 0 died" in error
    assert "The group ended because a rank was lost" in out


def test_a_rank_that_pulls_waits_for_no_slower_one(demo: RunDemo) -> None:
    """Each runs its own steps until the time is over; a straggler runs fewer."""
    options = ("--scenario", "straggler", "--compute-ms", "1", "--fault", "straggler:ms=8", "--duration", "2")
    first, last = ranks_of(demo(*PULL, *SMALL, *options))
    assert first["steps"] > 2 * last["steps"] > 0


def test_with_pull_too_compute_hides_what_is_not_hidden_without(demo: RunDemo) -> None:
    """The scenario `stalled` stalls every rank, `hidden` far less."""
    stalled, hidden = (
        [rank["stall_ratio"] for rank in ranks_of(demo(*PULL, *scenario, "--layers", "16", "--steps", "8"))]
        for scenario in (("--scenario", "stalled"), ("--scenario", "hidden", *LONG_COMPUTE))
    )
    assert max(hidden) < min(stalled) / 2


def test_a_killed_rank_stops_nobody_that_pulls(start_swtrace: StartSwtrace, tmp_path: Path) -> None:
    """The other one runs all its steps with the dead rank's layers; the demo says who was lost, and nothing is left."""
    steps = str(round(patience(1) * 100))
    process = start_swtrace(
        "demo",
        "--no-daemon",
        *PULL,
        *SMALL,
        "--steps",
        steps,
        "--compute-ms",
        "1",
        extra={"SWTRACE_DIR": str(tmp_path)},
    )
    victim, _ = rank_pids(process)
    until(process, STEPPING)
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=patience())
    assert process.returncode == ExitCode.RANK_LOST, err
    assert "rank 0: killed by SIGKILL" in err
    assert "Lost rank 0. Rank 1 went on." in out
    assert not list(tmp_path.glob("pull-*"))


@pytest.mark.parametrize("marker", ["swtrace daemon", "swtrace.cli.summary_process"])
def test_ranks_outlive_whoever_watches_them(start_swtrace: StartSwtrace, marker: str) -> None:
    """Killing the daemon or the reader changes neither the run nor its summary."""
    # As many steps as last until the reader has told of one, and the victim has been found.
    steps = str(round(patience(1) * 100))
    process = start_swtrace("demo", "--json", *SMALL, "--steps", steps, "--compute-ms", "1")
    until(process, STEPPING)
    os.kill(descendant(process.pid, marker), signal.SIGKILL)
    out, err = process.communicate(timeout=patience())
    assert process.returncode == ExitCode.SUCCESS, err
    assert re.search(r"The (daemon|reader) ended.*ranks go on", err)
    result = json.loads(out)
    (series,) = result["summary"]["series"]
    assert all(rank["steps"] * 2 * 8 == result["outputs_checked"] for rank in series["ranks"])
    assert all(ring["lost"] == ring["pending"] == 0 for ring in result["summary"]["rings"])


class Ended(NamedTuple):
    """A demo with a daemon that a signal ended amid its run."""

    number: int
    status: int
    out: str
    metrics: str
    """What its daemon served last, under the URL that it printed."""
    children: list[int]
    folder: Path


@pytest.fixture(scope="module", params=[signal.SIGINT, signal.SIGTERM])
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return a demo that was ended by this signal once it had served a step."""
    temporary = tmp_path_factory.mktemp("ended")
    environment = clean_environment(temporary) | {"SWTRACE_DIR": "", "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [*SWTRACE, "demo", *ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            folder = Path(until(process, r"rings in (\S+)/rings$")[1])
            url = until(process, r"daemon: (http://\S+/metrics)")[1]
            until(process, STEPPING)
            children = descendants(process.pid)
            metrics = ""

            def served() -> bool:
                nonlocal metrics
                with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 (our own URL)
                    metrics = answer.read().decode()
                return 'series="demo.linear"' in metrics

            eventually(served, "metrics of the demo's series")
            process.send_signal(request.param)
            out, _ = process.communicate(timeout=patience())
        finally:
            process.kill()
    return Ended(request.param, process.returncode, out, metrics, children, folder)


def test_the_daemon_serves_while_it_runs(ended: Ended) -> None:
    """The printed URL answers with this run's metrics."""
    assert 'series="demo.linear"' in ended.metrics


def test_nothing_is_left_behind(ended: Ended) -> None:
    """However the demo is ended, every process it started ends, and its temporary folder goes."""
    assert len(ended.children) >= 5  # launcher, two ranks, reader, daemon
    assert ended.status == 128 + ended.number
    eventually(lambda: not any(map(runs, ended.children)), f"{[command_line(child) for child in ended.children]} end")
    assert not ended.folder.exists()


def test_a_run_that_is_ended_early_still_sums_up(ended: Ended) -> None:
    """Ctrl-C and SIGTERM end the run with a summary of what it had."""
    assert "series demo.linear" in ended.out


def test_an_interrupted_demo_leaves_no_layer_in_memory(start_swtrace: StartSwtrace, tmp_path: Path) -> None:
    """Ranks that pull keep their layers in the folder of the rings, which itself stays."""
    process = start_swtrace("demo", "--no-daemon", *PULL, *ENDLESS, extra={"SWTRACE_DIR": str(tmp_path)})
    until(process, STEPPING)
    assert list(tmp_path.glob("pull-*/layer-*"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=patience())
    assert list(tmp_path.glob("ring-*"))
    assert not list(tmp_path.glob("pull-*"))


def test_a_killed_demo_leaves_no_process(start_swtrace: StartSwtrace) -> None:
    """Even SIGKILL of the command ends ranks, reader and daemon."""
    process = start_swtrace("demo", *ENDLESS, extra={"SWTRACE_DIR": ""})
    folder = until(process, r"rings in (\S+)/rings$")[1]
    until(process, STEPPING)
    children = descendants(process.pid)
    process.kill()
    process.communicate(timeout=patience())
    eventually(lambda: not any(map(runs, children)), "ranks, reader and daemon end")
    shutil.rmtree(folder)  # the one thing that nobody was left to remove


def test_a_terminal_shows_the_run_live_and_then_its_summary(tmp_path: Path) -> None:
    """On a terminal the demo opens the viewer; `q` leaves it, the summary follows, and the status is 0."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "swtrace",
            "demo",
            "--layers",
            "6",
            "--mib",
            "0.1",
            "--steps",
            "30",
            "--no-daemon",
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(tmp_path) | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    try:
        read_until(ours, lambda shown: "Heat map" in shown and "rank" in shown)
        os.write(ours, b"q")
        shown = read_until(ours, lambda shown: "bit-identical" in shown)
        assert "bit-identical" in shown
        assert "saved" in shown
        read_until(ours, lambda _: process.poll() is not None)
        assert process.wait(patience()) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(
    "option",
    [
        "--transport",
        "--ranks",
        "--layers",
        "--share",
        "--mib",
        "--compute-ms",
        "--prefetch-step",
        "--windows",
        "--steps",
        "--duration",
        "--max-stall",
    ],
)
def test_demo_help_names_every_dial(option: str) -> None:
    """Every dial of the demo can be found without reading the code."""
    assert option in help_text("demo")


def test_demo_help_names_every_scenario() -> None:
    """The scenarios stand in the help of the option that takes them."""
    assert "hidden, stalled, straggler or jitter" in help_text("demo")
