"""A command's children: their lines arrive, and none outlives the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from swtrace.cli.child import Child, wait_for_lines
from tests.support.patience import eventually, patience
from tests.support.processes import runs


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose modules children can run."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return tmp_path


def write(folder: Path, name: str, code: str) -> str:
    """Write a module and return its name."""
    (folder / f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")
    return name


def test_lines_arrive_whole(modules: Path) -> None:
    """A line is handed over once it is complete, the last one also without its end."""
    module = write(
        modules, "talker", "import sys; sys.stdout.write('one\\ntwo\\nthr'); sys.stdout.flush(); print('ee', end='')"
    )
    lines = []
    with Child.start(module, []) as child:
        while child.readable:
            wait_for_lines([child], 1.0)
            lines += child.lines()
    assert lines == ["one", "two", "three"]


def test_a_silent_child_does_not_block(modules: Path) -> None:
    """Asking a child that says nothing returns at once."""
    module = write(modules, "silent", "import sys; sys.stdin.read()")
    with Child.start(module, []) as child:
        assert child.lines() == []
        assert child.status is None


def test_a_stubborn_child_is_killed(modules: Path) -> None:
    """A child that ignores SIGTERM is ended all the same."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    with Child.start(write(modules, "stubborn", code), []) as child:
        while not child.lines():
            wait_for_lines([child], 1.0)
        child.close(grace_s=0.1)
    assert child.status == -signal.SIGKILL


def test_a_child_ends_with_its_command(modules: Path) -> None:
    """A command killed without a chance to clean up leaves no child behind."""
    write(modules, "lasting", "import time; print('up', flush=True); time.sleep(600)")
    code = """
        import sys, time
        from swtrace.cli.child import Child, wait_for_lines
        child = Child.start("lasting", [])
        while not child.lines():
            wait_for_lines([child], 1.0)
        print(child.pid, flush=True)
        time.sleep(600)
    """
    command = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    with command:
        assert command.stdout is not None
        child = int(command.stdout.readline())
        assert runs(child)
        command.kill()
        command.wait()
        eventually(lambda: not runs(child), "the child ends with the command")


def test_an_orphan_does_not_start(modules: Path) -> None:
    """A child whose parent is gone before it could ask the kernel ends by itself."""
    module = write(modules, "never", "raise SystemExit(99)")
    done = subprocess.run(
        [sys.executable, "-m", "swtrace.cli.child", "1", module],
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )
    assert done.returncode == 1
    assert "has already ended" in done.stderr
