"""The command line as people meet it: help, version, and errors in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import swtrace as package
from swtrace.cli.commands import app
from swtrace.cli.exit_codes import CommandError, ExitCode, exit_code
from swtrace.errors import PeerLostError, RingFormatError, SettingsError
from tests.cli.conftest import Swtrace


def help_text(*arguments: str) -> str:
    """Return what ``--help`` prints, as plain words."""
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0
    return re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))


def test_help_names_every_subcommand() -> None:
    """Someone who types ``swtrace --help`` sees where to begin."""
    text = help_text()
    for name in ("demo", "run", "daemon", "doctor"):
        assert f" {name} " in text


@pytest.mark.parametrize(
    "option", ["--ranks", "--layers", "--mib", "--compute-ms", "--prefetch-step", "--windows", "--steps", "--duration"]
)
def test_demo_help_names_every_dial(option: str) -> None:
    """Every dial of the demo can be found without reading the code."""
    assert option in help_text("demo")


def test_demo_help_names_every_scenario() -> None:
    """The scenarios stand in the help of the option that takes them."""
    assert "hidden, stalled, straggler, jitter" in help_text("demo")


def test_version_is_data(swtrace: Swtrace) -> None:
    """``--version`` prints one line to stdout."""
    assert swtrace("--version").stdout == f"swtrace {package.__version__}\n"


def test_an_error_is_one_line_and_a_code(swtrace: Swtrace) -> None:
    """What a user got wrong ends in one line on stderr that names it, with no traceback."""
    result = swtrace("demo", "--ranks", "1")
    assert result.returncode == ExitCode.USAGE
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["swtrace: --ranks must be 2 to 64"]


def test_an_unknown_option_is_a_usage_error(swtrace: Swtrace) -> None:
    """The parser's own errors have the status that this project's have."""
    assert swtrace("demo", "--rank", "2").returncode == ExitCode.USAGE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("no", ExitCode.NOT_FOUND), ExitCode.NOT_FOUND),
        (SettingsError("no"), ExitCode.USAGE),
        (PeerLostError("no"), ExitCode.RANK_LOST),
        (RingFormatError("no"), ExitCode.FAILED),
    ],
)
def test_every_kind_of_error_has_its_code(error: Exception, code: ExitCode) -> None:
    """Scripts can tell a lost rank from a wrong option."""
    assert isinstance(error, package.errors.SwtraceError)
    assert exit_code(error) is code


def test_every_exit_code_says_what_it_means() -> None:
    """Each member of ``ExitCode`` is followed by a docstring."""
    source = Path(package.__file__).with_name("cli") / "exit_codes.py"
    members = re.findall(r'^    [A-Z_]+ = \d+\n    """', source.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(members) == len(ExitCode)
