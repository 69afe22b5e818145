"""A ring folder that cannot be used is refused in one line by every command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from swtrace.cli.exit_codes import ExitCode
from tests.support.commands import assert_one_line, clean_environment, run_swtrace

READERS = (("top", "--once", "--wait", "0"), ("record", "-o", "x.swrec"), ("daemon",), ("doctor", "--quick"))
WRITERS = (("demo", "--no-daemon", "--no-tui", "--steps", "1"), ("run", "--no-daemon", "--", sys.executable, "-V"))


@pytest.mark.parametrize("command", [*READERS, *WRITERS], ids=lambda command: command[0])
def test_a_file_in_place_of_the_folder_is_one_line(
    command: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that reads or writes rings says that SWTRACE_DIR is no folder, and begins nothing."""
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    done = run_swtrace(command, clean_environment(tmp_path / "file"))
    if command[0] == "doctor":
        assert done.returncode == ExitCode.FAILED
        assert "is not a folder" in " ".join(done.stdout.split())
        assert not done.stderr
    else:
        assert_one_line(done, ExitCode.USAGE, f"{tmp_path}/file is not a folder", "SWTRACE_DIR")
    assert not (tmp_path / "x.swrec").exists()


@pytest.mark.parametrize("folder", ["/proc/x", "/dev/null/x"])
@pytest.mark.parametrize("command", WRITERS, ids=lambda command: command[0])
def test_a_folder_that_cannot_be_made_is_one_line(command: Sequence[str], folder: str) -> None:
    """Ranks could not write there: the command ends before it starts any."""
    assert_one_line(run_swtrace(command, clean_environment(Path(folder))), ExitCode.USAGE, folder, "SWTRACE_DIR")


@pytest.mark.parametrize("command", [*READERS, *WRITERS], ids=lambda command: command[0])
def test_the_home_of_nobody_is_refused_by_all(command: Sequence[str]) -> None:
    """Readers and ranks agree on what is no folder."""
    done = run_swtrace(command, {**clean_environment(Path()), "SWTRACE_DIR": "~nobody-of-this-name/rings"})
    assert "SWTRACE_DIR='~nobody-of-this-name/rings': must be the path of a folder" in done.stdout + done.stderr
    assert done.returncode == (ExitCode.FAILED if command[0] == "doctor" else ExitCode.USAGE)
