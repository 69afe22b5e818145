"""``swtrace`` as a user runs it: a process of its own, with nothing of this machine's environment in its way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from swtrace.cli.commands import app
from tests.support.patience import patience

Swtrace = Callable[..., "subprocess.CompletedProcess[str]"]
StartSwtrace = Callable[..., "subprocess.Popen[str]"]

SWTRACE = [sys.executable, "-m", "swtrace"]
FAKE_RANK = (sys.executable, str(Path(__file__).with_name("fake_rank.py")))


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let Ctrl-C reach what tests start, also where a shell ignores it on behalf of a job in its background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rings(tmp_path: Path) -> Path:
    """Return the folder that stands for ``SWTRACE_DIR``; not made yet."""
    return tmp_path / "rings"


def clean_environment(rings: Path) -> dict[str, str]:
    """Return this process's environment without any setting of ours, and ``rings`` as the folder of rings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SWTRACE", "OTEL_", "VLLM_"))}
    return {**clean, "SWTRACE_DIR": str(rings), "SWTRACE_LISTEN": "127.0.0.1:0"}


def run_swtrace(
    arguments: Sequence[str], environment: Mapping[str, str], encoding: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``swtrace ARGUMENTS`` to its end; read what it writes in this locale's encoding, or in another."""
    return subprocess.run(
        [*SWTRACE, *arguments],
        capture_output=True,
        text=True,
        encoding=encoding,
        env=environment,
        timeout=patience(),
        check=False,
    )


def checked(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``swtrace ARGUMENTS`` in this process's environment to its end, which has this status and no traceback."""
    done = run_swtrace([str(argument) for argument in arguments], os.environ)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def help_text(*arguments: str, columns: int = 120) -> str:
    """Return what ``--help`` prints, as plain words."""
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert result.exit_code == 0
    return re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert that a command ended with one sentence on stderr and the status."""
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture
def environment(rings: Path) -> dict[str, str]:
    """Return the environment of every ``swtrace`` of a test."""
    return clean_environment(rings)


@pytest.fixture
def swtrace(environment: dict[str, str]) -> Swtrace:
    """Return a function that runs ``swtrace ARGUMENTS`` to its end."""

    def run(*arguments: str, extra: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return run_swtrace(arguments, {**environment, **(extra or {})})

    return run


@pytest.fixture
def start_swtrace(environment: dict[str, str]) -> Iterator[StartSwtrace]:
    """Return a function that starts ``swtrace ARGUMENTS``; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, extra: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*SWTRACE, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, **(extra or {})},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
