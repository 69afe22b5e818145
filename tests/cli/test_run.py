"""``swtrace run``: the command's own life goes on as without it, and its run is summed up."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import FAKE_RANK, StartSwtrace, Swtrace
from tests.support.patience import eventually, patience
from tests.support.processes import descendant, runs

PYTHON = (sys.executable, "-c")
TRAP = """
import os, signal, sys, time
def trapped(number, frame):
    # Not print: the signal may arrive within the one below, which forbids another.
    os.write(1, f"caught {signal.Signals(number).name}\\n".encode())
    sys.exit(5)
signal.signal(signal.SIGINT, trapped)
signal.signal(signal.SIGTERM, trapped)
print("ready", flush=True)
while True: time.sleep(0.05)
"""


def test_exit_status_is_the_commands(swtrace: Swtrace) -> None:
    """A script around ``swtrace run`` sees what it would see without it."""
    assert swtrace("run", "--no-daemon", "--", *FAKE_RANK, "2", "7").returncode == 7


def test_a_killed_command_is_told_as_a_shell_tells_it(swtrace: Swtrace) -> None:
    """A command ended by signal n gives status 128 + n."""
    result = swtrace("run", "--no-daemon", "--", *PYTHON, "import os; os.kill(os.getpid(), 9)")
    assert result.returncode == 128 + signal.SIGKILL


def test_stdout_belongs_to_the_command(swtrace: Swtrace) -> None:
    """Nothing of ours is mixed into the command's output, nor its options taken for ours."""
    result = swtrace("run", "--no-daemon", *PYTHON, "import sys; print(sys.argv[1:])", "--json", "--help")
    assert result.stdout == "['--json', '--help']\n"


def test_settings_reach_the_command(swtrace: Swtrace, rings: Path) -> None:
    """The command finds tracing on, a fresh run id, and every option as the variable that means it."""
    code = "import os, json; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('SWTRACE')}))"
    options = ["--series", "mlp.down_proj", "--share", "1/2", "--prefetch-step", "2", "--group", "tp", "--strict"]
    options += ["--windows", "static"]
    told = json.loads(swtrace("run", "--no-daemon", *options, "--", *PYTHON, code).stdout)
    run_id = told.pop("SWTRACE_RUN_ID")
    assert run_id
    assert told == {
        "SWTRACE": "1",
        "SWTRACE_DIR": str(rings),
        "SWTRACE_GROUP": "tp",
        "SWTRACE_LISTEN": "127.0.0.1:0",
        "SWTRACE_PREFETCH_STEP": "2",
        "SWTRACE_SERIES": "mlp.down_proj",
        "SWTRACE_SHARE": "1/2",
        "SWTRACE_STRICT": "1",
        "SWTRACE_WINDOWS": "static",
    }


def test_an_unusable_setting_stops_before_the_command(swtrace: Swtrace, tmp_path: Path) -> None:
    """A mistyped setting is told at once, and the command never starts."""
    trace = tmp_path / "started"
    result = swtrace("run", "--group", "pp", "--", *PYTHON, f"open({str(trace)!r}, 'w')")
    assert result.returncode == ExitCode.USAGE
    assert "--group='pp': must be one of: auto, tp, dp, world" in result.stderr
    assert not trace.exists()


def test_the_summary_goes_to_stderr_and_to_a_file(swtrace: Swtrace, tmp_path: Path) -> None:
    """People read the summary, scripts get the same as JSON."""
    document = tmp_path / "summary.json"
    result = swtrace("run", "--no-daemon", "--json", str(document), "--", *FAKE_RANK, "10")
    assert "series self_attn.o_proj" in result.stderr
    (series,) = json.loads(document.read_text(encoding="utf-8"))["summary"]["series"]
    assert series["ranks"][0]["stall_ratio"] == pytest.approx(0.2)


@pytest.mark.parametrize(("command", "code"), [(7, 7), (0, 1)])
def test_a_summary_that_cannot_be_written_names_its_file(swtrace: Swtrace, command: int, code: int) -> None:
    """The command's own failure stays the exit status; after a success it is 1."""
    result = swtrace("run", "--no-daemon", "--json", "/dev/full", "--", *PYTHON, f"raise SystemExit({command})")
    assert result.returncode == code
    assert result.stderr.splitlines()[-1] == "swtrace: --json /dev/full: No space left on device"


def test_only_this_run_is_summed_up(swtrace: Swtrace, tmp_path: Path) -> None:
    """Rings of an earlier run in the same folder are not counted again."""
    document = tmp_path / "summary.json"
    swtrace("run", "--no-daemon", "--", *FAKE_RANK, "10")
    swtrace("run", "--no-daemon", "--json", str(document), "--", *FAKE_RANK, "3")
    summary = json.loads(document.read_text(encoding="utf-8"))["summary"]
    assert [rank["steps"] for series in summary["series"] for rank in series["ranks"]] == [3]


def test_a_run_that_is_told_not_to_trace_says_so(swtrace: Swtrace) -> None:
    """With SWTRACE_TRACE=0 nothing is missing: that is why there is no ring."""
    result = swtrace("run", "--no-daemon", "--", *PYTHON, "pass", extra={"SWTRACE_TRACE": "0"})
    assert "no rank of this run wrote a ring because SWTRACE_TRACE=0." in result.stderr
    assert "doctor" not in result.stderr


def test_a_command_that_traces_nothing_is_told(swtrace: Swtrace) -> None:
    """Without a ring there is no summary, but a hint where to look."""
    result = swtrace("run", "--no-daemon", "--", *PYTHON, "pass")
    assert result.returncode == 0
    assert "no rank of this run wrote a ring" in result.stderr


def test_a_missing_command_has_the_shells_status(swtrace: Swtrace) -> None:
    """As in a shell, 127 means that there is no such command, and 126 that it cannot be executed."""
    assert swtrace("run", "--", "no-such-command-anywhere").returncode == ExitCode.NOT_FOUND
    assert swtrace("run", "--", __file__).returncode == ExitCode.NOT_EXECUTABLE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(start_swtrace: StartSwtrace, number: signal.Signals) -> None:
    """A signal sent to ``swtrace run`` reaches the command, whose own handling decides how it ends."""
    process = start_swtrace("run", "--no-daemon", "--", *PYTHON, TRAP)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=patience())
    assert out == f"caught {number.name}\n", err
    assert process.returncode == 5


def test_a_stopped_run_continues(start_swtrace: StartSwtrace) -> None:
    """After Ctrl-Z and `fg` the run goes on: the command still gets its signals, and its status is returned."""
    process = start_swtrace("run", "--no-daemon", "--", *PYTHON, TRAP)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: stopped(process.pid), "the run is stopped")
        time.sleep(0.2)  # longer than the run waits for a signal at once
        process.send_signal(signal.SIGCONT)
        eventually(lambda: not stopped(process.pid), "the run continues")
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=patience())
    assert (process.returncode, out) == (5, "caught SIGTERM\n"), err


def stopped(pid: int) -> bool:
    """Return whether a process is stopped."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].startswith("T")


def test_an_open_daemon_warns_here_too(start_swtrace: StartSwtrace) -> None:
    """A daemon that ``run`` starts and that is open to other hosts is warned of before its URL."""
    process = start_swtrace("run", "--listen", "0.0.0.0:0", "--", *PYTHON, TRAP)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "daemon at" in line:
            break
    assert "is open to other hosts, without TLS and passwords" in said[-2]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=patience())


def test_the_command_outlives_its_daemon(start_swtrace: StartSwtrace) -> None:
    """Killing the daemon neither ends the command nor changes its status."""
    process = start_swtrace("run", "--", *PYTHON, TRAP)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    daemon = descendant(process.pid, "swtrace daemon")
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: not runs(daemon), "the daemon is gone")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=patience())
    assert process.returncode == 5
    assert "the daemon ended early" in err
