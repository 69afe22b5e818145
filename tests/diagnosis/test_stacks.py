"""The stacks of a rank are shown, or a word says why not and what helps."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swtrace.diagnosis.stacks import RankStacks, dump_stacks
from swtrace.observing import watch_rings
from swtrace.observing.observation import ObservedRank
from swtrace.trace.clocks import boot_id
from swtrace.trace.recorder import Recorder, identity_of_this_process
from tests.support.patience import eventually

HANGING = """
import sys, time
from pathlib import Path
from swtrace.trace.recorder import Recorder, identity_of_this_process
recorder = Recorder.create(Path(sys.argv[1]), identity_of_this_process("run", 3))
def hangs_here():
    print("ready", flush=True)
    time.sleep(3600)
hangs_here()
"""


def observed(folder: Path) -> ObservedRank:
    """Return the only rank of a folder."""
    with watch_rings(folder) as roster:
        roster.drain()
        (rank,) = roster.observe().ranks
    return rank


def stacks(rank: ObservedRank) -> RankStacks:
    """Return what is known of one rank's stacks."""
    (found,) = dump_stacks([rank])
    return found


@pytest.fixture
def rank(tmp_path: Path) -> Any:
    """Return this process as a rank."""
    recorder = Recorder.create(tmp_path / "rings", identity_of_this_process("run", 3))
    yield observed(tmp_path / "rings")
    recorder.close()


def put_program(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the only py-spy on the path a fake one."""
    program = folder / "py-spy"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_py_spy_shows_where_a_rank_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack of a real process has the function in which it hangs."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with subprocess.Popen([sys.executable, "-c", HANGING, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            found: list[RankStacks] = []

            def shown() -> bool:
                found[:] = [stacks(observed(tmp_path))]
                return bool(found[0].text)

            eventually(shown, f"a stack; py-spy said {found}", between_s=0.2)
        finally:
            process.kill()
    assert found[0].rank == 3
    assert "hangs_here" in found[0].text


def test_a_missing_py_spy_is_named_with_its_installation(
    rank: ObservedRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the optional program, the word says how to install it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pip install py-spy" in stacks(rank).problem


def test_a_forbidden_look_names_the_settings(
    rank: ObservedRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the kernel refuses ptrace, the word names the capability and the setting."""
    put_program(tmp_path, "echo 'Error: Permission Denied: Try running again with elevated permissions' >&2; exit 1",
                monkeypatch)  # fmt: skip
    problem = stacks(rank).problem
    assert "SYS_PTRACE" in problem
    assert "kernel.yama.ptrace_scope" in problem


def test_another_failure_is_quoted(rank: ObservedRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other error of py-spy is passed on in its own words."""
    put_program(tmp_path, "echo 'Error: Failed to find python version' >&2; exit 1", monkeypatch)
    assert stacks(rank).problem == "py-spy failed: Error: Failed to find python version"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"boot_id": "another", "host": "gpu-b"}, "runs on another host (gpu-b)"),
        ({"pid": os.getppid()}, "pid namespace"),
        ({"pid": 2**30}, "has ended"),
    ],
)
def test_a_process_that_is_not_the_rank_is_never_looked_at(
    rank: ObservedRank, changes: dict[str, Any], word: str
) -> None:
    """A rank of another host or of another pid namespace is refused, though a process here may have its pid."""
    assert rank.identity.boot_id == boot_id()
    found = stacks(replace(rank, identity=replace(rank.identity, **changes)))
    assert not found.text
    assert word in found.problem
